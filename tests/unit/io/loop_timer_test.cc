#include <algorithm>
#include <catch2/catch.hpp>
#include <chrono>
#include <memory>
#include <vector>

#include "io/event_loop.h"
#include "unit/io/loop_test_support.h"

namespace catnap::io {
namespace {

using absl::StatusCode;
using std::chrono::hours;
using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

std::unique_ptr<EventLoop> AnyLoop() {
  return MakeLoop({.backend = GENERATE(from_range(Backends()))});
}

TEST_CASE("A timer never completes before its deadline") {
  const auto loop = AnyLoop();
  const Inbox<steady_clock::duration> lateness;
  static constexpr int kTimers = 100;
  const auto base = steady_clock::now();
  for (int i = 0; i < kTimers; ++i) {
    const auto deadline = base + i * microseconds(217);
    loop->StartTimer(deadline, [lateness, deadline](const auto&) {
      lateness.Put(steady_clock::now() - deadline);
    });
  }
  const auto seen = lateness.WaitFor(kTimers);
  CHECK(*std::min_element(seen.begin(), seen.end()) >=
        steady_clock::duration::zero());
}

TEST_CASE("Thousands of timers complete in the order of their deadlines") {
  const auto loop = AnyLoop();
  static constexpr size_t kTimers = 5000;
  const Inbox<size_t> fired;
  // Started from the loop, so that none is due before all are known; 7919 is
  // prime, so the order of starting is a permutation.
  loop->Post([&] {
    const auto base = steady_clock::now() + milliseconds(1);
    for (size_t i = 0; i < kTimers; ++i) {
      const size_t rank = i * 7919 % kTimers;
      loop->StartTimer(base + rank * microseconds(1),
                       [fired, rank](const auto&) { fired.Put(rank); });
    }
  });
  const auto order = fired.WaitFor(kTimers);
  CHECK(std::is_sorted(order.begin(), order.end()));
}

TEST_CASE("Deadlines at both ends of the clock are understood") {
  const auto loop = AnyLoop();
  const Outcomes never;
  const OperationId id =
      loop->StartTimer(steady_clock::time_point::max(), Into(never));
  const auto past = Await([&](Completion done) {
    loop->StartTimer(steady_clock::time_point::min(), std::move(done));
  });
  REQUIRE(past.ok());
  CHECK(past.value == 0);
  CHECK(never.size() == 0);
  loop->Cancel(id);
  CHECK(never.WaitFor(1).front().code == StatusCode::kCancelled);
}

TEST_CASE("A timer that is earlier than all others is not kept waiting") {
  const auto loop = AnyLoop();
  const Outcomes results;
  loop->StartTimer(steady_clock::now() + hours(24), Into(results));
  Settle(loop.get());  // The loop now sleeps for the far one.
  const auto early = Await([&](Completion done) {
    loop->StartTimer(steady_clock::now() + milliseconds(1), std::move(done));
  });
  CHECK(early.ok());
  CHECK(results.size() == 0);
}

TEST_CASE("A cancelled timer completes once, with CANCELLED") {
  const auto loop = AnyLoop();
  static constexpr size_t kTimers = 3000;
  const Outcomes results;
  std::vector<OperationId> ids;
  for (size_t i = 0; i < kTimers; ++i) {
    ids.push_back(loop->StartTimer(
        steady_clock::now() + hours(1 + i * 7919 % kTimers), Into(results)));
  }
  std::reverse(ids.begin() + kTimers / 3, ids.end());
  for (const OperationId id : ids) loop->Cancel(id);
  for (const OperationId id : ids) loop->Cancel(id);
  const auto ended = results.WaitFor(kTimers);
  CHECK(std::all_of(ended.begin(), ended.end(), [](const auto& result) {
    return result.code == StatusCode::kCancelled;
  }));
  Settle(loop.get());
  CHECK(results.size() == kTimers);
}

TEST_CASE("A timer may start itself again") {
  const auto loop = AnyLoop();
  struct Periodic {
    EventLoop* loop;
    Inbox<int> done;
    int left = 50;
    void Step() {
      loop->StartTimer(
          steady_clock::now() + microseconds(50),
          [this](const auto&) { --left == 0 ? done.Put(left) : Step(); });
    }
  } periodic{loop.get(), {}};
  periodic.Step();
  CHECK(periodic.done.WaitFor(1).front() == 0);
}

}  // namespace
}  // namespace catnap::io
