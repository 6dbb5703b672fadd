#include "memory/page_ranges.h"

#include <algorithm>
#include <cstring>

#include "base/checked.h"
#include "base/status.h"

namespace catnap::memory {

using base::PageRange;

absl::Status CheckPageRanges(std::span<const PageRange> ranges, uint64_t size) {
  uint64_t end = 0;
  for (const PageRange& range : ranges) {
    if (range.length == 0 || range.offset < end ||
        !base::IsAligned(range.offset, base::kPageBytes) ||
        !base::IsAligned(range.length, base::kPageBytes) ||
        !base::InRange(range.offset, range.length, size)) {
      return Error(absl::StatusCode::kInvalidArgument,
                   "pages at {:#x}, {} bytes: ranges must be sorted, disjoint, "
                   "of whole pages and in [0, {:#x})",
                   range.offset, range.length, size);
    }
    end = range.offset + range.length;
  }
  return absl::OkStatus();
}

uint64_t TotalBytes(std::span<const PageRange> ranges) {
  uint64_t total = 0;
  for (const PageRange& range : ranges) total += range.length;
  return total;
}

void AppendPages(std::vector<PageRange>& ranges, PageRange range) {
  if (range.length == 0) return;
  if (!ranges.empty() &&
      ranges.back().offset + ranges.back().length == range.offset) {
    ranges.back().length += range.length;
    return;
  }
  ranges.push_back(range);
}

std::vector<PageRange> UniteRanges(std::span<const PageRange> a,
                                   std::span<const PageRange> b) {
  std::vector<PageRange> result;
  result.reserve(a.size() + b.size());
  while (!a.empty() || !b.empty()) {
    auto& next =
        b.empty() || (!a.empty() && a.front().offset <= b.front().offset) ? a
                                                                          : b;
    PageRange range = next.front();
    next = next.subspan(1);
    if (!result.empty()) {
      // Cut off what the last range has already.
      const uint64_t end = result.back().offset + result.back().length;
      const uint64_t cut =
          std::min(range.length, end - std::min(end, range.offset));
      range.offset += cut;
      range.length -= cut;
    }
    AppendPages(result, range);
  }
  return result;
}

std::vector<PageRange> SubtractRanges(std::span<const PageRange> a,
                                      std::span<const PageRange> b) {
  std::vector<PageRange> result;
  result.reserve(a.size());
  for (const PageRange& range : a) {
    uint64_t at = range.offset;
    const uint64_t end = range.offset + range.length;
    while (!b.empty() && b.front().offset + b.front().length <= at) {
      b = b.subspan(1);
    }
    // Ranges of `b` that end behind this one may cover the next one too.
    for (const PageRange& hole : b) {
      if (hole.offset >= end) break;
      if (hole.offset > at) AppendPages(result, {at, hole.offset - at});
      at = std::min(end, hole.offset + hole.length);
    }
    AppendPages(result, {at, end - at});
  }
  return result;
}

bool IsZero(std::span<const uint8_t> bytes) {
  // The first bytes decide nearly always; the rest is compared with itself,
  // one byte further, which the C library does at the speed of memory.
  constexpr size_t kFirst = 16;
  const size_t first = std::min(bytes.size(), kFirst);
  for (size_t i = 0; i < first; ++i) {
    if (bytes[i] != 0) return false;
  }
  return bytes.size() <= kFirst ||
         std::memcmp(bytes.data(), bytes.data() + kFirst,
                     bytes.size() - kFirst) == 0;
}

}  // namespace catnap::memory
