#include "memory/memory_image.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <queue>
#include <utility>

#include "base/checked.h"
#include "base/status.h"
#include "memory/page_ranges.h"

namespace catnap::memory {
namespace {

using base::PageRange;

uint64_t EndOf(const Extent& extent) { return extent.offset + extent.length; }

// Puts `extent` behind the others, into the last where both are one place.
void Append(std::vector<Extent>& extents, const Extent& extent) {
  if (extent.length == 0) return;
  if (!extents.empty() && extents.back().file == extent.file) {
    extents.back().length += extent.length;
    return;
  }
  extents.push_back(extent);
}

// The next data or hole (`whence`) at or behind `offset`, at most `size`.
absl::StatusOr<uint64_t> Seek(const MemoryFile& file, uint64_t offset,
                              int whence) {
  if (offset >= file.size()) return file.size();
  const off_t found = ::lseek(file.fd(), static_cast<off_t>(offset), whence);
  if (found >= 0) return std::min(static_cast<uint64_t>(found), file.size());
  if (errno == ENXIO) return file.size();  // No data any more.
  return ErrnoError(errno, "look for data in a memory file");
}

// What Overlay() makes extents of: pieces in a list, so that the smallest can
// be joined with its neighbours.
class Pieces {
 public:
  static constexpr uint32_t kOverlay = Extent::kZero - 1;

  Pieces(const MemoryImage& base, std::span<const PageRange> ranges) {
    for (const Extent& extent : base.extents()) {
      uint64_t at = extent.offset;
      while (at < EndOf(extent)) {
        while (!ranges.empty() &&
               ranges.front().offset + ranges.front().length <= at) {
          ranges = ranges.subspan(1);
        }
        uint64_t end = EndOf(extent);
        uint32_t file = extent.file;
        if (!ranges.empty()) {
          const PageRange& range = ranges.front();
          if (range.offset <= at) {
            file = kOverlay;
            end = std::min(end, range.offset + range.length);
          } else {
            end = std::min(end, range.offset);
          }
        }
        Append(extents_, {at, end - at, file});
        at = end;
      }
    }
    count_ = extents_.size();
    for (const Extent& extent : extents_) {
      if (extent.file == kOverlay) overlay_bytes_ += extent.length;
    }
  }

  size_t count() const { return count_; }
  uint64_t overlay_bytes() const { return overlay_bytes_; }

  // Turns pieces of the base into pieces of the overlay, the cheapest for each
  // extent saved first, until there are at most `wanted` extents or the budget
  // is used up; and whatever it costs until there are at most `max`.
  void Close(size_t wanted, size_t max, uint64_t budget) {
    if (count_ <= wanted || extents_.size() < 2) return;
    Link();
    for (size_t i = 0; i < extents_.size(); ++i) Consider(i);
    if (queue_.empty() && count_ > max) {
      // No overlay to grow from: start one at the smallest piece.
      const auto smallest = std::min_element(
          extents_.begin(), extents_.end(),
          [](const Extent& a, const Extent& b) { return a.length < b.length; });
      Take(static_cast<size_t>(smallest - extents_.begin()));
    }
    uint64_t spent = 0;
    while (count_ > wanted && !queue_.empty()) {
      const Candidate best = queue_.top();
      queue_.pop();
      // Stale: taken meanwhile, or its neighbours were.
      if (extents_[best.index].file == kOverlay ||
          best.saved != Saved(best.index)) {
        continue;
      }
      const uint64_t length = extents_[best.index].length;
      if (count_ <= max && spent + length > budget) break;
      spent += length;
      Take(best.index);
    }
  }

  const std::vector<Extent>& extents() const { return extents_; }

 private:
  struct Candidate {
    uint64_t length = 0;
    uint64_t saved = 0;
    size_t index = 0;

    // The queue has the greatest on top: the least bytes for an extent saved.
    friend bool operator<(const Candidate& a, const Candidate& b) {
      return a.length * b.saved > b.length * a.saved;
    }
  };

  // Neighbours are those of the list: a piece of the overlay that was joined
  // with the one before it stays in the list, and so does its index.
  void Link() {
    taken_.assign(extents_.size(), false);
    for (size_t i = 0; i < extents_.size(); ++i) {
      taken_[i] = extents_[i].file == kOverlay;
    }
  }

  bool Taken(size_t index) const {
    return index < taken_.size() && taken_[index];
  }

  // How many extents fewer there are once this piece is the overlay's.
  uint64_t Saved(size_t index) const {
    return (index > 0 && Taken(index - 1) ? 1u : 0u) +
           (Taken(index + 1) ? 1u : 0u);
  }

  void Consider(size_t index) {
    if (index >= extents_.size() || taken_[index]) return;
    const uint64_t saved = Saved(index);
    if (saved != 0) queue_.push({extents_[index].length, saved, index});
  }

  void Take(size_t index) {
    count_ -= Saved(index);
    taken_[index] = true;
    extents_[index].file = kOverlay;
    if (index > 0) Consider(index - 1);
    Consider(index + 1);
  }

