#include "catnap/snapshot.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <future>
#include <string>
#include <thread>
#include <vector>

#include "base/sha256.h"
#include "catnap/errors.h"
#include "runtime/directory_copy.h"
#include "runtime/snapshot_record.h"
#include "support/host_fixture.h"

namespace catnap {
namespace {

using namespace std::chrono_literals;
using testing::Shell;
using testing::TestHost;
using Where = SnapshotOptions::Where;

// What is in state_dir/snapshots.
size_t Stored(const TestHost& host) {
  size_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(
           host.path() / "state" / "snapshots")) {
    count += entry.is_directory() ? 1 : 0;
  }
  return count;
}

TEST_CASE("A snapshot is restored, and goes with its last handle") {
  TestHost host;
  const MicroVM vm = host.Run({.id = "a"});
  host.guest().memory().Set("counted to 7");
  host.guest().SetDisk("written");
  SnapshotOptions options;
  SECTION("stored") {}
  SECTION("in memory") { options.where = Where::kMemory; }
  SECTION("of one that sleeps") { REQUIRE(vm.Suspend().ok()); }
  const MicroVMState state = vm.state();
  auto snapshot = vm.TakeSnapshot(options);
  INFO(snapshot.status().ToString());
  REQUIRE(snapshot.ok());
  CHECK(vm.state() == state);
  CHECK(snapshot->memory_bytes() == uint64_t{512} << 20);
  CHECK(snapshot->own_bytes() == std::string("counted to 7").size());
  CHECK((snapshot->stored_bytes() > 0) == (options.where == Where::kStore));
  CHECK_FALSE(snapshot->id().empty());
  CHECK(snapshot->Verify().ok());
  CHECK(Stored(host) == (options.where == Where::kStore ? 1 : 0));
  CHECK(host.host().GetSnapshot(snapshot->id()).ok());
  CHECK(host.host().ListSnapshots({.image = "test"}).size() == 1);
  CHECK(host.host().ListSnapshots({.image = "other"}).empty());
  CHECK(vm.Terminate().ok());
  for (int i = 0; i < 2; ++i) {
    const auto copy = MicroVM::Restore(host.host(), *snapshot);
    INFO(copy.status().ToString());
    REQUIRE(copy.ok());
    CHECK(copy->state() == MicroVMState::kRunning);
    CHECK(host.guest().memory().Get() == "counted to 7");
    CHECK(host.guest().disk() == "written");
    CHECK(copy->Exec(Shell("true")).ok());
    CHECK(copy->Suspend().ok());
    CHECK(copy->Resume().ok());
  }
  snapshot = Snapshot();
  CHECK(Stored(host) == 0);
  CHECK(host.host().ListSnapshots().empty());
}

TEST_CASE("A named snapshot stays until it is deleted") {
  TestHost host;
  {
    const MicroVM vm = host.Run({.id = "a"});
    host.guest().memory().Set("kept");
    SnapshotOptions options;
    options.name = "ready";
    options.labels = {{"team", "red"}};
    REQUIRE(vm.TakeSnapshot(options).ok());
    CHECK(vm.TakeSnapshot(options).status().code() ==
          absl::StatusCode::kAlreadyExists);
    options.name = "no/name";
    CHECK(vm.TakeSnapshot(options).status().code() ==
          absl::StatusCode::kInvalidArgument);
    CHECK(vm.TakeSnapshot().ok());  // Unnamed: gone at once.
    CHECK(Stored(host) == 1);
  }
  SECTION("after Close()") { host.Restart(); }
  SECTION("after a crash") { host.Crash(); }
  const auto found = host.host().ListSnapshots({.labels = {{"team", "red"}}});
  REQUIRE(found.size() == 1);
  CHECK(found.front().name() == "ready");
  const auto snapshot = host.host().GetSnapshot("ready");
  REQUIRE(snapshot.ok());
  CHECK(MicroVM::Restore(host.host(), *snapshot).ok());
  CHECK(host.guest().memory().Get() == "kept");
  CHECK(snapshot->Delete().ok());
  CHECK(snapshot->Delete().ok());
  CHECK(Stored(host) == 0);
  CHECK(host.host().GetSnapshot("ready").status().code() ==
        absl::StatusCode::kNotFound);
  CHECK(MicroVM::Restore(host.host(), *snapshot).status().code() ==
        absl::StatusCode::kFailedPrecondition);
  CHECK(snapshot->name() == "ready");
}

TEST_CASE("A snapshot that fails leaves nothing, and the machine runs") {
  TestHost host;
  const MicroVM vm = host.Run({.id = "a"});
  auto code = absl::StatusCode::kResourceExhausted;
  CallOptions call;
  SECTION("no disk") { host.faults().store_fails = true; }
  SECTION("not frozen") {
    host.faults().suspend_fails = true;
    code = absl::StatusCode::kFailedPrecondition;
  }
  SECTION("late") {
    host.faults().delay_ms = 60'000;
    call.timeout = 20ms;
    code = absl::StatusCode::kDeadlineExceeded;
  }
  CHECK(vm.TakeSnapshot({}, call).status().code() == code);
  CHECK(vm.state() == MicroVMState::kRunning);
  CHECK(Stored(host) == 0);
  host.faults().delay_ms = 0;  // Of Close().
}

TEST_CASE("Forks have what is not set from their parent, all or none") {
  TestHost host;
  const MicroVM vm = host.Run(
      {.id = "a", .env = {{"A", "parent"}}, .labels = {{"team", "red"}}});
  host.guest().memory().Set("shared");
  auto forks = vm.Fork(3);
  INFO(forks.status().ToString());
  REQUIRE(forks.ok());
  REQUIRE(forks->size() == 3);
  CHECK(host.faults().captures == 2);  // The image's build, and this.
  for (const MicroVM& fork : *forks) {
    CHECK(fork.Exec(Shell("echo $A"))->stdout_data == "parent\n");
    CHECK(fork.id() != "a");
  }
  CHECK(host.host().ListMicroVMs({.labels = {{"team", "red"}}}).size() == 4);
  CHECK(Stored(host) == 0);

  std::vector<RunOptions> children(2);
  children[0].id = "b";
  children[1].id = "c";
  children[1].env = {{"A", "child"}};
  forks = vm.ForkEach(children);
  REQUIRE(forks.ok());
  CHECK((*forks)[0].id() == "b");
  CHECK((*forks)[1].Exec(Shell("echo $A"))->stdout_data == "child\n");

  // "c" is taken: no "d" either.
  children[0].id = "d";
  CHECK(vm.ForkEach(children).status().code() ==
        absl::StatusCode::kAlreadyExists);
  CHECK(host.host().GetMicroVM("d").status().code() ==
        absl::StatusCode::kNotFound);
  const size_t before = host.host().ListMicroVMs().size();
  host.faults().start_fails = true;
  CHECK(vm.Fork(4).status().code() == absl::StatusCode::kResourceExhausted);
  CHECK(host.host().ListMicroVMs().size() == before);
  host.faults().start_fails = false;
  CHECK(vm.Fork(2, {.id = "x"}).status().code() ==
        absl::StatusCode::kInvalidArgument);
  CHECK(vm.Fork(0).status().code() == absl::StatusCode::kInvalidArgument);
  CHECK(vm.Fork(4097).status().code() == absl::StatusCode::kInvalidArgument);
  CHECK(vm.Fork(1, {.id = "x"})->front().id() == "x");
  // A parent that sleeps is not woken.
  REQUIRE(vm.Suspend().ok());
  CHECK(vm.Fork(2).ok());
  CHECK(vm.state() == MicroVMState::kSuspended);
  CHECK(Stored(host) == 0);
}

TEST_CASE(
    "Programs that run already find their machine's variables in a file") {
  ImageSpec spec;
  spec.env = {{"OF_IMAGE", "x"}};
  TestHost host(spec);
  const std::string own = "A='it'\\''s'\nB='b'\n";
  const MicroVM vm = host.Run({.id = "a", .env = {{"A", "it's"}, {"B", "b"}}});
  CHECK(host.guest().env() == own);
  CHECK(vm.Exec(Shell("echo $A $OF_IMAGE"))->stdout_data == "it's x\n");
  SECTION("a copy has those of its own options") {
    REQUIRE(vm.Fork(1, {.env = {{"C", "child"}}}).ok());
    CHECK(host.guest().env() == "C='child'\n");
    REQUIRE(vm.Fork(1).ok());
    CHECK(host.guest().env() == own);
    const auto snapshot = vm.TakeSnapshot();
    REQUIRE(snapshot.ok());
    // Nothing is left of what it was taken from.
    REQUIRE(MicroVM::Restore(host.host(), *snapshot).ok());
    CHECK(host.guest().env().empty());
  }
  SECTION("over sleep") {
    REQUIRE(vm.Suspend().ok());
    REQUIRE(vm.Resume().ok());
    CHECK(host.guest().env() == own);
    host.Restart();
    REQUIRE(host.Get("a").Resume().ok());
    CHECK(host.guest().env() == own);
  }
  SECTION("when it boots after a crash") {
    host.Crash();
    REQUIRE(host.Get("a").Resume().ok());
    CHECK(host.guest().env() == own);
  }
}

TEST_CASE("A snapshot goes to another Host, with its image") {
  TestHost host;
  const MicroVM vm = host.Run();
  host.guest().memory().Set("travels");
  SnapshotOptions options;
  options.name = "ready";
  SECTION("from the store") {}
  SECTION("from memory") { options.where = Where::kMemory; }
  auto snapshot = vm.TakeSnapshot(options);
  REQUIRE(snapshot.ok());
  const auto dir = host.path() / "saved";
  REQUIRE(snapshot->Save(dir).ok());
  CHECK(snapshot->Save(dir).code() == absl::StatusCode::kAlreadyExists);
  CHECK(snapshot->Save(host.path() / "none" / "x").code() ==
        absl::StatusCode::kNotFound);

  TestHost other({.name = "unrelated"});
  auto loaded = Snapshot::Load(other.host(), dir);
  INFO(loaded.status().ToString());
  REQUIRE(loaded.ok());
  CHECK(loaded->name() == "ready");
  CHECK(loaded->Verify().ok());
  CHECK(other.host().GetImage("test").ok());
  std::filesystem::remove_all(dir / "guest");
  CHECK(MicroVM::Restore(other.host(), *loaded).ok());
  CHECK(other.guest().memory().Get() == "travels");
  CHECK(MicroVM::Restore(host.host(), *loaded).status().code() ==
        absl::StatusCode::kInvalidArgument);
  CHECK(Snapshot::Load(other.host(), dir).status().code() ==
        absl::StatusCode::kNotFound);
  CHECK(loaded->Delete().ok());
  std::filesystem::resize_file(dir / "snapshot.catnap", 20);
  CHECK(Snapshot::Load(other.host(), dir).status().code() ==
        absl::StatusCode::kDataLoss);
}

TEST_CASE("Handles of snapshots outlive their Host, and empty ones say so") {
  TestHost host;
  auto snapshot = host.Run().TakeSnapshot();
  REQUIRE(snapshot.ok());
  CHECK(host.host().Close().ok());
  CHECK(Stored(host) == 0);
  CHECK(ReasonOf(snapshot->Verify()) == ErrorReason::kHostClosed);
  host.Release();
  CHECK(ReasonOf(snapshot->Save(host.path() / "x")) ==
        ErrorReason::kHostClosed);
  CHECK_FALSE(snapshot->id().empty());
  CHECK(Snapshot().Delete().code() == absl::StatusCode::kFailedPrecondition);
  CHECK(Snapshot().id().empty());
  CHECK(MicroVM().TakeSnapshot().status().code() ==
        absl::StatusCode::kFailedPrecondition);
}

TEST_CASE("Snapshots, forks, suspends and ends from many threads") {
  TestHost host;
  const MicroVM vm = host.Run({.idle_policy = IdlePolicy{}});
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  const auto loop = [&](auto call) {
    threads.emplace_back([&stop, call] {
      while (!stop) call();
    });
  };
  loop([&vm] { (void)vm.Suspend(); });
  // One that was under way when it fell asleep waits.
  loop([&vm] { (void)vm.Exec(Shell("true"), {.timeout = 1s}); });
  loop([&vm] { (void)vm.TakeSnapshot(); });
  loop([&vm] {
    const auto forks = vm.Fork(2);
    if (!forks.ok()) return;
    for (const MicroVM& fork : *forks) (void)fork.Terminate();
  });
  std::this_thread::sleep_for(500ms);
  SECTION("terminated") { CHECK(vm.Terminate().ok()); }
  SECTION("closed") {
    const absl::Status closed = host.host().Close();
    INFO(closed.ToString());
    CHECK(closed.ok());
  }
  SECTION("left alone") {}
  stop = true;
  for (std::thread& thread : threads) thread.join();
  CHECK(Stored(host) == 0);
}

TEST_CASE("A snapshot's record reads as it was written, or not at all") {
  runtime::SnapshotRecord record;
  record.id = "snap-1";
  record.name = "ready";
  record.labels = {{"a", "b"}};
  record.image_name = "image";
  record.image_major = 3;
  record.image_disk_id[0] = 9;
  record.cpu_baseline = CpuBaseline::kHost;
  record.memory_bytes = 1;
  record.own_bytes = 2;
  record.stored_bytes = 3;
  const auto bytes = EncodeSnapshotRecord(record);
  REQUIRE(bytes.ok());
  const auto read = runtime::DecodeSnapshotRecord(*bytes);
  REQUIRE(read.ok());
  CHECK(*EncodeSnapshotRecord(*read) == *bytes);
  for (size_t i = 0; i < bytes->size(); ++i) {
    auto flipped = *bytes;
    flipped[i] ^= 1;
    CHECK_FALSE(runtime::DecodeSnapshotRecord(flipped).ok());
    CHECK_FALSE(
        runtime::DecodeSnapshotRecord(std::span(*bytes).subspan(0, i)).ok());
  }
}

TEST_CASE("Directories are copied with their holes, and nothing but files") {
  const test::TemporaryDirectory directory;
  const std::filesystem::path base = directory.path();
  std::filesystem::create_directories(base / "from" / "below");
  std::filesystem::create_directories(base / "to");
  std::ofstream(base / "from" / "text") << "text";
  std::ofstream(base / "from" / "below" / "big") << "start";
  std::filesystem::resize_file(base / "from" / "below" / "big", 64 << 20);
  REQUIRE(
      runtime::CopyDirectory(base / "from", base / "to", std::nullopt).ok());
  CHECK(std::filesystem::file_size(base / "to" / "below" / "big") == 64 << 20);
  CHECK(runtime::OccupiedBytes(base / "to") < 1 << 20);
  CHECK(testing::ReadText(base / "to" / "text") == "text");
  std::filesystem::create_symlink("/etc/passwd", base / "from" / "link");
  std::filesystem::create_directories(base / "to2");
  CHECK(runtime::CopyDirectory(base / "from", base / "to2", std::nullopt)
            .code() == absl::StatusCode::kInvalidArgument);
  std::stop_source stop;
  stop.request_stop();
  std::filesystem::create_directories(base / "to3");
  CHECK(runtime::CopyDirectory(base / "from", base / "to3",
                               {std::nullopt, stop.get_token()})
            .code() == absl::StatusCode::kCancelled);
}

TEST_CASE("SHA-256 is what others compute") {
  const auto of = [](const std::string& text) {
    base::Sha256 digest;
    for (const char c : text) {
      digest.Update({reinterpret_cast<const uint8_t*>(&c), 1});
    }
    return base::HexText(digest.Finish());
  };
  CHECK(of("") ==
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(of("abc") ==
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(of(std::string(1000, 'a')) ==
        "41edece42d63e8d9bf515a9ba6932e1c20cbc9f5a5d134645adb5db1b9737ea3");
}

}  // namespace
}  // namespace catnap
