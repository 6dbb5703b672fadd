#include <vector>

#include "fuzz/seeds.h"
#include "runtime/image_record.h"
#include "runtime/snapshot_record.h"
#include "runtime/vm_record.h"

namespace catnap::fuzz {

std::vector<Seed> ImageRecordSeeds() {
  runtime::ImageRecord plain;
  plain.name = "plain";
  plain.major = 1;
  plain.memory_bytes = uint64_t{512} << 20;
  plain.vcpus = 1;
  plain.disk_bytes = uint64_t{8} << 30;
  runtime::ImageRecord full = plain;
  full.name = "full";
  full.application = {"server", "--port", "80"};
  full.env = {{"A", "b"}, {"C", ""}};
  full.workdir = "/srv";
  full.user = "www:www";
  full.ready.port = 80;
  full.ready.command = {"true"};
  full.on_app_exit = OnAppExit::kKeepRunning;
  full.labels = {{"team", "red"}};
  full.disk_id = {1, 2, 3};
  std::vector<Seed> seeds;
  for (const auto& record : {plain, full}) {
    const auto bytes = runtime::EncodeImageRecord(record);
    if (bytes.ok()) seeds.push_back({record.name, *bytes});
  }
  return seeds;
}

std::vector<Seed> VmRecordSeeds() {
  runtime::VmRecord plain;
  plain.options.id = "plain";
  plain.image_name = "image";
  plain.image_major = 1;
  runtime::VmRecord full = plain;
  full.snapshot = 3;
  full.sleep_reason = "it was idle for 5 ms";
  full.had_tap = true;
  RunOptions& options = full.options;
  options.id = "full";
  options.idle_policy = IdlePolicy{.max_idle_duration = Millis(5),
                                   .suspended_duration = Millis(0)};
  options.max_lifetime = Millis(1000);
  options.env = {{"A", "b"}};
  options.labels = {{"team", "red"}};
  options.egress = NetworkPolicy::Allow(
      {{.to = "10.0.0.0/8", .ports = {{1, 2}}, .protocol = Protocol::kUdp},
       {.to = "*.example.org"}});
  options.disks = {{.image = "/disk", .read_only = false, .serial = "s"}};
  options.on_release = OnRelease::kSuspend;
  options.after_crash = AfterCrash::kLastCheckpoint;
  std::vector<Seed> seeds;
  for (const auto& record : {plain, full}) {
    const auto bytes = runtime::EncodeVmRecord(record);
    if (bytes.ok()) seeds.push_back({record.options.id, *bytes});
  }
  runtime::SnapshotRecord snapshot;
  snapshot.id = "snap-1";
  snapshot.name = "ready";
  snapshot.labels = {{"team", "red"}};
  snapshot.image_name = "image";
  snapshot.image_major = 1;
  const auto bytes = runtime::EncodeSnapshotRecord(snapshot);
  if (bytes.ok()) seeds.push_back({"snapshot", *bytes});
  return seeds;
}

}  // namespace catnap::fuzz