  std::vector<Extent> extents_;  // Neighbours may both be kOverlay.
  std::vector<bool> taken_;
  std::priority_queue<Candidate> queue_;
  size_t count_ = 0;  // Extents once neighbours are merged.
  uint64_t overlay_bytes_ = 0;
};

absl::Status CheckOptions(const MemoryImage& base,
                          std::span<const PageRange> ranges,
                          const OverlayOptions& options) {
  if (options.max_extents < 1 ||
      options.max_extents > MemoryImage::kMaxExtents) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "max_extents is {}, must be 1 to {}", options.max_extents,
                 MemoryImage::kMaxExtents);
  }
  return CheckPageRanges(ranges, base.size());
}

Pieces Plan(const MemoryImage& base, std::span<const PageRange> ranges,
            const OverlayOptions& options) {
  constexpr uint64_t kFreeBytes = 1 << 20;
  Pieces pieces(base, ranges);
  pieces.Close(std::min(options.wanted_extents, options.max_extents),
               options.max_extents,
               std::min(pieces.overlay_bytes() / 8, kFreeBytes));
  return pieces;
}

// The overlay's pieces of the plan that are not in `ranges`.
std::vector<PageRange> GapsOf(const Pieces& pieces,
                              std::span<const PageRange> ranges) {
  std::vector<PageRange> overlay;
  for (const Extent& extent : pieces.extents()) {
    if (extent.file == Pieces::kOverlay) {
      AppendPages(overlay, {extent.offset, extent.length});
    }
  }
  return SubtractRanges(overlay, ranges);
}

}  // namespace

absl::StatusOr<std::shared_ptr<const MemoryImage>> MemoryImage::Create(
    uint64_t size, std::vector<std::shared_ptr<const MemoryFile>> files,
    std::vector<Extent>
        extents) {  // NOLINT(performance-unnecessary-value-param)
  if (size == 0 || !base::IsAligned(size, base::kPageBytes)) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "memory image of {} bytes, must be a multiple of 4096", size);
  }
  for (const auto& file : files) {
    if (file == nullptr || file->size() != size) {
      return Error(absl::StatusCode::kInvalidArgument,
                   "a memory image of {} bytes has a file of {}", size,
                   file == nullptr ? 0 : file->size());
    }
  }
  std::vector<Extent> merged;
  std::vector<std::shared_ptr<const MemoryFile>> used;
  std::vector<uint32_t> places(files.size(), Extent::kZero);
  uint64_t end = 0;
  for (Extent extent : extents) {
    const bool zero = extent.file == Extent::kZero;
    if (extent.offset != end || extent.length == 0 ||
        !base::IsAligned(extent.length, base::kPageBytes) ||
        !base::InRange(extent.offset, extent.length, size) ||
        (!zero && extent.file >= files.size())) {
      return Error(absl::StatusCode::kInvalidArgument,
                   "extent at {:#x}, {} bytes, of file {}: extents must cover "
                   "[0, {:#x}) in order",
                   extent.offset, extent.length, extent.file, size);
    }
    end += extent.length;
    if (!zero) {
      uint32_t& place = places[extent.file];
      if (place == Extent::kZero) {
        place = static_cast<uint32_t>(used.size());
        used.push_back(std::move(files[extent.file]));
      }
      extent.file = place;
    }
    Append(merged, extent);
  }
  if (end != size) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "extents end at {:#x}, the memory image at {:#x}", end, size);
  }
  if (merged.size() > kMaxExtents) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "memory image of {} extents, {} are allowed", merged.size(),
                 kMaxExtents);
  }
  // new: the constructor is private.
  return std::shared_ptr<const MemoryImage>(
      new MemoryImage(size, std::move(used), std::move(merged)));
}

absl::StatusOr<std::shared_ptr<const MemoryImage>> MemoryImage::Zero(
    uint64_t size) {
  return Create(size, {}, {{.offset = 0, .length = size}});
}

absl::StatusOr<std::shared_ptr<const MemoryImage>> MemoryImage::FromFile(
    std::shared_ptr<const MemoryFile> file) {
  std::vector<Extent> extents;
  uint64_t at = 0;  // All before is in extents.
  while (at < file->size()) {
    CATNAP_ASSIGN_OR_RETURN(const uint64_t data, Seek(*file, at, SEEK_DATA));
    CATNAP_ASSIGN_OR_RETURN(const uint64_t end, Seek(*file, data, SEEK_HOLE));
    const uint64_t hole = data - at;
    const bool zero = hole >= kMinZeroBytes || data == file->size();
    if (zero) {
      Append(extents, {.offset = at, .length = hole});
    } else if (hole != 0) {
      // Allowed on a sealed file: it changes no content.
      CATNAP_RETURN_IF_ERROR(
          AllocatePages(file->fd(), {.offset = at, .length = hole}));
      Append(extents, {.offset = at, .length = hole, .file = 0});
    }
    Append(extents, {.offset = data, .length = end - data, .file = 0});
    at = end;
  }
  if (extents.size() > kMaxExtents) {
    return Error(absl::StatusCode::kResourceExhausted,
                 "a memory file has {} runs of data and holes, {} are allowed",
                 extents.size(), kMaxExtents);
  }
  const uint64_t size = file->size();
  return Create(size, {std::move(file)}, std::move(extents));
}

