#ifndef CATNAP_LIB_RUNTIME_SNAPSHOT_RECORD_H_
#define CATNAP_LIB_RUNTIME_SNAPSHOT_RECORD_H_

#include <chrono>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "catnap/call.h"
#include "catnap/image.h"
#include "disk/block_io.h"

namespace catnap::runtime {

// What is stored of a snapshot beside its guest's state.
struct SnapshotRecord {
  using WallTime = std::chrono::system_clock::time_point;

  std::string id{};
  std::string name{};  // Empty: none.
  Labels labels{};
  std::string image_name{};
  uint32_t image_major = 0;
  disk::DiskId image_disk_id{};
  CpuBaseline cpu_baseline = CpuBaseline::kX86_64V2;
  uint64_t memory_bytes = 0, own_bytes = 0, stored_bytes = 0;
  WallTime created_at{};
};

inline constexpr size_t kMaxSnapshotRecordBytes = 1 << 20;
inline constexpr char kSnapshotRecordName[] = "snapshot.catnap";
// Beside it: the guest's state and, where it was saved, the image.
inline constexpr char kSnapshotGuestName[] = "guest";
inline constexpr char kSnapshotImageName[] = "image";

// The bytes of snapshot.catnap; VM_FORMAT.md has the layout.
absl::StatusOr<std::vector<uint8_t>> EncodeSnapshotRecord(
    const SnapshotRecord& record);
// Reads them, whoever wrote them.
// Errors: DATA_LOSS; UNIMPLEMENTED, a newer format.
absl::StatusOr<SnapshotRecord> DecodeSnapshotRecord(
    std::span<const uint8_t> bytes);

}  // namespace catnap::runtime

#endif  // CATNAP_LIB_RUNTIME_SNAPSHOT_RECORD_H_
