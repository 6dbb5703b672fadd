#include <catch2/catch.hpp>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "catnap/catnap.h"
#include "linux/busybox_root.h"
#include "linux/guest_loads.h"
#include "linux/host_network.h"
#include "linux/python_guest.h"

// A MicroVM that is copied and sleeps while its disk, network and streams are
// in use all the time.

namespace catnap {
namespace {

using namespace std::chrono_literals;
using test::AskPython;
using test::HostNetwork;

void Must(const absl::Status& status) {
  INFO(status.ToString());
  REQUIRE(status.ok());
}

// A program that waits for the disk may take longer to stop than it may.
absl::Status TryAgain(const std::function<absl::Status()>& call) {
  absl::Status status = call();
  for (int i = 0; i < 20 && absl::IsFailedPrecondition(status); ++i) {
    status = call();
  }
  return status;
}

// What grows by `least` if it gets on.
struct Gauge {
  const char* name;
  std::function<uint64_t()> now;
  uint64_t least;
};

// All get on from now.
void CheckGoOn(const std::vector<Gauge>& gauges) {
  std::vector<uint64_t> goals;
  goals.reserve(gauges.size());
  for (const Gauge& gauge : gauges) goals.push_back(gauge.now() + gauge.least);
  const auto latest = std::chrono::steady_clock::now() + 60s;
  for (size_t i = 0; i < gauges.size(); ++i) {
    const Gauge& gauge = gauges[i];
    while (gauge.now() < goals[i] &&
           std::chrono::steady_clock::now() < latest) {
      std::this_thread::sleep_for(20ms);
    }
    INFO(gauge.name);
    REQUIRE(gauge.now() >= goals[i]);
  }
}

// The Python guest, with what the loads need in its image's page cache, so that
// no copy of it stores that.
class LoadedGuest {
 public:
  LoadedGuest() {
    auto host = Host::Open({.state_dir = files_.path() / "state"});
    Must(host.status());
    host_ = *std::move(host);
    ImageSpec spec = test::PythonImage("load");
    spec.memory_bytes = uint64_t{192} << 20;
    spec.vcpus = 2;
    spec.entrypoint = {"/bin/sh", "-c",
                       "fio --version; iperf3 --version; "
                       "exec python3 -c \"$0\"",
                       test::kPythonGuest};
    const auto image = Image::Build(*host_, spec);
    Must(image.status());
    RunOptions options;
    options.egress = NetworkPolicy::Allow({{.to = HostNetwork::kAddressText}});
    options.memory = Prefetch::kAll;  // The loads touch most of it.
    auto vm = MicroVM::Run(*host_, *image, options);
    Must(vm.status());
    vm_ = *std::move(vm);
    disk_ = std::make_unique<test::DiskLoad>(vm_);
    streams_ = std::make_unique<test::EchoLoad>(vm_);
  }
  ~LoadedGuest() {
    // Their last rounds need a guest that runs.
    streams_.reset();
    disk_.reset();
    CHECK(host_->Close({.running = AtClose::kTerminate}).ok());
  }

  MicroVM& vm() { return vm_; }
  test::DiskLoad& disk() { return *disk_; }

  std::vector<Gauge> gauges() {
    // A round that is under way may have begun before.
    return {{"streams", [this] { return streams_->rounds(); }, 2},
            {"disk", [this] { return disk_->progress(); }, 1}};
  }
  absl::Status Copy(SnapshotOptions::Where where, Snapshot* copy) {
    return TryAgain([&] {
      auto taken = vm_.TakeSnapshot({.where = where});
      if (!taken.ok()) return taken.status();
      *copy = *std::move(taken);
      return absl::OkStatus();
    });
  }
  absl::StatusOr<MicroVM> Restore(const Snapshot& copy) {
    return MicroVM::Restore(*host_, copy);
  }
  // Who uses it from outside would keep it awake.
  void SleepAndWake() {
    streams_->Rest();
    Must(TryAgain([this] { return vm_.Suspend(); }));
    Must(vm_.Resume());
    streams_->GoOn();
  }
  void CheckLoads() {
    disk_->CheckFine();
    streams_->CheckFine();
  }

 private:
  const test::RoomForFiles files_;
  std::shared_ptr<Host> host_;
  MicroVM vm_;
  std::unique_ptr<test::DiskLoad> disk_;
  std::unique_ptr<test::EchoLoad> streams_;
};

void TakeHundredSnapshots(LoadedGuest& guest) {
  test::NetworkLoad network(guest.vm());
  std::vector<Gauge> gauges = guest.gauges();
  gauges.push_back({"network, sent", [&] { return network.sent(); }, 2});
  gauges.push_back(
      {"network, received", [&] { return network.received(); }, 2});
  CheckGoOn(gauges);  // They have started.
  Snapshot copy;
  for (int i = 1; i <= 100; ++i) {
    CAPTURE(i, network.last());
    const bool stored = i % 10 == 0;
    Must(guest.Copy(stored ? SnapshotOptions::Where::kStore
                           : SnapshotOptions::Where::kMemory,
                    &copy));
    CheckGoOn(gauges);
  }
  network.CheckFine();

  // The last copy's disk gets on as well: fio does in it what it did here.
  const auto restored = guest.Restore(copy);
  Must(restored.status());
  CheckGoOn({{"disk of the copy",
              [&] { return guest.disk().ProgressIn(*restored); }, 1}});
  const auto answer = AskPython(*restored, "next");
  Must(answer.status());
  CHECK(test::IsConsistent(*answer));
  Must(restored->Terminate());
}

void SleepThirtyTimes(LoadedGuest& guest) {
  for (int i = 1; i <= 30; ++i) {
    CAPTURE(i);
    const auto before = AskPython(guest.vm(), "next");
    Must(before.status());
    CHECK(test::IsConsistent(*before));
    guest.SleepAndWake();
    const auto after = AskPython(guest.vm(), "look");
    Must(after.status());
    REQUIRE(*after == *before);
    CheckGoOn(guest.gauges());
  }
}

// One test, because to build such a guest takes as long as thirty snapshots.
TEST_CASE(
    "A hundred snapshots and thirty sleeps under load hang no queue and lose "
    "nothing") {
  const HostNetwork network;
  LoadedGuest guest;
  TakeHundredSnapshots(guest);
  SleepThirtyTimes(guest);
  guest.CheckLoads();
}

}  // namespace
}  // namespace catnap
