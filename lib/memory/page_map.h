#ifndef CATNAP_LIB_MEMORY_PAGE_MAP_H_
#define CATNAP_LIB_MEMORY_PAGE_MAP_H_

#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/page_range.h"
#include "memory/guest_memory.h"

namespace catnap::memory {

// How the kernel is asked which pages are a guest's own.
enum class PageMapBackend {
  kBest,     // PAGEMAP_SCAN where the kernel has it, else the other.
  kScan,     // PAGEMAP_SCAN, Linux 6.7.
  kPagemap,  // Reads /proc/self/pagemap, eight bytes for each page.
};

struct OwnPagesOptions {
  PageMapBackend backend = PageMapBackend::kBest;
  // The guest runs: the answer is an estimate, and no content is read.
  bool running = false;
};

// The pages that are the guest's own: written since they were mapped (by the
// guest or by this process), in memory or swapped out. Sorted and merged.
//
// Pages that were only read are not among them. A page of zeros in a zero
// extent may be or may not.
//
// Takes no memory in the guest. Cost: about that of reading the page tables of
// what was touched.
// REQUIRES: nothing writes to the memory meanwhile, unless `running`.
// Errors: FAILED_PRECONDITION (nothing is mapped), UNIMPLEMENTED (kScan on an
// older kernel), PERMISSION_DENIED (no /proc).
absl::StatusOr<std::vector<base::PageRange>> OwnPages(
    const GuestMemory& memory, const OwnPagesOptions& options = {});

struct DropOptions {
  // Also drops pages with the same content as the image's.
  bool equal = false;
};

// `own` without pages that need not be kept: those of zeros where the image
// has zeros. Reads the content of `own` and of nothing else in the guest.
// REQUIRES: nothing writes to the memory meanwhile.
// Errors: FAILED_PRECONDITION (no image is mapped), INVALID_ARGUMENT (`own` is
// no set of pages of this memory).
absl::StatusOr<std::vector<base::PageRange>> DropUnchanged(
    const GuestMemory& memory, const std::vector<base::PageRange>& own,
    const DropOptions& options = {});

// Memory that this guest alone takes, in memory or swapped out: OwnPages in
// bytes, for accounting while the guest runs.
absl::StatusOr<uint64_t> OwnBytes(const GuestMemory& memory);

}  // namespace catnap::memory

#endif  // CATNAP_LIB_MEMORY_PAGE_MAP_H_
