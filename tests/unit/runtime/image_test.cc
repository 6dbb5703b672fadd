#include "catnap/image.h"

#include <catch2/catch.hpp>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "catnap/errors.h"
#include "runtime/image_record.h"
#include "support/host_fixture.h"

namespace catnap {
namespace {

using testing::TestHost;

// Hears what a build tells.
class Listener final : public BuildObserver {
 public:
  void OnPhase(BuildPhase phase, std::string_view /*detail*/) override {
    phases.push_back(phase);
  }
  void OnLog(std::string_view line) override {
    lines += std::string(line) + "\n";
  }
  std::vector<BuildPhase> phases;
  std::string lines;
};

TEST_CASE("Builds make versions, which are found again by another Host") {
  TestHost host;
  CHECK(host.image().name() == "test");
  CHECK(host.image().version() == "1.0");
  CHECK(host.image().memory_bytes() == uint64_t{512} << 20);
  CHECK(host.image().stored_bytes() > 0);
  ImageSpec spec = ImageSpec::FromDirectory("test", host.path() / "root");
  spec.disk_bytes = uint64_t{1} << 30;
  spec.labels = {{"a", "b"}};
  Listener listener;
  const auto second = Image::Build(host.host(), spec, &listener);
  REQUIRE(second.ok());
  CHECK(second->version() == "2.0");
  CHECK(listener.phases ==
        std::vector{BuildPhase::kResolving, BuildPhase::kAssembling,
                    BuildPhase::kBooting, BuildPhase::kTraining,
                    BuildPhase::kSnapshotting, BuildPhase::kPublishing});
  CHECK(host.host().GetImage("test")->version() == "2.0");
  CHECK(host.host().GetImage("test", "1.0")->version() == "1.0");
  CHECK(host.host().GetImage("test", "3.0").status().code() ==
        absl::StatusCode::kNotFound);
  CHECK(host.host().GetImage("none").status().code() ==
        absl::StatusCode::kNotFound);

  auto other = Host::Open({.image_dir = host.path() / "state" / "images"});
  REQUIRE(other.ok());
  CHECK((*other)->ListImages().size() == 2);
  CHECK((*other)->GetImage("test")->Delete().ok());
  CHECK(host.host().GetImage("test")->version() == "1.0");
  CHECK(second->Delete().ok());  // Idempotent.
  CHECK(Image().Delete().code() == absl::StatusCode::kFailedPrecondition);
}

TEST_CASE("An image stays while something comes from it") {
  TestHost host;
  auto other = Host::Open({.image_dir = host.path() / "state" / "images"});
  REQUIRE(other.ok());
  const auto same = (*other)->GetImage("test");
  REQUIRE(same.ok());
  const MicroVM vm = host.Run();
  CHECK(ReasonOf(host.image().Delete()) == ErrorReason::kInUse);
  CHECK(ReasonOf(same->Delete()) == ErrorReason::kInUse);
  CHECK(vm.Suspend().ok());
  CHECK(ReasonOf(same->Delete()) == ErrorReason::kInUse);
  auto snapshot = vm.TakeSnapshot();
  REQUIRE(snapshot.ok());
  CHECK(vm.Terminate().ok());
  const absl::Status refused = same->Delete();
  CHECK(ReasonOf(refused) == ErrorReason::kInUse);
  CHECK_THAT(std::string(refused.message()), Catch::Contains("test 1.0"));
  CHECK(MicroVM::Restore(host.host(), *snapshot)->Terminate().ok());
  CHECK(snapshot->Delete().ok());
  CHECK(same->Delete().ok());
  CHECK(same->Delete().ok());
  CHECK(MicroVM::Run(host.host(), host.image()).status().code() ==
        absl::StatusCode::kNotFound);
}

TEST_CASE("An image has its application started, and tells what it wrote") {
  TestHost host;
  ImageSpec spec;
  spec.name = "app";
  // Not before it has written that.
  const std::string started = host.path() / "started";
  spec.entrypoint = {"sh", "-c",
                     "echo starting; echo >" + started + "; sleep 1000"};
  spec.ready.command = {"test", "-e", started};
  Listener listener;
  const auto image = host.Build(spec, &listener);
  INFO(image.status().ToString());
  REQUIRE(image.ok());
  CHECK(listener.phases ==
        std::vector{BuildPhase::kResolving, BuildPhase::kAssembling,
                    BuildPhase::kBooting, BuildPhase::kStarting,
                    BuildPhase::kWaitingReady, BuildPhase::kTraining,
                    BuildPhase::kSnapshotting, BuildPhase::kPublishing});
  CHECK(listener.lines == "starting\n");
  const auto path = host.path() / "state/images/app/1.0";
  CHECK(std::filesystem::exists(path / "guest" / "memory"));
  CHECK_FALSE(std::filesystem::exists(path / "vm"));
  CHECK(host.host().ListMicroVMs().empty());
  const int starts = host.faults().starts;
  const auto vm = MicroVM::Run(host.host(), *image);
  REQUIRE(vm.ok());
  CHECK(host.faults().starts == starts + 1);
  CHECK(vm->ListProcesses()->size() == 1);
  CHECK(host.host().Prewarm(*image, 3).ok());
  CHECK(host.factory().prewarmed() == 3);
  CHECK(host.host().Prewarm(*image, -1).code() ==
        absl::StatusCode::kInvalidArgument);
}

TEST_CASE("A build that fails leaves nothing") {
  TestHost host;
  ImageSpec spec;
  spec.name = "app";
  spec.entrypoint = {"sh", "-c", "sleep 1000"};
  auto code = absl::StatusCode::kResourceExhausted;
  SECTION("no memory") { host.faults().start_fails = true; }
  SECTION("no disk") { host.faults().store_fails = true; }
  SECTION("cannot be frozen") {
    host.faults().suspend_fails = true;
    code = absl::StatusCode::kFailedPrecondition;
  }
  SECTION("too late") {
    host.faults().delay_ms = 60'000;
    code = absl::StatusCode::kDeadlineExceeded;
  }
  const auto image = host.Build(spec, nullptr, {.timeout = Millis(1500)});
  CHECK(image.status().code() == code);
  for (const auto& entry :
       std::filesystem::directory_iterator(host.path() / "state" / "images")) {
    CHECK(entry.path().filename() == "test");
  }
}

TEST_CASE("GetOrBuild builds a recipe once") {
  TestHost host;
  ImageSpec spec;
  spec.name = "once";
  std::vector<std::thread> threads;
  std::vector<std::string> versions(4);
  threads.reserve(versions.size());
  for (std::string& version : versions) {
    threads.emplace_back([&] {
      const auto image = host.GetOrBuild(spec);
      version = image.ok() ? image->version() : image.status().ToString();
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(versions == std::vector<std::string>(4, "1.0"));
  // Times do not count, content and options do.
  const auto file = host.path() / "root" / "etc" / "hostname";
  std::filesystem::last_write_time(
      file, std::filesystem::file_time_type::clock::now());
  CHECK(host.GetOrBuild(spec)->version() == "1.0");
  std::ofstream(file) << "other\n";
  CHECK(host.GetOrBuild(spec)->version() == "2.0");
  std::ofstream(file) << "guest\n";
  CHECK(host.GetOrBuild(spec)->version() == "1.0");
  spec.env = {{"A", "b"}};
  CHECK(host.GetOrBuild(spec)->version() == "3.0");
  // What Build() makes is another matter.
  CHECK(host.Build(spec)->version() == "4.0");
  CHECK(host.GetOrBuild(spec)->version() == "3.0");
  for (const auto& entry :
       std::filesystem::directory_iterator(host.path() / "state" / "images")) {
    CHECK(entry.path().filename().string().front() != '.');
  }
}

TEST_CASE("Builds at once get versions of their own") {
  TestHost host;
  std::vector<std::thread> threads;
  std::vector<std::string> versions(4);
  threads.reserve(versions.size());
  for (std::string& version : versions) {
    threads.emplace_back([&] {
      ImageSpec spec = ImageSpec::FromDirectory("many", host.path() / "root");
      spec.disk_bytes = uint64_t{1} << 30;
      const auto image = Image::Build(host.host(), spec);
      version = image.ok() ? image->version() : image.status().ToString();
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::sort(versions.begin(), versions.end());
  CHECK(versions == std::vector<std::string>{"1.0", "2.0", "3.0", "4.0"});
}

TEST_CASE("A spec that cannot be built names the option") {
  TestHost host;
  ImageSpec spec = ImageSpec::FromDirectory("x", host.path() / "root");
  std::string named;
  auto code = absl::StatusCode::kInvalidArgument;
  SECTION("name") {
    spec.name = "a b";
    named = "name is \"a b\"";
  }
  SECTION("memory") {
    spec.memory_bytes = 8;
    named = "memory_bytes is 8, must be at least 67108864";
  }
  SECTION("vcpus") {
    spec.vcpus = 33;
    named = "vcpus is 33, must be at most 32";
  }
  SECTION("disk") {
    spec.disk_bytes = (uint64_t{1} << 30) + 1;
    named = "disk_bytes";
  }
  SECTION("ready") {
    spec.ready.timeout = Millis(0);
    named = "ready.timeout is 0";
  }
  SECTION("hooks") {
    spec.hooks.run = Hook{};
    named = "hooks";
    code = absl::StatusCode::kUnimplemented;
  }
  SECTION("source") {
    spec = ImageSpec::FromDockerfile("x", host.path());
    named = "DockerfileSource";
    code = absl::StatusCode::kUnimplemented;
  }
  SECTION("missing") {
    spec.source = TarSource{host.path() / "none.tar"};
    named = "none.tar";
    code = absl::StatusCode::kNotFound;
  }
  const auto image = Image::Build(host.host(), spec);
  INFO(image.status().ToString());
  CHECK(image.status().code() == code);
  CHECK_THAT(image.status().ToString(), Catch::Contains(named));
  // Nothing is left of it.
  size_t entries = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(host.path() / "state" / "images")) {
    entries += entry.path().filename() != "test" ? 1 : 0;
  }
  CHECK(entries == 0);
}

TEST_CASE("Damaged images are told apart and left out of lists") {
  TestHost host;
  const auto file =
      host.path() / "state/images/test/1.0" / runtime::kImageRecordName;
  {
    std::fstream record(file, std::ios::in | std::ios::out | std::ios::binary);
    record.seekp(20);
    record.put('\xff');
  }
  CHECK(host.host().GetImage("test").status().code() ==
        absl::StatusCode::kDataLoss);
  CHECK(host.host().ListImages().empty());
}

TEST_CASE("An image's record comes back as it was, or not at all") {
  runtime::ImageRecord record;
  record.name = "name";
  record.major = 3;
  record.memory_bytes = uint64_t{128} << 20;
  record.vcpus = 2;
  record.disk_bytes = uint64_t{2} << 30;
  record.extra_disk_slots = 1;
  record.cpu_baseline = CpuBaseline::kHost;
  record.application = {"a", "", "c"};
  record.env = {{"A", "b=c"}, {"B", ""}};
  record.workdir = "/w";
  record.user = "u:g";
  record.ready.port = 80;
  record.ready.command = {"x"};
  record.ready.timeout = Millis(7);
  record.on_app_exit = OnAppExit::kKeepRunning;
  record.labels = {{"l", "v"}};
  record.disk_id = {1, 2, 3};
  const auto bytes = runtime::EncodeImageRecord(record);
  REQUIRE(bytes.ok());
  const auto back = runtime::DecodeImageRecord(*bytes);
  REQUIRE(back.ok());
  CHECK(back->name == record.name);
  CHECK(back->major == 3);
  CHECK(back->application == record.application);
  CHECK(back->env == record.env);
  CHECK(back->cpu_baseline == CpuBaseline::kHost);
  CHECK(back->ready.port == 80);
  CHECK(back->ready.command == record.ready.command);
  CHECK(back->ready.timeout == Millis(7));
  CHECK(back->on_app_exit == OnAppExit::kKeepRunning);
  CHECK(back->labels == record.labels);
  CHECK(back->disk_id == record.disk_id);
  for (size_t i = 0; i < bytes->size(); ++i) {
    auto damaged = *bytes;
    damaged[i] ^= 0x40;
    CHECK_FALSE(runtime::DecodeImageRecord(damaged).ok());
    CHECK_FALSE(runtime::DecodeImageRecord(std::span(*bytes).first(i)).ok());
  }
  auto newer = *bytes;
  newer[8] = 2;
  CHECK(runtime::DecodeImageRecord(newer).status().code() ==
        absl::StatusCode::kUnimplemented);
}

}  // namespace
}  // namespace catnap
