#include <catch2/catch.hpp>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

#include "catnap/errors.h"
#include "catnap/host.h"
#include "runtime/vm_record.h"
#include "runtime/vm_store.h"
#include "support/host_fixture.h"

namespace catnap {
namespace {

using namespace std::chrono_literals;
using testing::Shell;
using testing::TestHost;

TEST_CASE("A suspended machine is there for the next Host") {
  TestHost host;
  {
    const MicroVM vm = host.Run({.id = "a",
                                 .idle_policy = IdlePolicy{},
                                 .env = {{"NAME", "value"}},
                                 .labels = {{"team", "red"}}});
    host.guest().memory().Set("counted to 7");
    host.guest().SetDisk("written");
    REQUIRE(vm.Suspend().ok());
    CHECK(vm.SetEgress(NetworkPolicy::PublicInternet()).ok());
  }
  const int starts = host.faults().starts;
  SECTION("after Close()") { host.Restart(); }
  SECTION("after a crash") { host.Crash(); }
  REQUIRE(host.host().ListMicroVMs({.labels = {{"team", "red"}}}).size() == 1);
  const MicroVM vm = host.Get("a");
  CHECK(vm.state() == MicroVMState::kSuspended);
  CHECK_THAT(vm.state_reason(), Catch::Contains("Suspend()"));
  CHECK(host.faults().starts == starts);
  CHECK(vm.GetUsage().snapshot_bytes_written > 0);
  // It wakes by itself, as its policy is stored.
  const auto result = vm.Exec(Shell("echo $NAME"));
  REQUIRE(result.ok());
  CHECK(result->stdout_data == "value\n");
  CHECK(host.guest().memory().Get() == "counted to 7");
  CHECK(host.guest().disk() == "written");
  CHECK(vm.Suspend().ok());
  CHECK(vm.Terminate().ok());
  CHECK_FALSE(std::filesystem::exists(host.path() / "state/vms/a"));
}

TEST_CASE("Close() suspends what runs, and the next Host wakes it") {
  TestHost host;
  const MicroVM before = host.Run({.id = "a"});
  const MicroVM gone =
      host.Run({.id = "b", .durability = Durability::kEphemeral});
  host.Restart();
  CHECK(before.state() == MicroVMState::kSuspended);
  CHECK(ReasonOf(before.Resume()) == ErrorReason::kHostClosed);
  CHECK(gone.state() == MicroVMState::kTerminated);
  CHECK(host.host().ListMicroVMs().size() == 1);
  const MicroVM vm = host.Get("a");
  CHECK_THAT(vm.state_reason(), Catch::Contains("Host was closed"));
  CHECK(ReasonOf(vm.Exec(Shell("true")).status()) == ErrorReason::kVmSuspended);
  CHECK(vm.Resume().ok());
  CHECK(vm.Exec(Shell("true")).ok());
}

TEST_CASE("Close() says what it could not suspend, and leaves its disk") {
  TestHost host;
  host.Run({.id = "a"});
  host.guest().SetDisk("written");
  host.faults().suspend_fails = true;
  const absl::Status closed = host.host().Close();
  CHECK(closed.code() == absl::StatusCode::kResourceExhausted);
  CHECK_THAT(closed.ToString(), Catch::Contains("MicroVM a"));
  host.faults().suspend_fails = false;
  host.Release();
  host.Open();
  const MicroVM vm = host.Get("a");
  CHECK(vm.Exec(Shell("true")).ok());
  CHECK(host.guest().disk() == "written");
  CHECK(host.guest().memory().Get() == "fresh");
}

TEST_CASE("What ran at a crash is as AfterCrash says") {
  TestHost host;
  RunOptions options{.id = "a"};
  std::string memory = "fresh";
  std::string disk = "flushed";
  SECTION("kReboot") {}
  SECTION("kLastCheckpoint") {
    options.after_crash = AfterCrash::kLastCheckpoint;
    memory = "at the suspend";
    disk = "at the suspend";
  }
  const MicroVM before = host.Run(options);
  host.guest().memory().Set("at the suspend");
  host.guest().SetDisk("at the suspend");
  REQUIRE(before.Suspend().ok());
  REQUIRE(before.Resume().ok());
  host.guest().SetDisk("flushed");
  for (int i = 0; i < 2; ++i) {  // And the same again.
    host.Crash();
    const MicroVM vm = host.Get("a");
    CHECK(vm.state() == MicroVMState::kSuspended);
    CHECK_THAT(vm.state_reason(), Catch::Contains("while it ran"));
    // Without an IdlePolicy, too.
    CHECK(vm.Exec(Shell("true")).ok());
    CHECK(host.guest().memory().Get() == memory);
    CHECK(host.guest().disk() == disk);
  }
  // From here on it sleeps and wakes as ever.
  const MicroVM vm = host.Get("a");
  host.guest().memory().Set("new");
  REQUIRE(vm.Suspend().ok());
  host.Crash();
  REQUIRE(host.Get("a").Resume().ok());
  CHECK(host.guest().memory().Get() == "new");
}

TEST_CASE("kTerminate ends at a crash, and a first run that crashed reboots") {
  TestHost host;
  host.Run({.id = "a", .after_crash = AfterCrash::kTerminate});
  host.Run({.id = "b", .after_crash = AfterCrash::kLastCheckpoint});
  host.guest().SetDisk("flushed");
  host.Run({.id = "c", .durability = Durability::kEphemeral});
  host.Crash();
  const MicroVM a = host.Get("a");
  CHECK(a.state() == MicroVMState::kTerminated);
  CHECK(a.termination_reason() == TerminationReason::kHostProcessDied);
  CHECK_FALSE(std::filesystem::exists(host.path() / "state/vms/a"));
  CHECK(host.Get("b").Exec(Shell("true")).ok());
  CHECK(host.guest().disk() == "flushed");
  CHECK(host.host().GetMicroVM("c").status().code() ==
        absl::StatusCode::kNotFound);
  CHECK_FALSE(std::filesystem::exists(host.path() / "state/vms/c"));
}

TEST_CASE("An application lives on over a restart, and ends its machine") {
  ImageSpec spec;
  spec.entrypoint = {"sh", "-c", "sleep 1000"};
  TestHost host(spec);
  {
    const MicroVM vm = host.Run({.id = "a"});
    REQUIRE(vm.Suspend().ok());
  }
  host.Restart();
  const MicroVM vm = host.Get("a");
  REQUIRE(vm.Resume().ok());
  const auto processes = vm.ListProcesses();
  REQUIRE(processes.ok());
  REQUIRE(processes->size() == 1);
  CHECK(vm.Exec(Shell("kill " + std::to_string(processes->front().guest_pid)))
            .ok());
  CHECK(vm.WaitForState(MicroVMState::kTerminated, 20s).ok());
  CHECK(vm.termination_reason() == TerminationReason::kAppExited);
}

TEST_CASE("Wall time goes on while no Host is there") {
  TestHost host;
  RunOptions options{.id = "a"};
  auto reason = TerminationReason::kMaxLifetime;
  SECTION("max_lifetime") { options.max_lifetime = 1s; }
  SECTION("suspended_duration") {
    options.idle_policy = IdlePolicy{.suspended_duration = 500ms};
    reason = TerminationReason::kSuspendedTooLong;
  }
  { CHECK(host.Run(options).Suspend().ok()); }
  CHECK(host.host().Close().ok());
  host.Release();
  std::this_thread::sleep_for(1s);
  host.Open();
  const MicroVM vm = host.Get("a");
  CHECK(vm.WaitForState(MicroVMState::kTerminated, 20s).ok());
  CHECK(vm.termination_reason() == reason);
}

TEST_CASE("What is damaged is left alone, and what is unfinished goes") {
  TestHost host;
  { CHECK(host.Run({.id = "a"}).Suspend().ok()); }
  { CHECK(host.Run({.id = "b"}).Suspend().ok()); }
  { CHECK(host.Run({.id = "c"}).Suspend().ok()); }
  CHECK(host.host().Close().ok());
  host.Release();
  const auto vms = host.path() / "state" / "vms";
  std::filesystem::resize_file(vms / "a" / "vm.catnap", 40);
  std::filesystem::remove_all(vms / "b" / "s1");
  std::filesystem::create_directories(vms / "c" / ".new-s2");
  std::filesystem::create_directories(vms / "c" / "s9");
  std::ofstream(vms / "c" / "awake-9") << "";
  std::filesystem::create_directories(vms / "d" / "live");
  std::filesystem::create_directories(vms / "not a name");
  std::ofstream(vms / "not a name" / "vm.catnap") << "";
  host.Open();
  REQUIRE(host.host().ListMicroVMs().size() == 1);
  CHECK(std::filesystem::exists(vms / "a" / "vm.catnap"));
  CHECK(std::filesystem::exists(vms / "b" / "vm.catnap"));
  CHECK(std::filesystem::exists(vms / "not a name"));
  CHECK_FALSE(std::filesystem::exists(vms / "d"));
  CHECK_FALSE(std::filesystem::exists(vms / "c" / ".new-s2"));
  CHECK_FALSE(std::filesystem::exists(vms / "c" / "s9"));
  CHECK_FALSE(std::filesystem::exists(vms / "c" / "awake-9"));
  CHECK(host.Get("c").Resume().ok());
  // Nor is it overwritten by a new one.
  const auto again = MicroVM::Run(host.host(), host.image(), {.id = "a"});
  CHECK(again.status().code() == absl::StatusCode::kAlreadyExists);
  CHECK(std::filesystem::exists(vms / "a" / "vm.catnap"));
}

TEST_CASE("A machine whose image is gone is left alone") {
  TestHost host;
  { CHECK(host.Run({.id = "a"}).Suspend().ok()); }
  CHECK(ReasonOf(host.image().Delete()) == ErrorReason::kInUse);
  std::filesystem::remove_all(host.path() / "state" / "images" / "test");
  host.Restart();
  CHECK(host.host().ListMicroVMs().empty());
  CHECK(std::filesystem::exists(host.path() / "state/vms/a/s1/memory"));
}

TEST_CASE("A record reads as it was written") {
  runtime::VmRecord record;
  record.image_name = "image";
  record.image_major = 3;
  record.image_disk_id[0] = 7;
  record.snapshot = 12;
  record.sleep_reason = "why";
  record.created_at = runtime::VmRecord::WallTime(1'700'000'000'123ms);
  record.suspended_at = runtime::VmRecord::WallTime(1'700'000'001'456ms);
  record.running = 17ms;
  record.suspended = 4ms;
  record.vcpu_seconds = 2.5;
  record.bytes_written = 5;
  record.bytes_read = 6;
  record.stored_bytes = 7;
  record.own_bytes = 8;
  record.had_tap = true;
  RunOptions& options = record.options;
  options.id = "a";
  options.idle_policy = IdlePolicy{.max_idle_duration = 5s,
                                   .suspended_duration = 0ms,
                                   .auto_resume_enabled = false};
  options.idle_policy->activity.exec = false;
  options.idle_policy->activity.guest_cpu = true;
  options.idle_policy->activity.guest_cpu_threshold = 1.5;
  options.max_lifetime = 1h;
  options.env = {{"A", "b=c"}};
  options.labels = {{"l", ""}};
  options.egress = NetworkPolicy::Allow(
      {{.to = "10.0.0.0/8", .ports = {{1, 2}}, .protocol = Protocol::kUdp}});
  options.ingress = Ingress::kNone;
  options.disks = {{.image = "/dev/null", .read_only = false, .serial = "s"}};
  options.on_release = OnRelease::kSuspend;
  options.after_crash = AfterCrash::kLastCheckpoint;
  const auto bytes = EncodeVmRecord(record);
  REQUIRE(bytes.ok());
  const auto read = runtime::DecodeVmRecord(*bytes);
  INFO(read.status().ToString());
  REQUIRE(read.ok());
  CHECK(*EncodeVmRecord(*read) == *bytes);
  CHECK(read->options.env == options.env);
  CHECK(read->options.egress == options.egress);
  CHECK(read->options.disks.front().image == "/dev/null");
  CHECK_FALSE(read->options.idle_policy->activity.exec);
  CHECK(read->options.idle_policy->activity.guest_cpu);
  CHECK(read->options.idle_policy->activity.guest_cpu_threshold == 1.5);
  CHECK(read->options.idle_policy->suspended_duration == 0ms);
  CHECK(read->created_at == record.created_at);
  CHECK(read->suspended_at == record.suspended_at);
  CHECK(read->vcpu_seconds == 2.5);
  for (size_t i = 0; i < bytes->size(); ++i) {
    auto flipped = *bytes;
    flipped[i] ^= 1;
    CHECK_FALSE(runtime::DecodeVmRecord(flipped).ok());
    CHECK_FALSE(runtime::DecodeVmRecord(std::span(*bytes).subspan(0, i)).ok());
  }
}

TEST_CASE("A store is the old or the new one at every step") {
  const test::TemporaryDirectory directory;
  const auto path = std::filesystem::path(directory.path()) / "a";
  runtime::VmStore store(path, /*durable=*/true);
  REQUIRE(store.Create().ok());
  CHECK_FALSE(runtime::VmStore::Read(path)->has_value());
  runtime::VmRecord record;
  record.options.id = "a";
  record.image_name = "image";
  record.image_major = 1;
  REQUIRE(store.Write(record, /*sync=*/false).ok());
  REQUIRE(store.Sync().ok());
  CHECK((*runtime::VmStore::Read(path))->ran);
  for (uint64_t i = 1; i < 4; ++i) {
    REQUIRE(store.BeginSnapshot(i).ok());
    auto read = runtime::VmStore::Read(path);
    CHECK((*read)->record.snapshot == i - 1);
    CHECK((*read)->ran);
    // Read() takes it for what a dead process left.
    REQUIRE(store.BeginSnapshot(i).ok());
    record.snapshot = i;
    REQUIRE(store.PublishSnapshot(record).ok());
    read = runtime::VmStore::Read(path);
    CHECK((*read)->record.snapshot == i);
    CHECK_FALSE((*read)->ran);
    REQUIRE(store.MarkAwake(i).ok());
    CHECK((*runtime::VmStore::Read(path))->ran);
    REQUIRE(store.ClearAwake(i).ok());
    CHECK_FALSE((*runtime::VmStore::Read(path))->ran);
    REQUIRE(store.MarkAwake(i).ok());
  }
  REQUIRE(store.Remove().ok());
  CHECK_FALSE(std::filesystem::exists(path));
}

}  // namespace
}  // namespace catnap
