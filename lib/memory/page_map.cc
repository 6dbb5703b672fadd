#include "memory/page_map.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <optional>
#include <span>

#include "base/status.h"
#include "base/unique_fd.h"
#include "memory/page_ranges.h"

namespace catnap::memory {
namespace {

using base::kPageBytes;
using base::PageRange;

// From <linux/fs.h> of Linux 6.7; the headers of the build may be older.
struct PageRegion {
  uint64_t start;
  uint64_t end;
  uint64_t categories;
};
struct PageMapScan {
  uint64_t size;
  uint64_t flags;
  uint64_t start;
  uint64_t end;
  uint64_t walk_end;
  uint64_t vec;
  uint64_t vec_len;
  uint64_t max_pages;
  uint64_t category_inverted;
  uint64_t category_mask;
  uint64_t category_anyof_mask;
  uint64_t return_mask;
};
static_assert(sizeof(PageRegion) == 24 && sizeof(PageMapScan) == 96,
              "the kernel's interface");
// NOLINTNEXTLINE(google-runtime-int): as ioctl() takes it.
constexpr unsigned long kPageMapScan = _IOWR('f', 16, PageMapScan);
static_assert(kPageMapScan == 0xc0606610, "the kernel's interface");
constexpr uint64_t kCategoryFile = 1 << 2;
constexpr uint64_t kCategoryPresent = 1 << 3;
constexpr uint64_t kCategorySwapped = 1 << 4;
constexpr uint64_t kCategoryZeroPage = 1 << 5;

// Bits of an entry of /proc/self/pagemap.
constexpr uint64_t kEntryExclusive = 1ull << 56;
constexpr uint64_t kEntryFile = 1ull << 61;
constexpr uint64_t kEntrySwapped = 1ull << 62;
constexpr uint64_t kEntryPresent = 1ull << 63;

// The extents of what is mapped; one of a file, if that was no image.
std::vector<Extent> ExtentsOf(const GuestMemory& memory) {
  if (memory.image() != nullptr) return memory.image()->extents();
  return {{.offset = 0, .length = memory.size(), .file = 0}};
}

// Walks the extents along with pages that come in order.
class ExtentWalk {
 public:
  explicit ExtentWalk(std::span<const Extent> extents) : extents_(extents) {}

  // The extent of the page at `offset`; never lower than the call before.
  const Extent& At(uint64_t offset) {
    while (extents_.front().offset + extents_.front().length <= offset) {
      extents_ = extents_.subspan(1);
    }
    return extents_.front();
  }

