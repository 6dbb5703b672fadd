#ifndef CATNAP_BENCH_MEMORY_USE_H_
#define CATNAP_BENCH_MEMORY_USE_H_

#include <cstdint>

#include "absl/status/statusor.h"

namespace catnap::bench {

// Memory of this process now, in KiB.
struct MemoryUse {
  // Pages that guests wrote, each its own: the anonymous ones of their memory,
  // which is told by its advice in the VmFlags of /proc/self/smaps: not copied
  // by fork(), not dumped, no huge pages. No other mapping of the library has
  // all three. (Private_Dirty has a template's pages as well while only one
  // guest maps them, so it falls when others come.)
  int64_t guest_private = 0;
  // Anonymous memory elsewhere: the VMM's heap and stacks.
  int64_t vmm_anonymous = 0;
  // What the memory files that the process has open take: templates.
  int64_t templates = 0;
  // What the host has left (MemAvailable), KVM's own memory and page tables
  // taken off, and all that others take.
  int64_t host_available = 0;
};

// Errors: what /proc says; DATA_LOSS, smaps is not as this knows it.
absl::StatusOr<MemoryUse> ReadMemoryUse();

}  // namespace catnap::bench

#endif  // CATNAP_BENCH_MEMORY_USE_H_
