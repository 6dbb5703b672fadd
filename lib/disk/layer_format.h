#ifndef CATNAP_LIB_DISK_LAYER_FORMAT_H_
#define CATNAP_LIB_DISK_LAYER_FORMAT_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "disk/block_io.h"

namespace catnap::disk {

// The bytes of a layer file; FORMAT.md explains them.

inline constexpr uint32_t kLayerVersion = 1;
inline constexpr uint64_t kClusterBytes = 64 << 10;
inline constexpr uint64_t kBlockBytes = 4 << 10;
inline constexpr uint32_t kBlocksPerCluster = kClusterBytes / kBlockBytes;
inline constexpr uint64_t kPageBytes = 4 << 10;
inline constexpr uint32_t kPagesPerCluster = kClusterBytes / kPageBytes;
inline constexpr uint64_t kEntriesPerPage = kPageBytes / 8;
inline constexpr uint64_t kPointersPerPage = kPageBytes / 8;
// Disk that one map page describes, and that the root page can reach.
inline constexpr uint64_t kMapPageCovers = kEntriesPerPage * kClusterBytes;
inline constexpr uint64_t kMaxVirtualBytes =
    kPointersPerPage * kPointersPerPage * kMapPageCovers;
// Page 0 is the header, pages 1 and 2 begin with a commit record each.
inline constexpr uint32_t kFirstFreePage = 3;
inline constexpr size_t kHeaderBytes = 512;
inline constexpr size_t kCommitBytes = 512;
inline constexpr uint32_t kCommitFlagFrozen = 1;

static_assert(kLayerVersion == 1 && kClusterBytes == 65536 &&
                  kBlockBytes == 4096 && kPageBytes == 4096 &&
                  kHeaderBytes == 512 && kCommitBytes == 512 &&
                  kFirstFreePage == 3 && kCommitFlagFrozen == 1,
              "on-disk format: read lib/disk/FORMAT.md first");
static_assert(kMaxVirtualBytes == uint64_t{8} << 40,
              "on-disk format: read lib/disk/FORMAT.md first");

// Never changes after the file was made.
struct LayerHeader {
  DiskId id{};
  // Without one, blocks that were never written are zero.
  bool has_parent = false;
  DiskId parent_id{};
  uint64_t parent_bytes = 0;  // The parent's capacity.

  friend bool operator==(const LayerHeader&, const LayerHeader&) = default;
};

// Names a page of the file with its content: 0 is none.
struct PagePointer {
  uint32_t page = 0;  // Offset in the file, in pages.
  uint32_t crc32c = 0;

  friend bool operator==(const PagePointer&, const PagePointer&) = default;
};

// One state of the whole layer. The valid one with the highest sequence rules.
struct CommitRecord {
  uint64_t sequence = 0;
  uint64_t virtual_bytes = 0;
  PagePointer root;
  bool frozen = false;

  friend bool operator==(const CommitRecord&, const CommitRecord&) = default;
};

// Where a cluster's blocks are. A block with neither bit is the parent's.
struct MapEntry {
  uint32_t cluster = 0;    // In the file; 0 is none.
  uint16_t data_bits = 0;  // Blocks that `cluster` holds; bit 0 is the first.
  uint16_t zero_bits = 0;  // Blocks that read as zeroes.

  friend bool operator==(const MapEntry&, const MapEntry&) = default;
};

inline constexpr uint64_t CommitOffset(uint64_t sequence) {
  return (1 + sequence % 2) * kPageBytes;
}

void EncodeHeader(const LayerHeader& header,
                  std::span<uint8_t, kHeaderBytes> into);
// Errors: DATA_LOSS; UNIMPLEMENTED, a version or a geometry of a newer writer.
absl::StatusOr<LayerHeader> DecodeHeader(
    std::span<const uint8_t, kHeaderBytes> bytes);

void EncodeCommit(const CommitRecord& commit,
                  std::span<uint8_t, kCommitBytes> into);
// Errors: DATA_LOSS.
absl::StatusOr<CommitRecord> DecodeCommit(
    std::span<const uint8_t, kCommitBytes> bytes);

uint64_t PackEntry(const MapEntry& entry);
MapEntry UnpackEntry(uint64_t packed);
uint64_t PackPointer(PagePointer pointer);
PagePointer UnpackPointer(uint64_t packed);

}  // namespace catnap::disk

#endif  // CATNAP_LIB_DISK_LAYER_FORMAT_H_
