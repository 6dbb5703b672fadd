#include "disk/layer_format.h"

#include <algorithm>
#include <cstring>

#include "base/byte_order.h"
#include "base/checked.h"
#include "base/crc32c.h"
#include "base/status.h"

namespace catnap::disk {
namespace {

using base::LoadLe;
using base::StoreLe;

constexpr std::array<uint8_t, 8> kMagic = {'C', 'A', 'T', 'N',
                                           'A', 'P', 'L', '\n'};
constexpr std::array<uint8_t, 8> kCommitMagic = {'C', 'A', 'T', 'N',
                                                 'A', 'P', 'C', '\n'};

// Offsets in the header and in a commit record.
constexpr size_t kVersionAt = 8;
constexpr size_t kClusterBytesAt = 12;
constexpr size_t kBlockBytesAt = 16;
constexpr size_t kParentKindAt = 20;
constexpr size_t kIdAt = 24;
constexpr size_t kParentIdAt = 40;
constexpr size_t kParentBytesAt = 56;
constexpr size_t kHeaderEndsAt = 64;
constexpr size_t kSequenceAt = 8;
constexpr size_t kVirtualBytesAt = 16;
constexpr size_t kRootAt = 24;
constexpr size_t kFlagsAt = 32;
constexpr size_t kCommitEndsAt = 36;
// Parent kinds.
constexpr uint32_t kParentNone = 0;
constexpr uint32_t kParentDisk = 1;
constexpr size_t kCrcAt = 508;  // Of both, over all before it.

static_assert(kVersionAt == 8 && kClusterBytesAt == 12 && kBlockBytesAt == 16 &&
                  kParentKindAt == 20 && kIdAt == 24 && kParentIdAt == 40 &&
                  kParentBytesAt == 56 && kSequenceAt == 8 &&
                  kVirtualBytesAt == 16 && kRootAt == 24 && kFlagsAt == 32 &&
                  kCrcAt == 508 && kParentNone == 0 && kParentDisk == 1,
              "on-disk format: read lib/disk/FORMAT.md first");

absl::Status DataLoss(const char* what) {
  return Error(absl::StatusCode::kDataLoss, "layer file: {}", what);
}

bool CrcMatches(std::span<const uint8_t> bytes) {
  return LoadLe<uint32_t>(&bytes[kCrcAt]) == base::Crc32c(bytes.first(kCrcAt));
}

bool AllZero(std::span<const uint8_t> bytes) {
  return std::all_of(bytes.begin(), bytes.end(),
                     [](uint8_t byte) { return byte == 0; });
}

}  // namespace

void EncodeHeader(const LayerHeader& header,
                  std::span<uint8_t, kHeaderBytes> into) {
  std::fill(into.begin(), into.end(), uint8_t{0});
  std::memcpy(into.data(), kMagic.data(), kMagic.size());
  StoreLe<uint32_t>(&into[kVersionAt], kLayerVersion);
  StoreLe<uint32_t>(&into[kClusterBytesAt], kClusterBytes);
  StoreLe<uint32_t>(&into[kBlockBytesAt], kBlockBytes);
  StoreLe<uint32_t>(&into[kParentKindAt],
                    header.has_parent ? kParentDisk : kParentNone);
  std::memcpy(&into[kIdAt], header.id.data(), header.id.size());
  std::memcpy(&into[kParentIdAt], header.parent_id.data(),
              header.parent_id.size());
  StoreLe<uint64_t>(&into[kParentBytesAt], header.parent_bytes);
  StoreLe<uint32_t>(&into[kCrcAt], base::Crc32c(into.first(kCrcAt)));
}

absl::StatusOr<LayerHeader> DecodeHeader(
    std::span<const uint8_t, kHeaderBytes> bytes) {
  if (std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) != 0) {
    return DataLoss("no magic at offset 0, so it is not a layer");
  }
  if (!CrcMatches(bytes)) return DataLoss("checksum of the header is wrong");
  const auto version = LoadLe<uint32_t>(&bytes[kVersionAt]);
  const auto cluster_bytes = LoadLe<uint32_t>(&bytes[kClusterBytesAt]);
  const auto block_bytes = LoadLe<uint32_t>(&bytes[kBlockBytesAt]);
  const auto kind = LoadLe<uint32_t>(&bytes[kParentKindAt]);
  if (version != kLayerVersion || cluster_bytes != kClusterBytes ||
      block_bytes != kBlockBytes || kind > kParentDisk ||
      !AllZero(bytes.subspan(kHeaderEndsAt, kCrcAt - kHeaderEndsAt))) {
    return Error(absl::StatusCode::kUnimplemented,
                 "layer file of version {} with clusters of {} bytes, blocks "
                 "of {} bytes and parent kind {}: this library reads version "
                 "{} with {}, {} and at most {}",
                 version, cluster_bytes, block_bytes, kind, kLayerVersion,
                 kClusterBytes, kBlockBytes, kParentDisk);
  }
  LayerHeader header;
  header.has_parent = kind == kParentDisk;
  std::memcpy(header.id.data(), &bytes[kIdAt], header.id.size());
  std::memcpy(header.parent_id.data(), &bytes[kParentIdAt],
              header.parent_id.size());
  header.parent_bytes = LoadLe<uint64_t>(&bytes[kParentBytesAt]);
  if (!base::IsAligned<uint64_t>(header.parent_bytes, kSectorBytes) ||
      (!header.has_parent && header.parent_bytes != 0)) {
    return DataLoss("the parent's size in the header is impossible");
  }
  return header;
}