std::span<const Extent> MemoryImage::ExtentsFrom(uint64_t offset) const {
  const auto first = std::upper_bound(
      extents_.begin(), extents_.end(), offset,
      [](uint64_t at, const Extent& extent) { return at < EndOf(extent); });
  return std::span<const Extent>(extents_).subspan(
      static_cast<size_t>(first - extents_.begin()));
}

absl::Status MemoryImage::Read(uint64_t offset, std::span<uint8_t> into) const {
  if (!base::InRange(offset, into.size(), size_)) {
    return Error(absl::StatusCode::kOutOfRange,
                 "{} bytes at {:#x} are not in a memory image of {} bytes",
                 into.size(), offset, size_);
  }
  for (const Extent& extent : ExtentsFrom(offset)) {
    if (into.empty()) break;
    const uint64_t length =
        std::min<uint64_t>(into.size(), EndOf(extent) - offset);
    const auto part = into.first(length);
    if (const MemoryFile* file = FileOf(extent); file != nullptr) {
      CATNAP_RETURN_IF_ERROR(file->Read(offset, part));
    } else {
      std::memset(part.data(), 0, part.size());
    }
    into = into.subspan(length);
    offset += length;
  }
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> MemoryImage::AllocatedBytes() const {
  uint64_t total = 0;
  for (const auto& file : files_) {
    CATNAP_ASSIGN_OR_RETURN(const uint64_t bytes, file->AllocatedBytes());
    total += bytes;
  }
  return total;
}

absl::StatusOr<uint64_t> MemoryImage::HoleBytes() const {
  uint64_t total = 0;
  for (const Extent& extent : extents_) {
    const MemoryFile* file = FileOf(extent);
    if (file == nullptr) continue;
    uint64_t at = extent.offset;
    while (at < EndOf(extent)) {
      CATNAP_ASSIGN_OR_RETURN(const uint64_t hole, Seek(*file, at, SEEK_HOLE));
      if (hole >= EndOf(extent)) break;
      CATNAP_ASSIGN_OR_RETURN(const uint64_t data,
                              Seek(*file, hole, SEEK_DATA));
      at = std::min(data, EndOf(extent));
      total += at - hole;
    }
  }
  return total;
}

absl::StatusOr<std::vector<PageRange>> GapsToClose(
    const MemoryImage& base, std::span<const PageRange> ranges,
    const OverlayOptions& options) {
  CATNAP_RETURN_IF_ERROR(CheckOptions(base, ranges, options));
  return GapsOf(Plan(base, ranges, options), ranges);
}

absl::Status CopyFromImage(const MemoryImage& base,
                           std::span<const PageRange> ranges,
                           MemoryFile& file) {
  for (const PageRange& range : ranges) {
    // Populated first: a page that is only read into could have no memory,
    // which would end in SIGBUS instead of a status.
    CATNAP_RETURN_IF_ERROR(file.Populate(range));
    CATNAP_ASSIGN_OR_RETURN(const auto bytes, file.Writable(range));
    CATNAP_RETURN_IF_ERROR(base.Read(range.offset, bytes));
  }
  return absl::OkStatus();
}

absl::StatusOr<Overlaid> Overlay(const MemoryImage& base,
                                 const std::shared_ptr<MemoryFile>& file,
                                 std::span<const PageRange> ranges,
                                 const OverlayOptions& options,
                                 std::span<const PageRange> filled) {
  CATNAP_RETURN_IF_ERROR(CheckOptions(base, ranges, options));
  CATNAP_RETURN_IF_ERROR(CheckPageRanges(filled, base.size()));
  if (file->size() != base.size()) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "a file of {} bytes over a memory image of {}", file->size(),
                 base.size());
  }
  const std::vector<PageRange> full = UniteRanges(ranges, filled);
  const Pieces pieces = Plan(base, full, options);
  const std::vector<PageRange> gaps = GapsOf(pieces, full);
  CATNAP_RETURN_IF_ERROR(CopyFromImage(base, gaps, *file));
  std::vector<std::shared_ptr<const MemoryFile>> files = base.files();
  // The base may name the file already, when its owner adds to it.
  const auto place = std::find(files.begin(), files.end(), file);
  const auto own = static_cast<uint32_t>(place - files.begin());
  if (place == files.end()) files.push_back(file);
  std::vector<Extent> extents = pieces.extents();
  for (Extent& extent : extents) {
    if (extent.file == Pieces::kOverlay) extent.file = own;
  }
  Overlaid result;
  CATNAP_ASSIGN_OR_RETURN(
      result.image,
      MemoryImage::Create(base.size(), std::move(files), std::move(extents)));
  result.materialized_bytes = TotalBytes(gaps);
  return result;
}

}  // namespace catnap::memory
