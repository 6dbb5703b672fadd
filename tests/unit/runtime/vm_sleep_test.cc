#include <array>
#include <atomic>
#include <catch2/catch.hpp>
#include <chrono>
#include <filesystem>
#include <future>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "catnap/async.h"
#include "catnap/errors.h"
#include "catnap/microvm.h"
#include "support/host_fixture.h"
#include "support/tcp.h"

namespace catnap {
namespace {

using namespace std::chrono_literals;
using testing::Shell;
using testing::TestHost;

bool IsAsleep(const MicroVM& vm) {
  return vm.state() == MicroVMState::kSuspended;
}

TEST_CASE("A suspended machine keeps what it had, and needs Resume()") {
  TestHost host;
  const MicroVM vm = host.Run({.id = "a"});
  host.guest().memory().Set("counted to 7");
  auto process = vm.Start(Shell("read x; echo got $x"));
  REQUIRE(process.ok());
  CHECK(vm.Resume().ok());  // It runs: nothing to do.
  REQUIRE(vm.Suspend().ok());
  CHECK(vm.state() == MicroVMState::kSuspended);
  CHECK_THAT(vm.state_reason(), Catch::Contains("Suspend()"));
  CHECK(vm.Suspend().ok());
  CHECK(host.faults().suspends == 1);
  CHECK(std::filesystem::exists(host.path() / "state/vms/a/s1/memory"));

  for (const absl::Status& refused :
       {vm.Exec(Shell("true")).status(), vm.ReadFile("/etc/hostname").status(),
        vm.Connect(1).status(), vm.ListProcesses().status(),
        (*process)->Write("x").status(), (*process)->Signal(10),
        vm.MakeDirectory("/tmp/x")}) {
    CHECK(refused.code() == absl::StatusCode::kFailedPrecondition);
    CHECK(ReasonOf(refused) == ErrorReason::kVmSuspended);
  }
  CHECK(vm.state() == MicroVMState::kSuspended);

  REQUIRE(vm.Resume().ok());
  CHECK(vm.state() == MicroVMState::kRunning);
  CHECK(vm.state_reason().empty());
  CHECK(host.guest().memory().Get() == "counted to 7");
  // The stream goes on.
  CHECK((*process)->Write("line\n").ok());
  const auto result = (*process)->Wait({.timeout = 20s});
  REQUIRE(result.ok());
  CHECK(result->stdout_data == "got line\n");

  // The next one takes its place.
  REQUIRE(vm.Suspend().ok());
  CHECK_FALSE(std::filesystem::exists(host.path() / "state/vms/a/s1"));
  CHECK(std::filesystem::exists(host.path() / "state/vms/a/s2"));
  const Usage usage = vm.GetUsage();
  CHECK(usage.snapshot_bytes_written > usage.snapshot_bytes_read);
  CHECK(usage.snapshot_bytes_read > 0);
  CHECK(usage.stored_bytes > 4096);
  CHECK(vm.Terminate().ok());
  CHECK_FALSE(std::filesystem::exists(host.path() / "state/vms/a"));
  CHECK(ReasonOf(vm.Resume()) == ErrorReason::kVmTerminated);
  CHECK(ReasonOf(vm.Suspend()) == ErrorReason::kVmTerminated);
}

TEST_CASE("A suspend that fails leaves the machine running") {
  TestHost host;
  const MicroVM vm = host.Run({.id = "a"});
  const auto vms = host.path() / "state/vms/a";
  REQUIRE(vm.Suspend().ok());
  REQUIRE(vm.Resume().ok());
  SECTION("for want of disk") {
    host.faults().suspend_fails = true;
    CHECK(vm.Suspend().code() == absl::StatusCode::kResourceExhausted);
  }
  SECTION("by a timeout") {
    host.faults().delay_ms = 60'000;
    CHECK(vm.Suspend({.timeout = 20ms}).code() ==
          absl::StatusCode::kDeadlineExceeded);
  }
  SECTION("cancelled") {
    host.faults().delay_ms = 60'000;
    std::stop_source stop;
    auto suspend = std::async(std::launch::async, [&] {
      return vm.Suspend({.stop = stop.get_token()});
    });
    CHECK(vm.WaitForState(MicroVMState::kSuspending, 20s).ok());
    stop.request_stop();
    CHECK(suspend.get().code() == absl::StatusCode::kCancelled);
  }
  SECTION("where it cannot be published") {
    // The name of the next snapshot is taken.
    std::filesystem::create_directories(vms / "s2" / "x");
    CHECK_FALSE(vm.Suspend().ok());
  }
  CHECK(vm.state() == MicroVMState::kRunning);
  CHECK(std::filesystem::exists(vms / "s1" / "memory"));
  CHECK_FALSE(std::filesystem::exists(vms / ".new-s2"));
  host.faults().delay_ms = 0;
  host.faults().suspend_fails = false;
  CHECK(vm.Exec(Shell("true")).ok());
  CHECK(vm.Suspend().ok());
  CHECK(IsAsleep(vm));
}

TEST_CASE("A resume that fails leaves the machine asleep") {
  TestHost host;
  const MicroVM vm = host.Run({.id = "a", .idle_policy = IdlePolicy{}});
  REQUIRE(vm.Suspend().ok());
  SECTION("for damage") {
    host.faults().resume_fails = true;
    CHECK(vm.Resume().code() == absl::StatusCode::kDataLoss);
    CHECK(vm.Exec(Shell("true")).status().code() ==
          absl::StatusCode::kDataLoss);
  }
  SECTION("by a timeout") {
    host.faults().delay_ms = 60'000;
    CHECK(vm.Resume({.timeout = 20ms}).code() ==
          absl::StatusCode::kDeadlineExceeded);
    CHECK(vm.Exec(Shell("true"), {.timeout = 20ms}).status().code() ==
          absl::StatusCode::kDeadlineExceeded);
  }
  CHECK(IsAsleep(vm));
  CHECK_FALSE(std::filesystem::exists(host.path() / "state/vms/a/awake-1"));
  host.faults().resume_fails = false;
  host.faults().delay_ms = 0;
  CHECK(vm.Resume().ok());
  CHECK(std::filesystem::exists(host.path() / "state/vms/a/awake-1"));
}

TEST_CASE("With an IdlePolicy every use wakes, however it fell asleep") {
  TestHost host;
  const MicroVM vm =
      host.Run({.idle_policy = IdlePolicy{.max_idle_duration = 1h}});
  const auto asleep = [&vm] {
    REQUIRE(vm.Suspend().ok());
    REQUIRE(IsAsleep(vm));
  };
  const auto woken = [&vm] { CHECK(vm.state() == MicroVMState::kRunning); };
  asleep();
  CHECK(vm.Exec(Shell("true")).ok());
  woken();
  asleep();
  CHECK(vm.Stat("/").ok());
  woken();
  asleep();
  CHECK(vm.Connect(1).status().code() == absl::StatusCode::kUnavailable);
  woken();
  auto process = vm.Start(Shell("read x; echo $x; sleep 1000"));
  REQUIRE(process.ok());
  asleep();
  CHECK((*process)->Write("hello\n").ok());
  woken();
  std::array<char, 64> buffer{};
  const auto got = (*process)->Read(Stream::kStdout, buffer, {.timeout = 20s});
  REQUIRE(got.ok());
  CHECK(std::string(buffer.data(), *got) == "hello\n");
  asleep();
  CHECK((*process)->Signal(9).ok());
  CHECK(vm.WaitForState(MicroVMState::kRunning, 20s).ok());
  CHECK((*process)->Wait({.timeout = 20s})->signal == 9);
  asleep();
  std::promise<bool> ran;
  async::Exec(vm, Shell("true"), {},
              [&](const absl::StatusOr<ExecResult>& result) {
                ran.set_value(result.ok());
              });
  CHECK(ran.get_future().get());
  woken();
  // What is only set does not.
  asleep();
  const KeepAlive hold = vm.Hold("for no reason");
  CHECK(vm.SetEgress(NetworkPolicy::PublicInternet()).ok());
  CHECK(vm.SetService(1234, nullptr).ok());
  CHECK(IsAsleep(vm));
  CHECK(vm.SetIdlePolicy(IdlePolicy{.auto_resume_enabled = false}).ok());
  CHECK(ReasonOf(vm.Exec(Shell("true")).status()) == ErrorReason::kVmSuspended);
}

TEST_CASE("Calls at once share one suspend and one resume") {
  TestHost host;
  const MicroVM vm = host.Run();
  host.faults().delay_ms = 50;
  const auto at_once = [](auto call) {
    std::vector<std::future<absl::Status>> calls;
    calls.reserve(8);
    for (int i = 0; i < 8; ++i) {
      calls.push_back(std::async(std::launch::async, call));
    }
    for (auto& done : calls) CHECK(done.get().ok());
  };
  at_once([&vm] { return vm.Suspend(); });
  CHECK(host.faults().suspends == 1);
  CHECK(IsAsleep(vm));
  at_once([&vm] { return vm.Resume(); });
  CHECK(host.faults().resumes == 1);
  CHECK(vm.state() == MicroVMState::kRunning);
}

TEST_CASE("A use cancels a suspend that it may undo") {
  TestHost host;
  const MicroVM vm = host.Run({.idle_policy = IdlePolicy{}});
  host.faults().delay_ms = 60'000;
  auto suspend = std::async(std::launch::async, [&vm] { return vm.Suspend(); });
  CHECK(vm.WaitForState(MicroVMState::kSuspending, 20s).ok());
  SECTION("a command") { CHECK(vm.Exec(Shell("true")).ok()); }
  SECTION("Resume()") { CHECK(vm.Resume().ok()); }
  const absl::Status status = suspend.get();
  CHECK(status.code() == absl::StatusCode::kCancelled);
  CHECK_THAT(status.ToString(), Catch::Contains("was used"));
  CHECK(vm.state() == MicroVMState::kRunning);
  host.faults().delay_ms = 0;  // Of Close().
}

TEST_CASE("A suspend that stalls holds up no command of another machine") {
  TestHost host;
  const MicroVM stalled = host.Run({.id = "stalled"});
  const MicroVM other = host.Run({.id = "other"});
  host.faults().delay_ms = 60'000;
  std::stop_source stop;
  auto suspend = std::async(std::launch::async, [&] {
    return stalled.Suspend({.stop = stop.get_token()});
  });
  CHECK(stalled.WaitForState(MicroVMState::kSuspending, 20s).ok());
  const auto result = other.Exec(Shell("echo here"));
  // It was not what the command waited for.
  CHECK(stalled.state() == MicroVMState::kSuspending);
  stop.request_stop();
  CHECK(absl::IsCancelled(suspend.get()));
  host.faults().delay_ms = 0;
  REQUIRE(result.ok());
  CHECK(result->stdout_data == "here\n");
  CHECK(stalled.state() == MicroVMState::kRunning);
}

TEST_CASE("Without auto-resume a use waits for the suspend, and is refused") {
  TestHost host;
  const MicroVM vm = host.Run();
  host.faults().delay_ms = 200;
  auto suspend = std::async(std::launch::async, [&vm] { return vm.Suspend(); });
  CHECK(vm.WaitForState(MicroVMState::kSuspending, 20s).ok());
  CHECK(ReasonOf(vm.Exec(Shell("true")).status()) == ErrorReason::kVmSuspended);
  CHECK(suspend.get().ok());
}

TEST_CASE("Terminate ends a machine that falls asleep, sleeps or wakes") {
  TestHost host;
  const MicroVM vm = host.Run({.id = "a"});
  std::future<absl::Status> move;
  auto expected = absl::StatusCode::kFailedPrecondition;
  SECTION("falls asleep") {
    host.faults().delay_ms = 60'000;
    move = std::async(std::launch::async, [&vm] { return vm.Suspend(); });
    CHECK(vm.WaitForState(MicroVMState::kSuspending, 20s).ok());
  }
  SECTION("sleeps") {
    REQUIRE(vm.Suspend().ok());
    move = std::async(std::launch::async, [] { return absl::OkStatus(); });
    expected = absl::StatusCode::kOk;
  }
  SECTION("wakes") {
    REQUIRE(vm.Suspend().ok());
    host.faults().delay_ms = 60'000;
    move = std::async(std::launch::async, [&vm] { return vm.Resume(); });
    while (host.faults().resumes == 0) std::this_thread::sleep_for(1ms);
    expected = absl::StatusCode::kCancelled;
  }
  CHECK(vm.Terminate().ok());
  CHECK(vm.state() == MicroVMState::kTerminated);
  const absl::StatusCode code = move.get().code();
  CHECK((code == expected || code == absl::StatusCode::kUnavailable));
  CHECK_FALSE(std::filesystem::exists(host.path() / "state/vms/a"));
}

TEST_CASE("WaitForState misses no state, however short") {
  TestHost host;
  const MicroVM vm = host.Run();
  for (int i = 0; i < 20; ++i) {
    auto asleep = std::async(std::launch::async, [&vm] {
      return vm.WaitForState(MicroVMState::kSuspended, 20s);
    });
    auto falls = std::async(std::launch::async, [&vm] {
      return vm.WaitForState(MicroVMState::kSuspending, 20s);
    });
    // The waiters may come late: until they are answered it goes on.
    while (asleep.wait_for(0s) != std::future_status::ready ||
           falls.wait_for(0s) != std::future_status::ready) {
      REQUIRE(vm.Suspend().ok());
      REQUIRE(vm.Resume().ok());
    }
    CHECK(*asleep.get() == MicroVMState::kSuspended);
    CHECK(*falls.get() == MicroVMState::kSuspending);
  }
  CHECK(vm.WaitForState(MicroVMState::kSuspended, 10ms).status().code() ==
        absl::StatusCode::kDeadlineExceeded);
}

TEST_CASE("Bytes and connections of a forward wake its machine") {
  TestHost host;
  const MicroVM vm = host.Run({.idle_policy = IdlePolicy{}});
  // The guest's ports are this machine's.
  const testing::TcpServer guest;
  auto forward = vm.ForwardPort({}, guest.port());
  REQUIRE(forward.ok());
  REQUIRE(vm.Suspend().ok());
  const base::UniqueFd client = testing::ConnectTcp(forward->address().port);
  REQUIRE(client.valid());
  CHECK(vm.WaitForState(MicroVMState::kRunning, 20s).ok());
  CHECK(testing::SendAll(client.get(), "one"));
  CHECK(testing::ReceiveUpTo(client.get(), 3) == "one");
  REQUIRE(vm.Suspend().ok());
  CHECK(testing::SendAll(client.get(), "two"));
  CHECK(testing::ReceiveUpTo(client.get(), 3) == "two");
  CHECK(vm.WaitForState(MicroVMState::kRunning, 20s).ok());

  REQUIRE(vm.SetIdlePolicy(std::nullopt).ok());
  REQUIRE(vm.Suspend().ok());
  CHECK(testing::SendAll(client.get(), "three"));
  std::this_thread::sleep_for(50ms);
  CHECK(IsAsleep(vm));
  const base::UniqueFd refused = testing::ConnectTcp(forward->address().port);
  CHECK(testing::ReceiveResult(refused.get()) < 0);
  REQUIRE(vm.Resume().ok());
  CHECK(testing::ReceiveUpTo(client.get(), 5) == "three");
}

TEST_CASE("Suspends, resumes, uses and ends from many threads") {
  TestHost host;
  const MicroVM vm = host.Run({.idle_policy = IdlePolicy{}});
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  const auto loop = [&](auto call) {
    threads.emplace_back([&, call] {
      while (!stop) {
        const absl::Status status = call();
        if (!status.ok() && !absl::IsCancelled(status)) {
          if (ReasonOf(status) != ErrorReason::kVmTerminated) ++wrong;
          return;
        }
      }
    });
  };
  for (int i = 0; i < 2; ++i) {
    loop([&vm] { return vm.Suspend(); });
    loop([&vm] { return vm.Resume(); });
    // One that was under way when it fell asleep waits.
    loop([&vm] {
      const auto status = vm.Exec(Shell("true"), {.timeout = 1s}).status();
      return absl::IsDeadlineExceeded(status) ? absl::OkStatus() : status;
    });
  }
  loop([&vm] { return vm.SetIdlePolicy(IdlePolicy{}); });
  std::this_thread::sleep_for(500ms);
  SECTION("terminated") { CHECK(vm.Terminate().ok()); }
  SECTION("closed") { CHECK(host.host().Close().ok()); }
  SECTION("left alone") {}
  stop = true;
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
}

}  // namespace
}  // namespace catnap
