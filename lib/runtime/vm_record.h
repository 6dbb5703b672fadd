#ifndef CATNAP_LIB_RUNTIME_VM_RECORD_H_
#define CATNAP_LIB_RUNTIME_VM_RECORD_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "catnap/run_options.h"
#include "disk/block_io.h"

namespace catnap::runtime {

// What is stored of a MicroVM beside its memory and its disk.
struct VmRecord {
  using WallTime = std::chrono::system_clock::time_point;

  std::string image_name{};
  uint32_t image_major = 0;
  disk::DiskId image_disk_id{};  // Of the image's root disk.
  // What can be stored of them, `id` included. A tap, services and logs are the
  // host process's.
  RunOptions options{};
  bool had_tap = false;
  // Directory sN is its newest snapshot; 0: there is none.
  uint64_t snapshot = 0;
  std::string sleep_reason{};  // Why it sleeps; for people.
  WallTime created_at{};
  WallTime suspended_at{};  // When that snapshot was taken.
  // Until that snapshot.
  Millis running{0}, suspended{0};
  double vcpu_seconds = 0;
  uint64_t bytes_written = 0, bytes_read = 0, stored_bytes = 0;
  // Of its memory then, what its image does not share.
  uint64_t own_bytes = 0;
};

inline constexpr size_t kMaxVmRecordBytes = 4 << 20;
inline constexpr char kVmRecordName[] = "vm.catnap";

// The bytes of vm.catnap; VM_FORMAT.md has the layout.
// Errors: INVALID_ARGUMENT, more than kMaxVmRecordBytes.
absl::StatusOr<std::vector<uint8_t>> EncodeVmRecord(const VmRecord& record);

// Reads them, whoever wrote them. What it returns is valid as options of
// MicroVM::Run() are.
// Errors: DATA_LOSS; UNIMPLEMENTED, a newer format.
absl::StatusOr<VmRecord> DecodeVmRecord(std::span<const uint8_t> bytes);

}  // namespace catnap::runtime

#endif  // CATNAP_LIB_RUNTIME_VM_RECORD_H_
