#ifndef CATNAP_LIB_MEMORY_MEMORY_IMAGE_H_
#define CATNAP_LIB_MEMORY_MEMORY_IMAGE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/page_range.h"
#include "memory/memory_file.h"

namespace catnap::memory {

// Pages of guest RAM that come from one place: the same pages of a file, or
// zeros. In bytes, multiples of 4 KiB.
struct Extent {
  static constexpr uint32_t kZero = UINT32_MAX;

  uint64_t offset = 0;
  uint64_t length = 0;
  uint32_t file = kZero;  // Index in MemoryImage::files().

  friend bool operator==(const Extent&, const Extent&) = default;
};

// What a guest's RAM holds when the guest starts. Immutable, and shared by all
// guests that start from it. Zeros are never a hole of a file: a guest's fault
// on a hole takes memory in the file, which all the guests would pay for.
//
// Thread-safe.
class MemoryImage {
 public:
  // Every extent costs a mapping in every guest, and the kernel allows a
  // process 65,530 unless told otherwise.
  static constexpr size_t kMaxExtents = 4096;
  // Zeros shorter than this may be bytes of a file, to save mappings.
  static constexpr uint64_t kMinZeroBytes = 64 << 10;

  // `extents` must cover [0, size) in order; each file must be of `size` bytes
  // and hold the pages that its extents name by the time a guest is mapped.
  // Neighbours from one place become one extent; files that no extent names
  // are dropped. `size` in bytes, a multiple of 4 KiB.
  // Errors: INVALID_ARGUMENT, also for more than kMaxExtents extents.
  static absl::StatusOr<std::shared_ptr<const MemoryImage>> Create(
      uint64_t size, std::vector<std::shared_ptr<const MemoryFile>> files,
      std::vector<Extent> extents);

  // All zeros.
  static absl::StatusOr<std::shared_ptr<const MemoryImage>> Zero(uint64_t size);

  // The content of `file`, which must be full: holes of at least kMinZeroBytes
  // become zero extents, shorter ones get memory.
  // Errors: RESOURCE_EXHAUSTED (more than kMaxExtents extents, memory).
  static absl::StatusOr<std::shared_ptr<const MemoryImage>> FromFile(
      std::shared_ptr<const MemoryFile> file);

  uint64_t size() const { return size_; }
  // Sorted, disjoint, complete, merged.
  const std::vector<Extent>& extents() const { return extents_; }
  const std::vector<std::shared_ptr<const MemoryFile>>& files() const {
    return files_;
  }
  // The file of `extent`, null for zeros. REQUIRES: an extent of this image.
  const MemoryFile* FileOf(const Extent& extent) const {
    return extent.file == Extent::kZero ? nullptr : files_[extent.file].get();
  }
  // The first extent that ends behind `offset`, for walks from there.
  // REQUIRES: offset < size().
  std::span<const Extent> ExtentsFrom(uint64_t offset) const;

  // Copies content out. Takes no memory in the files. Errors: OUT_OF_RANGE.
  absl::Status Read(uint64_t offset, std::span<uint8_t> into) const;

  // Bytes of memory that the files take, each file once.
  absl::StatusOr<uint64_t> AllocatedBytes() const;

  // Bytes that extents name in a file and that are a hole there. Once the
  // files are full this must be 0: then no guest can make them grow, and
  // AllocatedBytes() stays what it is.
  absl::StatusOr<uint64_t> HoleBytes() const;

 private:
  MemoryImage(uint64_t size,
              std::vector<std::shared_ptr<const MemoryFile>> files,
              std::vector<Extent> extents)
      : size_(size), files_(std::move(files)), extents_(std::move(extents)) {}

  const uint64_t size_;
  const std::vector<std::shared_ptr<const MemoryFile>> files_;
  const std::vector<Extent> extents_;
};

struct OverlayOptions {
  // The result has no more extents than this, if the base has not.
  // 1 to MemoryImage::kMaxExtents.
  size_t max_extents = 1024;
  // Down to this number of extents, gaps are closed while what that copies is
  // at most 1/8 of the ranges' bytes and 1 MiB: a mapping costs every launch
  // about 5 us, as much as the first touch of a page.
  size_t wanted_extents = 64;
};

struct Overlaid {
  std::shared_ptr<const MemoryImage> image;
  // Bytes of the base that were written into the file to close gaps.
  uint64_t materialized_bytes = 0;
};

// `base` with `ranges` of `file` over it. Where the result would have too many
// extents, the smallest gaps beside the ranges are closed: their content in
// `base` (zeros too) is copied into `file`, which must be writable then.
// `filled` are pages beside the ranges where the file has the base's content
// already; using those is free, and not a must.
//
// The ranges must be full, or be filled through the alias before a guest
// touches them. The caller seals the file.
// Errors: INVALID_ARGUMENT (sizes, ranges, options), FAILED_PRECONDITION (gaps
// must be closed and the file is sealed), RESOURCE_EXHAUSTED (memory).
absl::StatusOr<Overlaid> Overlay(const MemoryImage& base,
                                 const std::shared_ptr<MemoryFile>& file,
                                 std::span<const base::PageRange> ranges,
                                 const OverlayOptions& options = {},
                                 std::span<const base::PageRange> filled = {});

// The gaps that Overlay() would close now: pages of the base, not in `ranges`.
// Whoever copies them ahead passes them to Overlay() as `filled`.
// Errors: INVALID_ARGUMENT.
absl::StatusOr<std::vector<base::PageRange>> GapsToClose(
    const MemoryImage& base, std::span<const base::PageRange> ranges,
    const OverlayOptions& options = {});

// Copies `ranges` of `base` into `file`, zeros too, so that no hole is left.
// Errors: OUT_OF_RANGE, FAILED_PRECONDITION (sealed), RESOURCE_EXHAUSTED.
absl::Status CopyFromImage(const MemoryImage& base,
                           std::span<const base::PageRange> ranges,
                           MemoryFile& file);

}  // namespace catnap::memory

#endif  // CATNAP_LIB_MEMORY_MEMORY_IMAGE_H_