 private:
  std::span<const Extent> extents_;
};

// Adds the parts of `range` that are of files. The kernel's zero page in a
// zero extent is what a read left there. In a mapping of a file it can only be
// content (page merging puts it there), and so the guest's own.
void AppendFileParts(std::vector<PageRange>& own, PageRange range,
                     ExtentWalk& walk) {
  const uint64_t end = range.offset + range.length;
  for (uint64_t at = range.offset; at < end;) {
    const Extent& extent = walk.At(at);
    const uint64_t part_end = std::min(end, extent.offset + extent.length);
    if (extent.file != Extent::kZero) AppendPages(own, {at, part_end - at});
    at = part_end;
  }
}

absl::StatusOr<std::vector<PageRange>> Scan(const GuestMemory& memory,
                                            int pagemap) {
  constexpr size_t kRegions = 1024;
  const auto regions = std::make_unique<std::array<PageRegion, kRegions>>();
  const std::vector<Extent> extents = ExtentsOf(memory);
  ExtentWalk walk(extents);
  const auto base = reinterpret_cast<uintptr_t>(memory.host_base());
  std::vector<PageRange> own;
  PageMapScan scan{};
  scan.size = sizeof(scan);
  scan.start = base;
  scan.end = base + memory.size();
  scan.vec = reinterpret_cast<uintptr_t>(regions->data());
  scan.vec_len = regions->size();
  // Not a file's, and in memory or swapped out.
  scan.category_inverted = kCategoryFile;
  scan.category_mask = kCategoryFile;
  scan.category_anyof_mask = kCategoryPresent | kCategorySwapped;
  scan.return_mask = kCategoryZeroPage;
  while (scan.start < scan.end) {
    const int found = ::ioctl(pagemap, kPageMapScan, &scan);
    if (found < 0 && errno == EINTR) continue;
    if (found < 0 && (errno == ENOTTY || errno == EINVAL)) {
      return absl::UnimplementedError("the kernel has no PAGEMAP_SCAN");
    }
    if (found < 0) return ErrnoError(errno, "scan the page map");
    for (const PageRegion& region :
         std::span(*regions).first(static_cast<size_t>(found))) {
      const PageRange range{region.start - base, region.end - region.start};
      if ((region.categories & kCategoryZeroPage) != 0) {
        AppendFileParts(own, range, walk);
      } else {
        AppendPages(own, range);
      }
    }
    // The kernel stops early only when all regions are full. Where it stopped
    // is not taken from walk_end: Linux 6.18 leaves an older value there when
    // its own, smaller buffer was full once before.
    if (static_cast<size_t>(found) < regions->size()) break;
    scan.start = regions->back().end;
  }
  return own;
}

// Whether an entry is an own page. Without privileges the kernel does not say
// which page it is, so its zero page is told by being nobody's exclusively,
// and by its content.
bool IsOwn(uint64_t entry, const uint8_t* page, const Extent& extent,
           bool running) {
  if ((entry & kEntryFile) != 0) return false;
  if ((entry & kEntrySwapped) != 0) return true;
  if ((entry & kEntryPresent) == 0) return false;
  if ((entry & kEntryExclusive) != 0 || extent.file != Extent::kZero) {
    return true;
  }
  // The page is there: reading it takes no memory.
  return !running && !IsZero({page, kPageBytes});
}

absl::StatusOr<std::vector<PageRange>> ReadPagemap(const GuestMemory& memory,
                                                   int pagemap, bool running) {
  constexpr size_t kEntries = 32 << 10;  // 256 KiB, 128 MiB of the guest.
  std::vector<uint64_t> entries(
      std::min<uint64_t>(kEntries, memory.size() / kPageBytes));
  const std::vector<Extent> extents = ExtentsOf(memory);
  ExtentWalk walk(extents);
  const auto first = reinterpret_cast<uintptr_t>(memory.host_base());
  std::vector<PageRange> own;
  uint64_t offset = 0;
  while (offset < memory.size()) {
    const size_t want = std::min<uint64_t>(
        entries.size(), (memory.size() - offset) / kPageBytes);
    const ssize_t got = ::pread(
        pagemap, entries.data(), want * sizeof(uint64_t),
        static_cast<off_t>((first + offset) / kPageBytes * sizeof(uint64_t)));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoError(errno, "read the page map");
    const size_t count = static_cast<size_t>(got) / sizeof(uint64_t);
    if (count == 0) return absl::InternalError("the page map ended early");
    for (const uint64_t entry : std::span(entries).first(count)) {
      // Most pages are not there, or a file's: they need no look at extents.
      if ((entry & (kEntryPresent | kEntrySwapped)) != 0 &&
          (entry & kEntryFile) == 0 &&
          IsOwn(entry, memory.host_base() + offset, walk.At(offset), running)) {
        AppendPages(own, {offset, kPageBytes});
      }
      offset += kPageBytes;
    }
  }
  return own;
}

}  // namespace

absl::StatusOr<std::vector<PageRange>> OwnPages(
    const GuestMemory& memory, const OwnPagesOptions& options) {
  if (!memory.mapped()) {
    return absl::FailedPreconditionError("guest memory is not mapped yet");
  }
  // Opened each time: a descriptor names the address space of the process
  // that opened it, and this one may be a child of that.
  const base::UniqueFd pagemap(
      ::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  if (!pagemap.valid()) return ErrnoError(errno, "open /proc/self/pagemap");
  if (options.backend != PageMapBackend::kPagemap) {
    auto own = Scan(memory, pagemap.get());
    if (options.backend == PageMapBackend::kScan ||
        !absl::IsUnimplemented(own.status())) {
      return own;
    }
  }
  return ReadPagemap(memory, pagemap.get(), options.running);
}

absl::StatusOr<std::vector<PageRange>> DropUnchanged(
    const GuestMemory& memory, const std::vector<PageRange>& own,
    const DropOptions& options) {
  if (memory.image() == nullptr) {
    return absl::FailedPreconditionError("no memory image is mapped");
  }
  CATNAP_RETURN_IF_ERROR(CheckPageRanges(own, memory.size()));
  constexpr size_t kBlock = 256 << 10;
  const MemoryImage& image = *memory.image();
  std::vector<uint8_t> block(options.equal ? kBlock : 0);
  std::vector<PageRange> kept;
  ExtentWalk walk(image.extents());
  for (const PageRange& range : own) {
    const uint64_t end = range.offset + range.length;
    for (uint64_t at = range.offset; at < end;) {
      const Extent& extent = walk.At(at);
      uint64_t part_end = std::min(end, extent.offset + extent.length);
      const bool zero = extent.file == Extent::kZero;
      if (!zero && !options.equal) {
        AppendPages(kept, {at, part_end - at});
        at = part_end;
        continue;
      }
      part_end = std::min(part_end, at + kBlock);
      if (!zero) {
        CATNAP_RETURN_IF_ERROR(
            image.Read(at, std::span(block).first(part_end - at)));
      }
      for (const uint64_t start = at; at < part_end; at += kPageBytes) {
        const uint8_t* page = memory.host_base() + at;
        const bool same = zero ? IsZero({page, kPageBytes})
                               : std::memcmp(page, block.data() + (at - start),
                                             kPageBytes) == 0;
        if (!same) AppendPages(kept, {at, kPageBytes});
      }
    }
  }
  return kept;
}

absl::StatusOr<uint64_t> OwnBytes(const GuestMemory& memory) {
  CATNAP_ASSIGN_OR_RETURN(const auto own, OwnPages(memory, {.running = true}));
  return TotalBytes(own);
}

}  // namespace catnap::memory