void EncodeCommit(const CommitRecord& commit,
                  std::span<uint8_t, kCommitBytes> into) {
  std::fill(into.begin(), into.end(), uint8_t{0});
  std::memcpy(into.data(), kCommitMagic.data(), kCommitMagic.size());
  StoreLe<uint64_t>(&into[kSequenceAt], commit.sequence);
  StoreLe<uint64_t>(&into[kVirtualBytesAt], commit.virtual_bytes);
  StoreLe<uint64_t>(&into[kRootAt], PackPointer(commit.root));
  StoreLe<uint32_t>(&into[kFlagsAt], commit.frozen ? kCommitFlagFrozen : 0);
  StoreLe<uint32_t>(&into[kCrcAt], base::Crc32c(into.first(kCrcAt)));
}

absl::StatusOr<CommitRecord> DecodeCommit(
    std::span<const uint8_t, kCommitBytes> bytes) {
  if (std::memcmp(bytes.data(), kCommitMagic.data(), kCommitMagic.size()) !=
          0 ||
      !CrcMatches(bytes)) {
    return DataLoss("a commit record is damaged");
  }
  CommitRecord commit;
  commit.sequence = LoadLe<uint64_t>(&bytes[kSequenceAt]);
  commit.virtual_bytes = LoadLe<uint64_t>(&bytes[kVirtualBytesAt]);
  commit.root = UnpackPointer(LoadLe<uint64_t>(&bytes[kRootAt]));
  const auto flags = LoadLe<uint32_t>(&bytes[kFlagsAt]);
  commit.frozen = (flags & kCommitFlagFrozen) != 0;
  // The last sequence is left out: a commit after it would be the first again.
  if ((flags & ~kCommitFlagFrozen) != 0 || commit.sequence == 0 ||
      commit.sequence == UINT64_MAX || commit.virtual_bytes == 0 ||
      commit.virtual_bytes > kMaxVirtualBytes ||
      !base::IsAligned<uint64_t>(commit.virtual_bytes, kSectorBytes) ||
      !AllZero(bytes.subspan(kCommitEndsAt, kCrcAt - kCommitEndsAt))) {
    return DataLoss("a commit record has impossible values");
  }
  return commit;
}

uint64_t PackEntry(const MapEntry& entry) {
  constexpr uint64_t kFirstData = uint64_t{1} << 32;
  constexpr uint64_t kFirstZero = uint64_t{1} << 48;
  return entry.cluster + entry.data_bits * kFirstData +
         entry.zero_bits * kFirstZero;
}

MapEntry UnpackEntry(uint64_t packed) {
  return {static_cast<uint32_t>(packed), static_cast<uint16_t>(packed >> 32),
          static_cast<uint16_t>(packed >> 48)};
}

uint64_t PackPointer(PagePointer pointer) {
  return uint64_t{pointer.page} | uint64_t{pointer.crc32c} << 32;
}

PagePointer UnpackPointer(uint64_t packed) {
  return {static_cast<uint32_t>(packed), static_cast<uint32_t>(packed >> 32)};
}

}  // namespace catnap::disk
