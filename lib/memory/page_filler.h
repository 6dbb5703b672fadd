#ifndef CATNAP_LIB_MEMORY_PAGE_FILLER_H_
#define CATNAP_LIB_MEMORY_PAGE_FILLER_H_

#include <cstdint>
#include <optional>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/page_range.h"
#include "memory/memory_file.h"
#include "memory/userfault.h"

namespace catnap::memory {

// Gives missing pages of a memory file their content, from several threads at
// once: by userfaultfd, where the kernel allocates pages for all of them at the
// same time. Where that is refused by pwrite(), for which they take turns.
// Neither faults on a mapping, which costs twice as much.
//
// While one lives nobody else touches missing pages of the file's alias, which
// would wait for ever. Thread-safe.
class PageFiller {
 public:
  // `file` outlives it and is not sealed meanwhile.
  // Errors: FAILED_PRECONDITION, it is sealed already.
  static absl::StatusOr<PageFiller> Create(MemoryFile* file);
  PageFiller(PageFiller&&) = default;
  ~PageFiller() = default;

  // `range` is of the file; its pages are missing.
  // Errors: RESOURCE_EXHAUSTED, no memory; OUT_OF_RANGE.
  absl::Status Put(base::PageRange range, const uint8_t* from) const;

  // Whether threads need not wait for each other.
  bool parallel() const { return userfault_.has_value(); }

 private:
  PageFiller(int fd, std::span<uint8_t> alias) : fd_(fd), alias_(alias) {}

  int fd_;  // Not owned.
  std::span<uint8_t> alias_;
  std::optional<Userfault> userfault_;  // Closing it ends the registration.
};

}  // namespace catnap::memory

#endif  // CATNAP_LIB_MEMORY_PAGE_FILLER_H_
