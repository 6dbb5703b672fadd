#ifndef CATNAP_LIB_MEMORY_PAGE_SET_H_
#define CATNAP_LIB_MEMORY_PAGE_SET_H_

#include <atomic>
#include <cstdint>
#include <optional>
#include <vector>

#include "base/page_range.h"

namespace catnap::memory {

// Which pages of a file are there, while several threads put some: a set that
// only grows. Takes a bit for each page.
//
// Thread-safe, without locks: who sees that a page is there sees what was done
// before it was added.
class PageSet {
 public:
  // For pages in [0, bytes); those behind are left out.
  explicit PageSet(uint64_t bytes);

  void Add(base::PageRange range);
  // The offset of the first page of `range` that is not there; none: all are.
  std::optional<uint64_t> FirstMissing(base::PageRange range) const;

 private:
  const uint64_t pages_;
  std::vector<std::atomic<uint64_t>> words_;
};

}  // namespace catnap::memory

#endif  // CATNAP_LIB_MEMORY_PAGE_SET_H_
