#include "vmm/shell_pool.h"

#include <catch2/catch.hpp>
#include <thread>

#include "support/lowered_limit.h"
#include "support/machine_fixture.h"

namespace catnap::vmm {
namespace {

using test::Assembler;

constexpr ShellConfig kSmall{.memory_bytes = test::kSmallMemory};

std::unique_ptr<ShellPool> MakePool(ShellPool::Options options = {}) {
  auto pool = ShellPool::Create(test::OpenKvm(), options);
  REQUIRE(pool.ok());
  return *std::move(pool);
}

TEST_CASE("A prewarmed pool hands out a shell that runs a guest") {
  const auto pool = MakePool();
  REQUIRE(pool->Prewarm(kSmall, 2).ok());
  CHECK(pool->stats().waiting == 2);
  auto shell = pool->Take(kSmall);
  REQUIRE(shell.ok());
  CHECK(pool->stats().hits == 1);
  const auto guest = test::MakeGuest(Assembler().PowerOff());
  REQUIRE(
      (*shell)
          ->Launch({.template_memfd = guest.memfd.get(), .state = guest.state})
          .ok());
  REQUIRE((*shell)->Start().ok());
  REQUIRE((*shell)->WaitForEnd(test::Deadline()));
  CHECK((*shell)->exit()->reason == EndReason::kPowerOff);
  pool->Retire(*std::move(shell));
}

TEST_CASE("An empty pool makes a shell on the spot, then follows demand") {
  const auto pool = MakePool();
  const auto first = pool->Take(kSmall);
  REQUIRE(first.ok());
  CHECK(pool->stats().misses == 1);
  pool->WaitIdle();
  CHECK(pool->stats().waiting == 1);
  CHECK(pool->stats().waiting_bytes == ShellCostBytes(kSmall));
}

TEST_CASE("A pool that lets a burst pass follows its demand unasked") {
  const auto pool = MakePool();
  REQUIRE(pool->Prewarm(kSmall, 3).ok());
  std::vector<std::unique_ptr<Machine>> taken;
  for (int i = 0; i < 3; ++i) {
    auto shell = pool->Take(kSmall);
    REQUIRE(shell.ok());
    taken.push_back(*std::move(shell));
  }
  CHECK(pool->stats().hits == 3);
  const auto deadline = test::Deadline();
  while (pool->stats().waiting != 3 &&
         std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  CHECK(pool->stats().waiting == 3);
}

TEST_CASE("Shells of another configuration are not handed out") {
  const auto pool = MakePool();
  REQUIRE(pool->Prewarm(kSmall, 1).ok());
  const auto other =
      pool->Take({.memory_bytes = 2 * test::kSmallMemory, .vcpus = 2});
  REQUIRE(other.ok());
  CHECK((*other)->config().vcpus == 2);
  CHECK(pool->stats().hits == 0);
}

TEST_CASE("A pool never holds more than its bytes") {
  const uint64_t two = 2 * ShellCostBytes(kSmall);
  const auto pool = MakePool({.max_bytes = two});
  const absl::Status refused = pool->Prewarm(kSmall, 3);
  CHECK(refused.code() == absl::StatusCode::kResourceExhausted);
  CHECK_THAT(refused.ToString(), Catch::Contains(std::to_string(two)));
  CHECK(pool->stats().waiting == 0);
  std::vector<std::unique_ptr<Machine>> taken;
  for (int i = 0; i < 5; ++i) {
    auto shell = pool->Take(kSmall);
    REQUIRE(shell.ok());
    taken.push_back(*std::move(shell));
  }
  pool->WaitIdle();
  CHECK(pool->stats().waiting == 2);
}

TEST_CASE("A pool leaves descriptors to what runs") {
  // Of one guest after the other, each of which counts as demand.
  const test::LoweredLimit limit(RLIMIT_NOFILE, 240);
  const auto pool = MakePool();
  for (int i = 0; i < 30; ++i) {
    auto shell = pool->Take(kSmall);
    INFO(shell.status().ToString());
    REQUIRE(shell.ok());
    pool->Retire(*std::move(shell));
    pool->WaitIdle();
  }
  CHECK(pool->stats().waiting == 10);
  const absl::Status refused = pool->Prewarm(kSmall, 11);
  CHECK(refused.code() == absl::StatusCode::kResourceExhausted);
  CHECK_THAT(refused.ToString(), Catch::Contains("RLIMIT_NOFILE"));
}

TEST_CASE("A pool that nobody uses drains") {
  const auto pool = MakePool({.interval = std::chrono::milliseconds(20)});
  REQUIRE(pool->Prewarm(kSmall, 2).ok());
  const auto deadline = test::Deadline();
  while (pool->stats().waiting != 0 &&
         std::chrono::steady_clock::now() < deadline) {
    std::this_thread::yield();
  }
  CHECK(pool->stats().waiting == 0);
  CHECK(pool->stats().waiting_bytes == 0);
}

TEST_CASE("Prewarm ends though many intervals pass before it has all shells") {
  const auto pool = MakePool({.interval = std::chrono::milliseconds(1)});
  CHECK(pool->Prewarm(kSmall, 3).ok());
}

TEST_CASE("A pool refuses what no machine could be") {
  const auto pool = MakePool();
  CHECK(pool->Take({.memory_bytes = 0}).status().code() ==
        absl::StatusCode::kInvalidArgument);
  CHECK(pool->Prewarm({.vcpus = 33}, 1).code() ==
        absl::StatusCode::kInvalidArgument);
}

TEST_CASE("Takers and retirers may come from any thread at once") {
  const auto pool = MakePool();
  std::vector<std::thread> threads;
  threads.reserve(4);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&pool] {
      for (int i = 0; i < 5; ++i) {
        auto shell = pool->Take(kSmall);
        if (!shell.ok()) std::abort();
        pool->Retire(*std::move(shell));
      }
    });
  }
  for (auto& thread : threads) thread.join();
  pool->WaitIdle();
  const auto stats = pool->stats();
  CHECK(stats.hits + stats.misses == 20);
}

}  // namespace
}  // namespace catnap::vmm
