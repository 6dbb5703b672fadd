#ifndef CATNAP_LIB_BASE_PAGE_RANGE_H_
#define CATNAP_LIB_BASE_PAGE_RANGE_H_

#include <cstdint>

namespace catnap::base {

inline constexpr uint64_t kPageBytes = 4096;

// A run of pages of a guest's RAM, by its place in the RAM's host range (not
// by guest address: RAM has a hole below 4 GiB, this has none). Both are
// multiples of kPageBytes.
struct PageRange {
  uint64_t offset = 0;
  uint64_t length = 0;

  friend bool operator==(const PageRange&, const PageRange&) = default;
};

}  // namespace catnap::base

#endif  // CATNAP_LIB_BASE_PAGE_RANGE_H_
