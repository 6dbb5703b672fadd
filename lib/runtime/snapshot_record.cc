#include "runtime/snapshot_record.h"

#include <algorithm>
#include <cstring>
#include <string_view>
#include <utility>

#include "base/byte_order.h"
#include "base/crc32c.h"
#include "base/status.h"
#include "runtime/image_record.h"
#include "state/decoder.h"
#include "state/encoder.h"

namespace catnap::runtime {
namespace {

constexpr std::string_view kMagic = "CATNAPSR";
constexpr uint32_t kFormat = 1;
constexpr size_t kHeaderBytes = 16;
static_assert(kFormat == 1 && kHeaderBytes == 16,
              "on-disk format: read lib/runtime/VM_FORMAT.md first");

enum Field : uint32_t {
  kId = 1,
  kName = 2,
  kLabel = 3,
  kImageName = 4,
  kImageMajor = 5,
  kImageDiskId = 6,
  kBaseline = 7,
  kMemoryBytes = 8,
  kOwnBytes = 9,
  kStoredBytes = 10,
  kCreatedAt = 11,
};
enum LabelField : uint32_t { kLabelName = 1, kLabelValue = 2 };

constexpr size_t kMaxText = 4096;
constexpr size_t kMaxLabels = 64;
constexpr uint64_t kMaxMillis = uint64_t{1} << 43;

bool DecodeLabel(state::StateDecoder in, Labels* labels) {
  std::string name;
  std::string value;
  while (in.Next()) {
    if (in.id() == kLabelName) name = std::string(in.Text(kMaxText));
    if (in.id() == kLabelValue) value = std::string(in.Text(kMaxText));
  }
  if (!in.ok() || labels->size() >= kMaxLabels) return false;
  (*labels)[name] = value;
  return true;
}

bool DecodeField(state::StateDecoder& in, SnapshotRecord* record) {
  switch (in.id()) {
    case kId:
      record->id = std::string(in.Text(kMaxText));
      return true;
    case kName:
      record->name = std::string(in.Text(kMaxText));
      return true;
    case kLabel:
      return DecodeLabel(in.Message(), &record->labels);
    case kImageName:
      record->image_name = std::string(in.Text(kMaxText));
      return true;
    case kImageMajor:
      record->image_major = in.U32();
      return true;
    case kImageDiskId:
      in.CopyBytes(record->image_disk_id);
      return true;
    case kBaseline: {
      const uint8_t baseline = in.U8();
      record->cpu_baseline = static_cast<CpuBaseline>(baseline);
      return baseline <= static_cast<uint8_t>(CpuBaseline::kHost);
    }
    case kMemoryBytes:
      record->memory_bytes = in.U64();
      return true;
    case kOwnBytes:
      record->own_bytes = in.U64();
      return true;
    case kStoredBytes:
      record->stored_bytes = in.U64();
      return true;
    case kCreatedAt: {
      const uint64_t millis = in.U64();
      if (millis > kMaxMillis) return false;
      record->created_at =
          SnapshotRecord::WallTime(Millis(static_cast<int64_t>(millis)));
      return true;
    }
    default:
      return true;
  }
}

absl::Status CheckRecord(const SnapshotRecord& record) {
  CATNAP_RETURN_IF_ERROR(CheckName("id", record.id));
  if (!record.name.empty()) {
    CATNAP_RETURN_IF_ERROR(CheckName("name", record.name));
  }
  CATNAP_RETURN_IF_ERROR(CheckName("image", record.image_name));
  if (record.image_major == 0) {
    return absl::InvalidArgumentError("image has no version");
  }
  return CheckLabels(record.labels);
}

}  // namespace

absl::StatusOr<std::vector<uint8_t>> EncodeSnapshotRecord(
    const SnapshotRecord& record) {
  std::vector<uint8_t> bytes(kHeaderBytes, 0);
  state::StateEncoder out(&bytes);
  out.Text(kId, record.id);
  out.Text(kName, record.name);
  for (const auto& [name, value] : record.labels) {
    const auto nested = out.Message(kLabel);
    out.Text(kLabelName, name);
    out.Text(kLabelValue, value);
  }
  out.Text(kImageName, record.image_name);
  out.Unsigned(kImageMajor, record.image_major);
  out.Bytes(kImageDiskId, record.image_disk_id);
  out.Unsigned(kBaseline, static_cast<uint64_t>(record.cpu_baseline));
  out.Unsigned(kMemoryBytes, record.memory_bytes);
  out.Unsigned(kOwnBytes, record.own_bytes);
  out.Unsigned(kStoredBytes, record.stored_bytes);
  const auto since =
      std::chrono::duration_cast<Millis>(record.created_at.time_since_epoch());
  out.Unsigned(kCreatedAt,
               static_cast<uint64_t>(std::max<int64_t>(since.count(), 0)));
  CATNAP_RETURN_IF_ERROR(out.status());
  std::memcpy(bytes.data(), kMagic.data(), kMagic.size());
  base::StoreLe(&bytes[8], kFormat);
  base::StoreLe(&bytes[12],
                base::Crc32c(std::span(bytes).subspan(kHeaderBytes)));
  return bytes;
}

absl::StatusOr<SnapshotRecord> DecodeSnapshotRecord(
    std::span<const uint8_t> bytes) {
  if (bytes.size() < kHeaderBytes || bytes.size() > kMaxSnapshotRecordBytes ||
      std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) != 0) {
    return absl::DataLossError("not a snapshot's record");
  }
  const auto format = base::LoadLe<uint32_t>(&bytes[8]);
  if (format != kFormat) {
    return Error(absl::StatusCode::kUnimplemented,
                 "a snapshot's record of format {}; this library reads {}",
                 format, kFormat);
  }
  const auto fields = bytes.subspan(kHeaderBytes);
  if (base::LoadLe<uint32_t>(&bytes[12]) != base::Crc32c(fields)) {
    return absl::DataLossError("a snapshot's record with a wrong checksum");
  }
  SnapshotRecord record;
  state::StateDecoder in(fields);
  while (in.Next()) {
    if (!DecodeField(in, &record)) {
      return Error(absl::StatusCode::kDataLoss,
                   "a snapshot's record with a bad field {}", in.id());
    }
  }
  CATNAP_RETURN_IF_ERROR(in.status());
  const absl::Status checked = CheckRecord(record);
  if (!checked.ok()) {
    return Error(absl::StatusCode::kDataLoss, "a snapshot's record whose {}",
                 std::string(checked.message()));
  }
  return record;
}

}  // namespace catnap::runtime
