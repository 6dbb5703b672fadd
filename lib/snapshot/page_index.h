#ifndef CATNAP_LIB_SNAPSHOT_PAGE_INDEX_H_
#define CATNAP_LIB_SNAPSHOT_PAGE_INDEX_H_

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/page_range.h"
#include "snapshot/format.h"

namespace catnap::snapshot {

// What a page of RAM is.
enum class PageKind : uint8_t {
  kZero = 0,
  kParent = 1,  // As in the image.
  kStored = 2,  // In a frame.
};

static_assert(static_cast<int>(PageKind::kZero) == 0 &&
                  static_cast<int>(PageKind::kParent) == 1 &&
                  static_cast<int>(PageKind::kStored) == 2,
              "on-disk format: read lib/snapshot/FORMAT.md first");

// A file of frames beside memory.catnap.
struct ChunkFile {
  std::string name;
  Id id{};
  uint64_t file_bytes = 0;
  // Frames that begin before this offset hold the hot set: the pages that are
  // touched first after a restore, in that order.
  uint64_t hot_bytes = 0;

  friend bool operator==(const ChunkFile&, const ChunkFile&) = default;
};

// A run of compressed bytes, one zstd frame. Its pages have places, called
// slots: those of a snapshot's first frame are 0 to pages - 1, those of the
// next go on from there.
struct Frame {
  uint32_t file = 0;  // Index in `files`.
  uint32_t bytes = 0;
  uint64_t offset = 0;
  uint32_t crc32c = 0;  // Of the compressed bytes.
  uint32_t pages = 0;
  uint32_t first_slot = 0;  // The sum of `pages` of all frames before.

  friend bool operator==(const Frame&, const Frame&) = default;
};

// Pages of RAM that follow each other and are of one kind. Stored ones take
// slots that follow each other, across the borders of frames.
struct PageRun {
  uint32_t page = 0;
  uint32_t pages = 0;
  PageKind kind = PageKind::kZero;
  uint32_t slot = 0;  // Of the first page, when stored.

  friend bool operator==(const PageRun&, const PageRun&) = default;
};

// Where each page of a guest's RAM is. One from DecodePageIndex() or
// OverlayPages() keeps these promises: frames are in the order of their files
// and offsets, lie in their files and do not overlap; runs cover RAM without
// gaps or overlap, are as long as they can be, and no slot has two pages; each
// file has a frame and each frame a page.
struct PageIndex {
  uint64_t ram_pages = 0;
  bool has_parent = false;
  std::vector<ChunkFile> files;
  std::vector<Frame> frames;
  std::vector<PageRun> runs;

  friend bool operator==(const PageIndex&, const PageIndex&) = default;
};

std::vector<uint8_t> EncodePageIndex(const PageIndex& index);

// `ram_pages` is at most kMaxRamBytes / kPageBytes. Memory: about 16 times
// `bytes` at most. Errors: DATA_LOSS.
absl::StatusOr<PageIndex> DecodePageIndex(std::span<const uint8_t> bytes,
                                          uint64_t ram_pages, bool has_parent);

// The pages of one kind.
std::vector<base::PageRange> RangesOf(const PageIndex& index, PageKind kind);

// The pages that this snapshot decides, whatever its image holds: stored and,
// when there is an image, zero.
std::vector<base::PageRange> OwnRanges(const PageIndex& index);

// All pages that are in one of the two, each a list in the order of offsets
// without overlap; so is the result.
std::vector<base::PageRange> UnionOf(std::span<const base::PageRange> a,
                                     std::span<const base::PageRange> b);

// The stored runs in the order of their slots.
std::vector<PageRun> RunsBySlot(const PageIndex& index);

// The frame that has this slot. REQUIRES: there is one.
size_t FrameOfSlot(const PageIndex& index, uint32_t slot);

// What a new chunk file adds to an index.
struct NewPages {
  ChunkFile file;             // Unused when there are no frames.
  std::vector<Frame> frames;  // `file` and `first_slot` are not looked at.
  std::vector<PageRun> runs;  // By page; slots count from frames[0].
};

// `base` with the pages of `added` instead of its own. Frames and files that
// no page needs any more are left out. Without `base`: as if all its pages were
// zero or, with `has_parent`, the image's.
PageIndex OverlayPages(const PageIndex* base, uint64_t ram_pages,
                       bool has_parent, const NewPages& added);

// Whether the next snapshot should store all own pages anew instead of
// building on this one: its files have grown too many, or more than half of
// their bytes serve no page any more. Then: no base, and OwnRanges() together
// with what changed as the changed pages.
bool ShouldCompact(const PageIndex& index);
inline constexpr size_t kCompactFiles = 8;

}  // namespace catnap::snapshot

#endif  // CATNAP_LIB_SNAPSHOT_PAGE_INDEX_H_
