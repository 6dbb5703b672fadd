#include "io/timer_queue.h"

#include <array>
#include <catch2/catch.hpp>
#include <chrono>
#include <cstdint>
#include <map>
#include <random>

#include "io/operation.h"

namespace catnap::io {
namespace {

TEST_CASE("The queue agrees with a sorted map under random use") {
  using Key = std::pair<TimerQueue::TimePoint, uint64_t>;
  std::array<Operation, 200> timers;
  std::array<Key, 200> keys{};
  std::array<bool, 200> queued{};
  std::map<Key, Operation*> model;
  TimerQueue queue;
  std::mt19937 random(1);  // Fixed: a failure must repeat.
  uint64_t sequence = 0;
  for (int step = 0; step < 20000; ++step) {
    const size_t i = random() % timers.size();
    if (queued[i]) {
      queue.Remove(&timers[i]);
      model.erase(keys[i]);
    } else {
      // Few deadlines, so that many are equal.
      timers[i].deadline =
          TimerQueue::TimePoint(std::chrono::seconds(random() % 30));
      keys[i] = {timers[i].deadline, sequence++};
      queue.Add(&timers[i]);
      model[keys[i]] = &timers[i];
    }
    queued[i] = !queued[i];
    REQUIRE(queue.NextDeadline().has_value() == !model.empty());
    if (!model.empty()) {
      REQUIRE(*queue.NextDeadline() == model.begin()->first.first);
    }
  }
  for (const auto& [key, timer] : model) {
    CHECK(queue.PopDue(key.first - std::chrono::seconds(1)) == nullptr);
    CHECK(queue.PopDue(key.first) == timer);
  }
  CHECK_FALSE(queue.NextDeadline().has_value());
}

}  // namespace
}  // namespace catnap::io
