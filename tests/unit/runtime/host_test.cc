#include "catnap/host.h"

#include <atomic>
#include <catch2/catch.hpp>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "catnap/errors.h"
#include "support/host_fixture.h"
#include "support/temporary_directory.h"

namespace catnap {
namespace {

using namespace std::chrono_literals;
using testing::Shell;
using testing::TestHost;

TEST_CASE("A Host without a state directory leaves nothing behind") {
  const test::TemporaryDirectory directory;
  auto host = Host::Open(
      {.image_dir = std::filesystem::path(directory.path()) / "images"});
  INFO(host.status().ToString());
  REQUIRE(host.ok());
  CHECK((*host)->ListMicroVMs().empty());
  CHECK((*host)->ListImages().empty());
  CHECK((*host)->Close().ok());
  CHECK((*host)->Close().ok());
}

TEST_CASE("A state directory has one Host, and what a dead one left goes") {
  const test::TemporaryDirectory directory;
  const auto left =
      std::filesystem::path(directory.path()) / "s" / "vms" / "old";
  std::filesystem::create_directories(left);
  std::ofstream(left / "root.layer") << "x";
  auto host =
      Host::Open({.state_dir = std::filesystem::path(directory.path()) / "s"});
  REQUIRE(host.ok());
  CHECK_FALSE(std::filesystem::exists(left));
  const auto second =
      Host::Open({.state_dir = std::filesystem::path(directory.path()) / "s"});
  CHECK(second.status().code() == absl::StatusCode::kFailedPrecondition);
  CHECK(ReasonOf(second.status()) == ErrorReason::kStateDirInUse);
  host->reset();
  CHECK(Host::Open({.state_dir = std::filesystem::path(directory.path()) / "s"})
            .ok());
}

TEST_CASE("Host options are checked by name") {
  HostOptions options;
  std::string named;
  auto code = absl::StatusCode::kInvalidArgument;
  SECTION("threads") {
    options.io_threads = 65;
    named = "io_threads is 65";
  }
  SECTION("signal") {
    options.kick_signal = 9;
    named = "kick_signal is 9";
  }
  SECTION("quota") {
    options.memory_quota_bytes = 1;
    named = "memory_quota_bytes";
    code = absl::StatusCode::kUnimplemented;
  }
  SECTION("not a directory") {
    options.state_dir = "/dev/null/state";
    named = "/dev/null";
    code = absl::StatusCode::kFailedPrecondition;
  }
  const auto host = Host::Open(options);
  CHECK(host.status().code() == code);
  CHECK_THAT(host.status().ToString(), Catch::Contains(named));
}

TEST_CASE("Run options are checked by name, before anything is made") {
  TestHost host;
  RunOptions options;
  std::string named;
  auto code = absl::StatusCode::kUnimplemented;
  SECTION("id") {
    options.id = "a/b";
    named = "id is \"a/b\"";
    code = absl::StatusCode::kInvalidArgument;
  }
  SECTION("disks") {
    options.disks.resize(3);
    named = "extra_disk_slots";
    code = absl::StatusCode::kInvalidArgument;
  }
  SECTION("idle") {
    options.idle_policy = IdlePolicy{.max_idle_duration = 0ms};
    named = "idle_policy.max_idle_duration is 0 ms";
    code = absl::StatusCode::kInvalidArgument;
  }
  SECTION("sleep") {
    options.idle_policy = IdlePolicy{.suspended_duration = -1ms};
    named = "idle_policy.suspended_duration is -1 ms";
    code = absl::StatusCode::kInvalidArgument;
  }
  SECTION("cpu threshold") {
    options.idle_policy = IdlePolicy{};
    options.idle_policy->activity.guest_cpu_threshold = 0;
    named = "guest_cpu_threshold is 0";
    code = absl::StatusCode::kInvalidArgument;
  }
  SECTION("lifetime") {
    options.max_lifetime = 0ms;
    named = "max_lifetime is 0 ms";
    code = absl::StatusCode::kInvalidArgument;
  }
  SECTION("cpu") {
    options.cpu_limit = 0.5;
    named = "cpu_limit";
  }
  const auto vm = MicroVM::Run(host.host(), host.image(), options);
  CHECK(vm.status().code() == code);
  CHECK_THAT(vm.status().ToString(), Catch::Contains(named));
  CHECK(host.host().ListMicroVMs().empty());
  CHECK(MicroVM::Run(host.host(), Image()).status().code() ==
        absl::StatusCode::kInvalidArgument);
}

TEST_CASE("Machines are listed, found and told apart") {
  TestHost host;
  const MicroVM a = host.Run({.id = "a", .labels = {{"team", "red"}}});
  const MicroVM b = host.Run({.id = "b"});
  CHECK(host.host().ListMicroVMs().size() == 2);
  CHECK(host.host().ListMicroVMs({.labels = {{"team", "red"}}}).size() == 1);
  CHECK(host.host().ListMicroVMs({.image = "other"}).empty());
  CHECK(*host.host().GetMicroVM("a") == a);
  CHECK_FALSE(a == b);
  CHECK(std::hash<MicroVM>()(a) == std::hash<MicroVM>()(MicroVM(a)));
  CHECK(host.host().GetMicroVM("c").status().code() ==
        absl::StatusCode::kNotFound);

  const auto taken = MicroVM::Run(host.host(), host.image(), {.id = "a"});
  CHECK(taken.status().code() == absl::StatusCode::kAlreadyExists);
  const auto same = MicroVM::Run(host.host(), host.image(),
                                 {.id = "a", .if_exists = IfExists::kReturn});
  REQUIRE(same.ok());
  CHECK(*same == a);
  // What a generated id looks like is nobody's concern, but it is unique.
  CHECK_FALSE(host.Run() == host.Run());
}

TEST_CASE("Callers at once with one id get one machine") {
  TestHost host;
  std::vector<std::thread> callers;
  std::vector<MicroVM> vms(8);
  callers.reserve(vms.size());
  for (MicroVM& vm : vms) {
    callers.emplace_back([&host, &vm] {
      auto ran = MicroVM::Run(host.host(), host.image(),
                              {.id = "one", .if_exists = IfExists::kReturn});
      if (ran.ok()) vm = *std::move(ran);
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (const MicroVM& vm : vms) CHECK(vm.id() == "one");
  CHECK(host.host().ListMicroVMs().size() == 1);
}

TEST_CASE("OnRelease ends a machine with its last handle") {
  TestHost host;
  {
    MicroVM vm = host.Run({.id = "a", .on_release = OnRelease::kTerminate});
    const MicroVM copy = vm;
    vm = MicroVM();
    CHECK(copy.state() == MicroVMState::kRunning);
  }
  const auto vm = host.host().GetMicroVM("a");
  REQUIRE(vm.ok());
  CHECK(vm->WaitForState(MicroVMState::kTerminated, 10s).ok());
  const MicroVM kept = host.Run({.id = "b"});
  CHECK(kept.state() == MicroVMState::kRunning);
}

TEST_CASE("Closing a Host ends calls of other threads, and handles stay") {
  TestHost host;
  constexpr int kThreads = 8;
  const std::vector<MicroVM> vms = {host.Run(), host.Run(), host.Run()};
  std::atomic<int> running{0};
  std::atomic<int> closed{0};
  std::vector<std::thread> threads;
  threads.reserve(kThreads);
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      const MicroVM& vm = vms[static_cast<size_t>(i) % vms.size()];
      for (;;) {
        ++running;
        const auto result =
            vm.Exec(Shell(i % 2 == 0 ? "sleep 1000" : "echo x"));
        if (result.ok()) continue;
        if (ReasonOf(result.status()) == ErrorReason::kHostClosed) ++closed;
        return;
      }
    });
  }
  auto process = vms[0].Start(Shell("sleep 1000"));
  REQUIRE(process.ok());
  auto forward = vms[1].ForwardPort({}, 1);
  REQUIRE(forward.ok());
  while (running < kThreads * 3) std::this_thread::sleep_for(1ms);
  auto left = MicroVMState::kSuspended;
  SECTION("that ends them") {
    CHECK(host.host().Close({.running = AtClose::kTerminate}).ok());
    left = MicroVMState::kTerminated;
  }
  SECTION("that suspends them") { CHECK(host.host().Close().ok()); }
  SECTION("by its destructor") { host.Release(); }
  for (std::thread& thread : threads) thread.join();
  CHECK(closed == kThreads);
  CHECK(vms[0].state() == left);
  CHECK_THAT(vms[0].state_reason(), Catch::Contains("closed"));
  const auto late = vms[0].ReadFile("/etc/hostname");
  CHECK(late.status().code() == absl::StatusCode::kCancelled);
  CHECK(ReasonOf(late.status()) == ErrorReason::kHostClosed);
  CHECK_FALSE((*process)->Wait().ok());
  CHECK_FALSE((*process)->Write("x").ok());
}

TEST_CASE("A Host closes while machines start") {
  for (int round = 0; round < 5; ++round) {
    TestHost host;
    std::atomic<int> started{0};
    std::vector<std::thread> threads;
    threads.reserve(4);
    for (int i = 0; i < 4; ++i) {
      threads.emplace_back([&] {
        while (MicroVM::Run(host.host(), host.image()).ok()) ++started;
      });
    }
    while (started < 4) std::this_thread::sleep_for(1ms);
    CHECK(host.host().Close({.running = AtClose::kTerminate}).ok());
    for (std::thread& thread : threads) thread.join();
  }
}

TEST_CASE("A callback may close the Host") {
  TestHost host;
  const MicroVM vm = host.Run();
  absl::Status closed = absl::UnknownError("not called");
  Command command = Shell("echo x; sleep 1000");
  command.on_output = [&](Stream /*stream*/, std::string_view /*text*/) {
    closed = host.host().Close({.running = AtClose::kTerminate});
  };
  const auto result = vm.Exec(command);
  CHECK(ReasonOf(result.status()) == ErrorReason::kHostClosed);
  CHECK(closed.ok());
}

}  // namespace
}  // namespace catnap
