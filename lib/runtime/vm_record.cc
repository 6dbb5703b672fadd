#include "runtime/vm_record.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <string_view>
#include <utility>

#include "base/byte_order.h"
#include "base/crc32c.h"
#include "base/status.h"
#include "runtime/image_record.h"
#include "runtime/network_policy.h"
#include "runtime/options.h"
#include "state/decoder.h"
#include "state/encoder.h"

namespace catnap::runtime {
namespace {

constexpr std::string_view kMagic = "CATNAPVM";
constexpr uint32_t kFormat = 1;
constexpr size_t kHeaderBytes = 16;
static_assert(kFormat == 1 && kHeaderBytes == 16,
              "on-disk format: read lib/runtime/VM_FORMAT.md first");

enum Field : uint32_t {
  kId = 1,
  kImageName = 2,
  kImageMajor = 3,
  kImageDiskId = 4,
  kSnapshot = 5,
  kSleepReason = 6,
  kCreatedAt = 7,
  kSuspendedAt = 8,
  kRunning = 9,
  kSuspended = 10,
  kVcpuMicroseconds = 11,
  kBytesWritten = 12,
  kBytesRead = 13,
  kStoredBytes = 14,
  kIdlePolicy = 15,
  kMaxLifetime = 16,
  kEnv = 17,
  kLabel = 18,
  kEgress = 19,
  kIngress = 20,
  kHadTap = 21,
  kDisk = 22,
  kOnRelease = 23,
  kAfterCrash = 24,
  kClock = 25,
  kMemory = 26,
  kTrustDomain = 27,
  kOwnBytes = 28,
};
enum IdleField : uint32_t {
  kIdleAfter = 1,
  kIdleSuspendedDuration = 2,
  kIdleAutoResume = 3,
  kIdleSources = 4,    // Bits, as SourceBit.
  kIdleThreshold = 5,  // Millionths of a CPU.
};
enum SourceBit : uint32_t {
  kSourceExec = 1 << 0,
  kSourceFiles = 1 << 1,
  kSourceEndpoint = 1 << 2,
  kSourceForwards = 1 << 3,
  kSourceServices = 1 << 4,
  kSourceOutbound = 1 << 5,
  kSourceHolds = 1 << 6,
  kSourceGuestCpu = 1 << 7,
};
enum LabelField : uint32_t { kLabelName = 1, kLabelValue = 2 };
enum EgressField : uint32_t { kEgressMode = 1, kEgressRule = 2 };
enum RuleField : uint32_t {
  kRuleTo = 1,
  kRulePorts = 2,  // first << 16 | last.
  kRuleProtocol = 3,
};
enum DiskField : uint32_t {
  kDiskPath = 1,
  kDiskReadOnly = 2,
  kDiskSerial = 3,
};

constexpr size_t kMaxText = 4096;
constexpr size_t kMaxVariable = 128 << 10;
constexpr size_t kMaxList = 1024;
constexpr double kMillion = 1e6;
// Longer ones are no times that this library wrote.
constexpr uint64_t kMaxMillis = uint64_t{1} << 43;
constexpr uint64_t kMaxMillionths = uint64_t{1} << 52;

uint64_t MillisOf(Millis time) {
  return time.count() > 0 ? static_cast<uint64_t>(time.count()) : 0;
}
uint64_t Millionths(double value) {
  constexpr auto kMost = static_cast<double>(kMaxMillionths);
  return static_cast<uint64_t>(
      std::llround(std::clamp(value * kMillion, 0.0, kMost)));
}
uint64_t WallMillis(VmRecord::WallTime time) {
  return MillisOf(std::chrono::duration_cast<Millis>(time.time_since_epoch()));
}

void EncodeIdle(state::StateEncoder& out, const IdlePolicy& policy) {
  const auto nested = out.Message(kIdlePolicy);
  out.Unsigned(kIdleAfter, MillisOf(policy.max_idle_duration));
  if (policy.suspended_duration.has_value()) {
    out.Unsigned(kIdleSuspendedDuration, MillisOf(*policy.suspended_duration));
  }
  out.Bool(kIdleAutoResume, policy.auto_resume_enabled);
  const ActivitySources& from = policy.activity;
  uint32_t bits = 0;
  const auto set = [&bits](bool is, SourceBit bit) { bits |= is ? bit : 0u; };
  set(from.exec, kSourceExec);
  set(from.files, kSourceFiles);
  set(from.endpoint, kSourceEndpoint);
  set(from.forwards, kSourceForwards);
  set(from.services, kSourceServices);
  set(from.outbound, kSourceOutbound);
  set(from.holds, kSourceHolds);
  set(from.guest_cpu, kSourceGuestCpu);
  out.Unsigned(kIdleSources, bits);
  out.Unsigned(kIdleThreshold, Millionths(from.guest_cpu_threshold));
}

void EncodeEgress(state::StateEncoder& out, const NetworkPolicy& policy) {
  const auto nested = out.Message(kEgress);
  out.Unsigned(kEgressMode, static_cast<uint64_t>(policy.mode()));
  for (const NetworkRule& rule : policy.rules()) {
    const auto one = out.Message(kEgressRule);
    out.Text(kRuleTo, rule.to);
    for (const PortRange& ports : rule.ports) {
      out.Unsigned(kRulePorts, uint32_t{ports.first} << 16 | ports.last);
    }
    out.Unsigned(kRuleProtocol, static_cast<uint64_t>(rule.protocol));
  }
}

bool ReadMillis(state::StateDecoder& in, Millis* time) {
  const uint64_t value = in.U64();
  *time = Millis(value <= kMaxMillis ? static_cast<int64_t>(value) : 0);
  return value <= kMaxMillis;
}

bool ReadWall(state::StateDecoder& in, VmRecord::WallTime* time) {
  Millis since{};
  if (!ReadMillis(in, &since)) return false;
  *time = VmRecord::WallTime(since);
  return true;
}

// An enumeration whose largest value is `most`.
template <typename T>
bool ReadEnum(state::StateDecoder& in, T most, T* value) {
  const uint8_t number = in.U8();
  if (number > static_cast<uint8_t>(most)) return false;
  *value = static_cast<T>(number);
  return true;
}

bool DecodeIdle(state::StateDecoder in, std::optional<IdlePolicy>* policy) {
  IdlePolicy& to = policy->emplace();
  bool ok = true;
  while (ok && in.Next()) {
    switch (in.id()) {
      case kIdleAfter:
        ok = ReadMillis(in, &to.max_idle_duration);
        break;
      case kIdleSuspendedDuration:
        ok = ReadMillis(in, &to.suspended_duration.emplace());
        break;
      case kIdleAutoResume:
        to.auto_resume_enabled = in.Bool();
        break;
      case kIdleSources: {
        const uint32_t bits = in.U32();
        ActivitySources& from = to.activity;
        from.exec = (bits & kSourceExec) != 0;
        from.files = (bits & kSourceFiles) != 0;
        from.endpoint = (bits & kSourceEndpoint) != 0;
        from.forwards = (bits & kSourceForwards) != 0;
        from.services = (bits & kSourceServices) != 0;
        from.outbound = (bits & kSourceOutbound) != 0;
        from.holds = (bits & kSourceHolds) != 0;
        from.guest_cpu = (bits & kSourceGuestCpu) != 0;
        break;
      }
      case kIdleThreshold:
        to.activity.guest_cpu_threshold =
            static_cast<double>(in.U32()) / kMillion;
        break;
      default:
        break;
    }
  }
  return ok && in.ok();
}

bool DecodeLabel(state::StateDecoder in, Labels* labels) {
  std::string name;
  std::string value;
  while (in.Next()) {
    if (in.id() == kLabelName) name = std::string(in.Text(kMaxText));
    if (in.id() == kLabelValue) value = std::string(in.Text(kMaxText));
  }
  if (!in.ok() || labels->size() >= kMaxList) return false;
  (*labels)[name] = value;
  return true;
}

bool DecodeRule(state::StateDecoder in, std::vector<NetworkRule>* rules) {
  if (rules->size() >= kMaxList) return false;
  NetworkRule rule;
  bool ok = true;
  while (ok && in.Next()) {
    switch (in.id()) {
      case kRuleTo:
        rule.to = std::string(in.Text(kMaxText));
        break;
      case kRulePorts: {
        const uint32_t ports = in.U32();
        ok = rule.ports.size() < kMaxList;
        if (ok) {
          rule.ports.push_back({.first = static_cast<uint16_t>(ports >> 16),
                                .last = static_cast<uint16_t>(ports)});
        }
        break;
      }
      case kRuleProtocol:
        ok = ReadEnum(in, Protocol::kAny, &rule.protocol);
        break;
      default:
        break;
    }
  }
  if (!ok || !in.ok()) return false;
  rules->push_back(std::move(rule));
  return true;
}

bool DecodeEgress(state::StateDecoder in, NetworkPolicy* policy) {
  NetworkPolicy::Mode mode = NetworkPolicy::Mode::kDenyAll;
  std::vector<NetworkRule> rules;
  bool ok = true;
  while (ok && in.Next()) {
    if (in.id() == kEgressMode) {
      ok = ReadEnum(in, NetworkPolicy::Mode::kUnrestricted, &mode);
    } else if (in.id() == kEgressRule) {
      ok = DecodeRule(in.Message(), &rules);
    }
  }
  if (!ok || !in.ok()) return false;
  switch (mode) {
    case NetworkPolicy::Mode::kDenyAll:
      *policy = NetworkPolicy::DenyAll();
      break;
    case NetworkPolicy::Mode::kAllow:
      *policy = NetworkPolicy::Allow(std::move(rules));
      break;
    case NetworkPolicy::Mode::kPublicInternet:
      *policy = NetworkPolicy::PublicInternet();
      break;
    case NetworkPolicy::Mode::kUnrestricted:
      *policy = NetworkPolicy(Unrestricted());
      break;
  }
  return true;
}

bool DecodeDisk(state::StateDecoder in, std::vector<Disk>* disks) {
  if (disks->size() >= kMaxList) return false;
  Disk disk;
  while (in.Next()) {
    if (in.id() == kDiskPath) disk.image = std::string(in.Text(kMaxText));
    if (in.id() == kDiskReadOnly) disk.read_only = in.Bool();
    if (in.id() == kDiskSerial) disk.serial = std::string(in.Text(kMaxText));
  }
  if (!in.ok()) return false;
  disks->push_back(std::move(disk));
  return true;
}

bool DecodeVariable(std::string_view text,
                    std::map<std::string, std::string>* env) {
  const size_t equals = text.find('=');
  if (equals == std::string_view::npos || env->size() >= kMaxList) {
    return false;
  }
  (*env)[std::string(text.substr(0, equals))] =
      std::string(text.substr(equals + 1));
  return true;
}

bool DecodeOption(state::StateDecoder& in, VmRecord* record) {
  RunOptions& options = record->options;
  switch (in.id()) {
    case kIdlePolicy:
      return DecodeIdle(in.Message(), &options.idle_policy);
    case kMaxLifetime:
      return ReadMillis(in, &options.max_lifetime.emplace());
    case kEnv:
      return DecodeVariable(in.Text(kMaxVariable), &options.env);
    case kLabel:
      return DecodeLabel(in.Message(), &options.labels);
    case kEgress:
      return DecodeEgress(in.Message(), &options.egress);
    case kIngress:
      return ReadEnum(in, Ingress::kHttpAndShell, &options.ingress);
    case kHadTap:
      record->had_tap = in.Bool();
      return true;
    case kDisk:
      return DecodeDisk(in.Message(), &options.disks);
    case kOnRelease:
      return ReadEnum(in, OnRelease::kTerminate, &options.on_release);
    case kAfterCrash:
      return ReadEnum(in, AfterCrash::kTerminate, &options.after_crash);
    case kClock:
      return ReadEnum(in, ClockOnResume::kAdvanceMonotonic, &options.clock);
    case kMemory:
      return ReadEnum(in, Prefetch::kLazy, &options.memory);
    case kTrustDomain:
      options.trust_domain = std::string(in.Text(kMaxText));
      return true;
    default:
      return true;
  }
}

// Reads the field that `in` stands at; false when it cannot be.
bool DecodeField(state::StateDecoder& in, VmRecord* record) {
  switch (in.id()) {
    case kId:
      record->options.id = std::string(in.Text(kMaxText));
      return true;
    case kImageName:
      record->image_name = std::string(in.Text(kMaxText));
      return true;
    case kImageMajor:
      record->image_major = in.U32();
      return true;
    case kImageDiskId:
      in.CopyBytes(record->image_disk_id);
      return true;
    case kSnapshot:
      record->snapshot = in.U64();
      return true;
    case kSleepReason:
      record->sleep_reason = std::string(in.Text(kMaxText));
      return true;
    case kCreatedAt:
      return ReadWall(in, &record->created_at);
    case kSuspendedAt:
      return ReadWall(in, &record->suspended_at);
    case kRunning:
      return ReadMillis(in, &record->running);
    case kSuspended:
      return ReadMillis(in, &record->suspended);
    case kVcpuMicroseconds: {
      const uint64_t value = in.U64();
      record->vcpu_seconds = static_cast<double>(value) / kMillion;
      return value <= kMaxMillionths;
    }
    case kBytesWritten:
      record->bytes_written = in.U64();
      return true;
    case kBytesRead:
      record->bytes_read = in.U64();
      return true;
    case kStoredBytes:
      record->stored_bytes = in.U64();
      return true;
    case kOwnBytes:
      record->own_bytes = in.U64();
      return true;
    default:
      return DecodeOption(in, record);
  }
}

absl::Status CheckVmRecord(const VmRecord& record) {
  CATNAP_RETURN_IF_ERROR(CheckName("id", record.options.id));
  CATNAP_RETURN_IF_ERROR(CheckName("image", record.image_name));
  if (record.image_major == 0) {
    return absl::InvalidArgumentError("image has no version");
  }
  // How many disks it may have is the image's; here it has what it had.
  ImageRecord image;
  image.extra_disk_slots = static_cast<uint32_t>(record.options.disks.size());
  CATNAP_RETURN_IF_ERROR(CheckRunOptions(record.options, image));
  return CompilePolicy(record.options.egress).status();
}

}  // namespace

absl::StatusOr<std::vector<uint8_t>> EncodeVmRecord(const VmRecord& record) {
  const RunOptions& options = record.options;
  std::vector<uint8_t> bytes(kHeaderBytes, 0);
  state::StateEncoder out(&bytes);
  out.Text(kId, options.id);
  out.Text(kImageName, record.image_name);
  out.Unsigned(kImageMajor, record.image_major);
  out.Bytes(kImageDiskId, record.image_disk_id);
  out.Unsigned(kSnapshot, record.snapshot);
  out.Text(kSleepReason, record.sleep_reason.substr(0, kMaxText));
  out.Unsigned(kCreatedAt, WallMillis(record.created_at));
  out.Unsigned(kSuspendedAt, WallMillis(record.suspended_at));
  out.Unsigned(kRunning, MillisOf(record.running));
  out.Unsigned(kSuspended, MillisOf(record.suspended));
  out.Unsigned(kVcpuMicroseconds, Millionths(record.vcpu_seconds));
  out.Unsigned(kBytesWritten, record.bytes_written);
  out.Unsigned(kBytesRead, record.bytes_read);
  out.Unsigned(kStoredBytes, record.stored_bytes);
  out.Unsigned(kOwnBytes, record.own_bytes);
  if (options.idle_policy.has_value()) EncodeIdle(out, *options.idle_policy);
  if (options.max_lifetime.has_value()) {
    out.Unsigned(kMaxLifetime, MillisOf(*options.max_lifetime));
  }
  for (const auto& [name, value] : options.env) {
    out.Text(kEnv, fmt::format("{}={}", name, value));
  }
  for (const auto& [name, value] : options.labels) {
    const auto nested = out.Message(kLabel);
    out.Text(kLabelName, name);
    out.Text(kLabelValue, value);
  }
  EncodeEgress(out, options.egress);
  out.Unsigned(kIngress, static_cast<uint64_t>(options.ingress));
  out.Bool(kHadTap, record.had_tap);
  for (const Disk& disk : options.disks) {
    const auto nested = out.Message(kDisk);
    out.Text(kDiskPath, disk.image.string());
    out.Bool(kDiskReadOnly, disk.read_only);
    out.Text(kDiskSerial, disk.serial);
  }
  out.Unsigned(kOnRelease, static_cast<uint64_t>(options.on_release));
  out.Unsigned(kAfterCrash, static_cast<uint64_t>(options.after_crash));
  out.Unsigned(kClock, static_cast<uint64_t>(options.clock));
  out.Unsigned(kMemory, static_cast<uint64_t>(options.memory));
  out.Text(kTrustDomain, options.trust_domain);
  CATNAP_RETURN_IF_ERROR(out.status());
  if (bytes.size() > kMaxVmRecordBytes) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "the MicroVM's options take {} bytes, at most {} are allowed",
                 bytes.size(), kMaxVmRecordBytes);
  }
  std::memcpy(bytes.data(), kMagic.data(), kMagic.size());
  base::StoreLe(&bytes[8], kFormat);
  base::StoreLe(&bytes[12],
                base::Crc32c(std::span(bytes).subspan(kHeaderBytes)));
  return bytes;
}

