#include "runtime/options.h"

#include <csignal>

#include "base/status.h"

namespace catnap::runtime {
namespace {

// Of zstd; higher ones take too much memory.
constexpr int kMinCompressionLevel = -7;
constexpr int kMaxCompressionLevel = 19;
constexpr int kMaxIoThreads = 64;
constexpr size_t kMaxSerialBytes = 20;
constexpr double kMaxCpuThreshold = 32;

absl::Status NotYet(const char* option) {
  return Error(absl::StatusCode::kUnimplemented,
               "{} is not in this version of the library: leave it unset",
               option);
}

}  // namespace

absl::Status CheckHostOptions(const HostOptions& options) {
  if (options.memory_quota_bytes != 0) return NotYet("memory_quota_bytes");
  if (options.storage_quota_bytes != 0) return NotYet("storage_quota_bytes");
  if (options.compression_level < kMinCompressionLevel ||
      options.compression_level > kMaxCompressionLevel) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "compression_level is {}, must be {} to {}",
                 options.compression_level, kMinCompressionLevel,
                 kMaxCompressionLevel);
  }
  if (options.io_threads < 0 || options.io_threads > kMaxIoThreads) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "io_threads is {}, must be 0 to {}", options.io_threads,
                 kMaxIoThreads);
  }
  if (options.kick_signal != 0 &&
      (options.kick_signal < SIGRTMIN || options.kick_signal > SIGRTMAX)) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "kick_signal is {}, must be 0 or a real-time signal, {} to {}",
                 options.kick_signal, SIGRTMIN, SIGRTMAX);
  }
  return absl::OkStatus();
}

absl::Status CheckIdlePolicy(const IdlePolicy& policy) {
  if (policy.max_idle_duration.count() <= 0) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "idle_policy.max_idle_duration is {} ms, must be at least 1",
                 policy.max_idle_duration.count());
  }
  if (policy.suspended_duration.has_value() &&
      policy.suspended_duration->count() < 0) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "idle_policy.suspended_duration is {} ms, must be at least 0",
                 policy.suspended_duration->count());
  }
  const double threshold = policy.activity.guest_cpu_threshold;
  if (!(threshold > 0 && threshold <= kMaxCpuThreshold)) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "idle_policy.activity.guest_cpu_threshold is {}, must be "
                 "above 0 and at most {} CPUs",
                 threshold, kMaxCpuThreshold);
  }
  return absl::OkStatus();
}

absl::Status CheckRunOptions(const RunOptions& options,
                             const ImageRecord& image) {
  if (!options.id.empty()) {
    CATNAP_RETURN_IF_ERROR(CheckName("id", options.id));
  }
  if (options.idle_policy.has_value()) {
    CATNAP_RETURN_IF_ERROR(CheckIdlePolicy(*options.idle_policy));
  }
  if (options.max_lifetime.has_value() && options.max_lifetime->count() <= 0) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "max_lifetime is {} ms, must be at least 1",
                 options.max_lifetime->count());
  }
  if (!options.run_payload.empty()) return NotYet("run_payload");
  if (options.cpu_limit.has_value()) return NotYet("cpu_limit");
  if (options.checkpoint_interval.has_value()) {
    return NotYet("checkpoint_interval");
  }
  if (options.clock != ClockOnResume::kFreezeMonotonic) return NotYet("clock");
  if (!options.trust_domain.empty()) return NotYet("trust_domain");
  if (options.quota_wait.has_value()) return NotYet("quota_wait");
  if (!options.suspend_on_pressure) return NotYet("suspend_on_pressure");
  CATNAP_RETURN_IF_ERROR(CheckEnvironment("env", options.env));
  CATNAP_RETURN_IF_ERROR(CheckLabels(options.labels));
  if (options.disks.size() > image.extra_disk_slots) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "disks has {} entries, the image has extra_disk_slots for {}",
                 options.disks.size(), image.extra_disk_slots);
  }
  for (const Disk& disk : options.disks) {
    if (disk.serial.size() > kMaxSerialBytes) {
      return Error(absl::StatusCode::kInvalidArgument,
                   "a disk's serial has {} bytes, at most {} are allowed",
                   disk.serial.size(), kMaxSerialBytes);
    }
  }
  for (const auto& [port, service] : options.services) {
    if (port == 0 || service == nullptr) {
      return Error(
          absl::StatusCode::kInvalidArgument, "services has port {} {}", port,
          service == nullptr ? "without a service" : ", must be 1 to 65535");
    }
  }
  return absl::OkStatus();
}

}  // namespace catnap::runtime
