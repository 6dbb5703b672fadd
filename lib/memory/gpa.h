#ifndef CATNAP_LIB_MEMORY_GPA_H_
#define CATNAP_LIB_MEMORY_GPA_H_

#include <cstdint>

namespace catnap::memory {

// A guest physical address. A type of its own, so that it is never mistaken
// for an offset or a host address.
struct Gpa {
  uint64_t value = 0;

  friend constexpr bool operator==(Gpa, Gpa) = default;
  friend constexpr bool operator<(Gpa a, Gpa b) { return a.value < b.value; }
};

}  // namespace catnap::memory

#endif  // CATNAP_LIB_MEMORY_GPA_H_
