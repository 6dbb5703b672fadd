#ifndef CATNAP_LIB_MEMORY_PAGE_RANGES_H_
#define CATNAP_LIB_MEMORY_PAGE_RANGES_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "base/page_range.h"

namespace catnap::memory {

// Sets of pages as sorted, disjoint ranges that are not empty.

// Errors: INVALID_ARGUMENT, not such a set, not whole pages, or not in
// [0, size).
absl::Status CheckPageRanges(std::span<const base::PageRange> ranges,
                             uint64_t size);

uint64_t TotalBytes(std::span<const base::PageRange> ranges);

// Puts `range` behind the others, into the last one where they touch.
// REQUIRES: it starts at or behind the end of the last one.
void AppendPages(std::vector<base::PageRange>& ranges, base::PageRange range);

// The results below are merged: no two of their ranges touch.
std::vector<base::PageRange> UniteRanges(std::span<const base::PageRange> a,
                                         std::span<const base::PageRange> b);
// What is in `a` and not in `b`.
std::vector<base::PageRange> SubtractRanges(std::span<const base::PageRange> a,
                                            std::span<const base::PageRange> b);

// Whether every byte is 0.
bool IsZero(std::span<const uint8_t> bytes);

}  // namespace catnap::memory

#endif  // CATNAP_LIB_MEMORY_PAGE_RANGES_H_
