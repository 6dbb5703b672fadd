#include <signal.h>

#include <catch2/catch.hpp>
#include <chrono>
#include <filesystem>
#include <future>
#include <string>
#include <thread>

#include "catnap/errors.h"
#include "catnap/microvm.h"
#include "support/host_fixture.h"
#include "support/tcp.h"

namespace catnap {
namespace {

using namespace std::chrono_literals;
using testing::Shell;
using testing::TestHost;

// Short, and long for a busy machine.
constexpr auto kIdle = 100ms;
constexpr auto kMuchLater = 20s;

IdlePolicy Policy() { return {.max_idle_duration = kIdle}; }

bool FallsAsleep(const MicroVM& vm) {
  return vm.WaitForState(MicroVMState::kSuspended, kMuchLater).ok();
}
bool StaysAwake(const MicroVM& vm) {
  return absl::IsDeadlineExceeded(
      vm.WaitForState(MicroVMState::kSuspended, 5 * kIdle).status());
}

TEST_CASE("An idle machine falls asleep, not before its time, and wakes") {
  TestHost host;
  const MicroVM vm = host.Run({.idle_policy = Policy()});
  const auto start = std::chrono::steady_clock::now();
  CHECK(FallsAsleep(vm));
  CHECK(std::chrono::steady_clock::now() - start > kIdle / 2);
  CHECK_THAT(vm.state_reason(), Catch::Contains("idle for 100 ms"));
  CHECK(vm.Exec(Shell("true")).ok());
  CHECK(FallsAsleep(vm));
  // None at all: it stays as it is.
  CHECK(vm.Exec(Shell("true")).ok());
  CHECK(vm.SetIdlePolicy(std::nullopt).ok());
  REQUIRE(vm.Resume().ok());
  CHECK(StaysAwake(vm));
  // Idle it was all the time.
  CHECK(vm.SetIdlePolicy(Policy()).ok());
  CHECK(FallsAsleep(vm));
  CHECK(vm.SetIdlePolicy(IdlePolicy{.max_idle_duration = 0ms}).code() ==
        absl::StatusCode::kInvalidArgument);
}

TEST_CASE("What is used stays awake, as long as its source counts") {
  TestHost host;
  IdlePolicy policy = Policy();
  policy.activity.outbound = false;
  SECTION("a command") {
    const MicroVM vm = host.Run({.idle_policy = policy});
    CHECK(vm.Exec(Shell("sleep 0.6")).ok());
    CHECK(vm.GetUsage().suspended == 0ms);
    CHECK(FallsAsleep(vm));
  }
  SECTION("a command that does not count") {
    const MicroVM vm = host.Run({.idle_policy = policy});
    Command command = Shell("sleep 1000");
    command.counts_as_activity = false;
    const auto process = vm.Start(command);
    REQUIRE(process.ok());
    CHECK(FallsAsleep(vm));
  }
  SECTION("a source that does not count") {
    policy.activity.exec = false;
    const MicroVM vm = host.Run({.idle_policy = policy});
    const auto process = vm.Start(Shell("sleep 1000"));
    REQUIRE(process.ok());
    CHECK(FallsAsleep(vm));
  }
  SECTION("bytes of a forward, not its silence") {
    const testing::TcpServer server;
    const MicroVM vm = host.Run({.idle_policy = policy});
    auto forward = vm.ForwardPort({}, server.port());
    REQUIRE(forward.ok());
    const auto client = testing::ConnectTcp(forward->address().port);
    for (int i = 0; i < 20; ++i) {
      REQUIRE(testing::SendAll(client.get(), "x"));
      REQUIRE(testing::ReceiveUpTo(client.get(), 1) == "x");
      std::this_thread::sleep_for(kIdle / 5);
    }
    CHECK(vm.GetUsage().suspended == 0ms);
    CHECK(FallsAsleep(vm));
  }
  SECTION("a hold") {
    const MicroVM vm = host.Run({.idle_policy = policy});
    {
      KeepAlive hold = vm.Hold("a test");
      KeepAlive moved = std::move(hold);
      CHECK(StaysAwake(vm));
      CHECK_THAT(vm.state_reason(), Catch::Contains("a test"));
      // It blocks no explicit one, and does not wake.
      CHECK(vm.Suspend().ok());
      std::this_thread::sleep_for(kIdle);
      CHECK(vm.state() == MicroVMState::kSuspended);
      CHECK(vm.Resume().ok());
      CHECK(StaysAwake(vm));
    }
    CHECK(FallsAsleep(vm));
  }
  SECTION("frames that leave") {
    policy.activity.outbound = true;
    const MicroVM vm = host.Run({.idle_policy = policy});
    for (int i = 0; i < 30; ++i) {
      host.guest().SendFrame();
      std::this_thread::sleep_for(kIdle / 5);
    }
    CHECK(vm.state() == MicroVMState::kRunning);
    CHECK(FallsAsleep(vm));
  }
}

TEST_CASE("A machine ends when it slept or lived too long") {
  TestHost host;
  RunOptions options{.id = "a", .idle_policy = Policy()};
  auto reason = TerminationReason::kSuspendedTooLong;
  SECTION("asleep") { options.idle_policy->suspended_duration = kIdle; }
  SECTION("instead of sleep") { options.idle_policy->suspended_duration = 0ms; }
  SECTION("lifetime") {
    options.idle_policy.reset();
    options.max_lifetime = 2 * kIdle;
    reason = TerminationReason::kMaxLifetime;
  }
  const MicroVM vm = host.Run(options);
  CHECK(vm.WaitForState(MicroVMState::kTerminated, kMuchLater).ok());
  CHECK(vm.termination_reason() == reason);
  if (options.idle_policy.has_value()) {
    const int suspends =
        *options.idle_policy->suspended_duration == 0ms ? 0 : 1;
    CHECK(host.faults().suspends == suspends);
  }
  CHECK_FALSE(std::filesystem::exists(host.path() / "state/vms/a"));
}

TEST_CASE("A suspend when idle that fails is told, and tried again") {
  TestHost host;
  host.faults().suspend_fails = true;
  const MicroVM vm = host.Run({.idle_policy = Policy()});
  while (host.faults().suspends < 2) std::this_thread::sleep_for(5ms);
  // Each new try begins without a reason.
  const auto deadline = std::chrono::steady_clock::now() + 20s;
  std::string reason;
  while (reason.empty() && std::chrono::steady_clock::now() < deadline) {
    reason = vm.state_reason();
  }
  CHECK_THAT(reason, Catch::Contains("disk full"));
  host.faults().suspend_fails = false;
  CHECK(FallsAsleep(vm));
}

// Whether `count` copies were settled, and a while later no more.
bool AreSettled(const testing::GuestFaults& faults, int count) {
  const auto deadline = std::chrono::steady_clock::now() + kMuchLater;
  while (faults.settled < count &&
         std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(1ms);
  }
  std::this_thread::sleep_for(1s);
  return faults.settles == count && faults.settled == count;
}

TEST_CASE("A copy that rests gives back what it need not have, once") {
  TestHost host;
  SECTION("each of them") {
    const MicroVM vm = host.Run({});
    CHECK(AreSettled(host.faults(), 1));
    const auto forks = vm.Fork(2);
    REQUIRE(forks.ok());
    CHECK(AreSettled(host.faults(), 3));
  }
  SECTION("not while it is in use") {
    const MicroVM vm = host.Run({});
    {
      const auto process = vm.Start(Shell("sleep 1000"));
      REQUIRE(process.ok());
      std::this_thread::sleep_for(1500ms);
      CHECK(host.faults().settles == 0);
      CHECK((*process)->Signal(SIGKILL).ok());
      CHECK((*process)->Wait().ok());
    }
    CHECK(AreSettled(host.faults(), 1));
  }
  SECTION("not once it slept") {
    const MicroVM vm = host.Run({});
    REQUIRE(vm.Suspend().ok());
    REQUIRE(vm.Resume().ok());
    CHECK(AreSettled(host.faults(), 0));
  }
  SECTION("to its end, when the machine ends meanwhile") {
    host.faults().delay_ms = 500;
    const MicroVM vm = host.Run({});
    while (host.faults().settles == 0) std::this_thread::sleep_for(1ms);
    REQUIRE(vm.Terminate().ok());
    CHECK(host.faults().settled == 1);
  }
}

TEST_CASE("OnRelease::kSuspend suspends when the last handle goes") {
  TestHost host;
  { host.Run({.id = "a", .on_release = OnRelease::kSuspend}); }
  while (host.faults().suspends == 0) std::this_thread::sleep_for(1ms);
  // The next handle finds it asleep; it releases it again, which changes
  // nothing.
  CHECK(FallsAsleep(host.Get("a")));
}

}  // namespace
}  // namespace catnap
