#include "base/serial_queue.h"

#include <algorithm>
#include <atomic>
#include <catch2/catch.hpp>
#include <deque>
#include <future>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "base/thread_executor.h"

namespace catnap::base {
namespace {

// Runs tasks when told to, on the test's own thread.
class ManualExecutor final : public Executor {
 public:
  void Post(absl::AnyInvocable<void() &&> task) override {
    tasks_.push_back(std::move(task));
  }
  size_t waiting() const { return tasks_.size(); }
  void RunAll() {
    while (!tasks_.empty()) {
      auto task = std::move(tasks_.front());
      tasks_.pop_front();
      std::move(task)();
    }
  }

 private:
  std::deque<absl::AnyInvocable<void() &&>> tasks_;
};

// A user's pool: tasks run on any of several threads.
class PoolExecutor final : public Executor {
 public:
  explicit PoolExecutor(int threads) {
    for (int i = 0; i < threads; ++i) {
      workers_.push_back(*ThreadExecutor::Create("pool"));
    }
  }
  void Post(absl::AnyInvocable<void() &&> task) override {
    workers_[next_++ % workers_.size()]->Post(std::move(task));
  }

 private:
  std::vector<std::unique_ptr<ThreadExecutor>> workers_;
  std::atomic<size_t> next_ = 0;
};

TEST_CASE("SerialQueue keeps order and never overlaps on several threads") {
  static constexpr int kTasks = 2000;
  const auto pool = std::make_shared<PoolExecutor>(4);
  SerialQueue queue(pool);
  std::vector<int> seen;  // Not guarded: the queue must be enough.
  std::atomic<int> inside = 0;
  std::atomic<bool> overlapped = false;
  std::promise<void> done;
  for (int i = 0; i < kTasks; ++i) {
    queue.Post([&, i] {
      if (inside.fetch_add(1) != 0) overlapped = true;
      seen.push_back(i);
      inside.fetch_sub(1);
      if (i == kTasks - 1) done.set_value();
    });
  }
  done.get_future().wait();
  queue.Cancel();
  CHECK_FALSE(overlapped);
  REQUIRE(seen.size() == kTasks);
  CHECK(std::is_sorted(seen.begin(), seen.end()));
}

TEST_CASE("SerialQueue takes one place in the executor at a time") {
  const auto executor = std::make_shared<ManualExecutor>();
  SerialQueue queue(executor);
  int ran = 0;
  for (int i = 0; i < 5; ++i) queue.Post([&ran] { ++ran; });
  CHECK(executor->waiting() == 1);
  executor->RunAll();
  CHECK(ran == 5);
}

TEST_CASE("A destroyed SerialQueue runs nothing that had not started") {
  const auto executor = std::make_shared<ManualExecutor>();
  bool ran = false;
  auto owned = std::make_shared<int>(0);
  const std::weak_ptr<int> watch = owned;
  {
    SerialQueue queue(executor);
    queue.Post([&ran, owned = std::move(owned)] { ran = true; });
  }
  CHECK(watch.expired());
  executor->RunAll();
  CHECK_FALSE(ran);
}

TEST_CASE("A task posted after Cancel is destroyed without running") {
  const auto executor = std::make_shared<ManualExecutor>();
  SerialQueue queue(executor);
  queue.Cancel();
  bool ran = false;
  queue.Post([&ran] { ran = true; });
  executor->RunAll();
  CHECK_FALSE(ran);
}

TEST_CASE("Cancel waits for the task that runs and for what it owns") {
  const auto executor = std::make_shared<PoolExecutor>(1);
  SerialQueue queue(executor);
  std::promise<void> started;
  std::atomic<bool> finished = false;
  auto owned = std::make_shared<int>(0);
  const std::weak_ptr<int> watch = owned;
  queue.Post([&, owned = std::move(owned)] {
    started.set_value();
    // Long enough that a Cancel() that does not wait is seen to return early.
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    finished = true;
  });
  started.get_future().wait();
  queue.Cancel();
  CHECK(finished);
  CHECK(watch.expired());
}

TEST_CASE("A task may destroy its own SerialQueue") {
  const auto executor = std::make_shared<ManualExecutor>();
  auto queue = std::make_unique<SerialQueue>(executor);
  int ran = 0;
  queue->Post([&] {
    queue.reset();
    ++ran;
  });
  queue->Post([&ran] { ++ran; });
  executor->RunAll();
  CHECK(ran == 1);
}

TEST_CASE("A task may post to its own SerialQueue") {
  const auto executor = std::make_shared<ManualExecutor>();
  SerialQueue queue(executor);
  std::vector<int> seen;
  queue.Post([&] {
    queue.Post([&seen] { seen.push_back(3); });
    seen.push_back(1);
  });
  queue.Post([&seen] { seen.push_back(2); });
  executor->RunAll();
  CHECK(seen == std::vector<int>{1, 2, 3});
}

TEST_CASE("SerialQueue is cancelled safely while others post") {
  const auto pool = std::make_shared<PoolExecutor>(2);
  for (int round = 0; round < 50; ++round) {
    auto alive = std::make_unique<std::atomic<bool>>(true);
    std::atomic<bool> late = false;
    SerialQueue queue(pool);
    std::thread poster([&] {
      for (int i = 0; i < 100; ++i) {
        queue.Post([&late, watch = alive.get()] {
          if (!watch->load()) late = true;
        });
      }
    });
    std::this_thread::yield();
    queue.Cancel();
    // A task that ran now would be caught here, or as a use after free.
    *alive = false;
    poster.join();
    alive.reset();
    CHECK_FALSE(late);
  }
}

TEST_CASE("A SerialQueue may outlive its executor's other owners") {
  auto executor = std::shared_ptr<Executor>(*ThreadExecutor::Create("last"));
  std::promise<void> ran;
  SerialQueue queue(std::move(executor));
  queue.Post([&ran] { ran.set_value(); });
  CHECK(ran.get_future().wait_for(std::chrono::seconds(30)) ==
        std::future_status::ready);
}

}  // namespace
}  // namespace catnap::base