absl::StatusOr<VmRecord> DecodeVmRecord(std::span<const uint8_t> bytes) {
  if (bytes.size() < kHeaderBytes || bytes.size() > kMaxVmRecordBytes ||
      std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) != 0) {
    return absl::DataLossError("not a MicroVM's record");
  }
  const auto format = base::LoadLe<uint32_t>(&bytes[8]);
  if (format != kFormat) {
    return Error(absl::StatusCode::kUnimplemented,
                 "a MicroVM's record of format {}; this library reads {}",
                 format, kFormat);
  }
  const auto fields = bytes.subspan(kHeaderBytes);
  if (base::LoadLe<uint32_t>(&bytes[12]) != base::Crc32c(fields)) {
    return absl::DataLossError("a MicroVM's record with a wrong checksum");
  }
  VmRecord record;
  state::StateDecoder in(fields);
  while (in.Next()) {
    if (!DecodeField(in, &record)) {
      return Error(absl::StatusCode::kDataLoss,
                   "a MicroVM's record with a bad field {}", in.id());
    }
  }
  CATNAP_RETURN_IF_ERROR(in.status());
  const absl::Status checked = CheckVmRecord(record);
  if (!checked.ok()) {
    return Error(absl::StatusCode::kDataLoss, "a MicroVM's record whose {}",
                 std::string(checked.message()));
  }
  return record;
}

}  // namespace catnap::runtime
