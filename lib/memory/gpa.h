#ifndef CATNAP_LIB_MEMORY_GPA_H_
#define CATNAP_LIB_MEMORY_GPA_H_

#include <compare>
#include <cstdint>

namespace catnap::memory {

// A guest physical address. A type of its own, so that it is never mistaken
// for an offset or a host address.
struct Gpa {
  uint64_t value = 0;

  friend constexpr auto operator<=>(Gpa, Gpa) = default;
};

}  // namespace catnap::memory

#endif  // CATNAP_LIB_MEMORY_GPA_H_
