#include "base/thread_executor.h"

#include <algorithm>
#include <atomic>
#include <catch2/catch.hpp>
#include <future>
#include <thread>
#include <vector>

namespace catnap::base {
namespace {

std::unique_ptr<ThreadExecutor> MakeExecutor() {
  auto executor = ThreadExecutor::Create("test");
  REQUIRE(executor.ok());
  return *std::move(executor);
}

TEST_CASE("ThreadExecutor runs tasks in the order of Post") {
  std::vector<int> seen;
  auto executor = MakeExecutor();
  for (int i = 0; i < 1000; ++i) {
    executor->Post([&seen, i] { seen.push_back(i); });
  }
  executor.reset();
  REQUIRE(seen.size() == 1000);
  CHECK(std::is_sorted(seen.begin(), seen.end()));
}

TEST_CASE("ThreadExecutor never runs a task inside Post") {
  std::thread::id seen;
  auto executor = MakeExecutor();
  executor->Post([&seen] { seen = std::this_thread::get_id(); });
  executor.reset();
  CHECK(seen != std::thread::id());
  CHECK(seen != std::this_thread::get_id());
}

TEST_CASE("ThreadExecutor keeps the order of each of several posting threads") {
  static constexpr int kThreads = 4;
  static constexpr int kEach = 500;
  std::vector<std::vector<int>> seen(kThreads);
  auto executor = MakeExecutor();
  std::vector<std::thread> threads;
  threads.reserve(kThreads);
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kEach; ++i) {
        executor->Post(
            [&seen, t, i] { seen[static_cast<size_t>(t)].push_back(i); });
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  executor.reset();
  for (const auto& one : seen) {
    CHECK(one.size() == kEach);
    CHECK(std::is_sorted(one.begin(), one.end()));
  }
}

TEST_CASE("Destroying a ThreadExecutor runs what tasks posted meanwhile") {
  int ran = 0;
  auto executor = MakeExecutor();
  ThreadExecutor* const borrowed = executor.get();
  executor->Post([&ran, borrowed] {
    borrowed->Post([&ran, borrowed] {
      borrowed->Post([&ran] { ++ran; });
      ++ran;
    });
    ++ran;
  });
  executor.reset();
  CHECK(ran == 3);
}

TEST_CASE("After Shutdown a task is destroyed in Post without running") {
  auto executor = MakeExecutor();
  executor->Shutdown();
  bool ran = false;
  auto owned = std::make_shared<int>(0);
  const std::weak_ptr<int> watch = owned;
  executor->Post([&ran, owned = std::move(owned)] { ran = true; });
  CHECK(watch.expired());
  executor.reset();
  CHECK_FALSE(ran);
}

TEST_CASE("A task may destroy its executor, and what was posted still runs") {
  std::promise<void> last;
  auto executor = MakeExecutor();
  ThreadExecutor* const borrowed = executor.get();
  std::promise<void> go;
  borrowed->Post([wait = go.get_future()] { wait.wait(); });
  borrowed->Post(
      [executor = std::move(executor)]() mutable { executor.reset(); });
  borrowed->Post([&last] { last.set_value(); });
  go.set_value();
  CHECK(last.get_future().wait_for(std::chrono::seconds(30)) ==
        std::future_status::ready);
}

TEST_CASE("A task has the stack of an ordinary thread") {
  bool ran = false;
  auto executor = MakeExecutor();
  executor->Post([&ran] {
    // More than the library's own threads have.
    volatile char deep[1 << 20];
    deep[0] = 1;
    deep[sizeof(deep) - 1] = 1;
    ran = deep[0] == 1;
  });
  executor.reset();
  CHECK(ran);
}

}  // namespace
}  // namespace catnap::base
