#ifndef CATNAP_LIB_MEMORY_USERFAULT_H_
#define CATNAP_LIB_MEMORY_USERFAULT_H_

#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/page_range.h"
#include "base/unique_fd.h"

namespace catnap::memory {

// Faults of this process on pages that are missing, the kernel's own on behalf
// of KVM and of system calls included. Closing it lets everybody go on who
// waits for a page. Thread-safe.
class Userfault {
 public:
  // Errors: FAILED_PRECONDITION, it is refused here, with the reason and what
  // to do; RESOURCE_EXHAUSTED.
  static absl::StatusOr<Userfault> Open();

  // For Put() alone, which is refused more rarely: whoever touches a missing
  // page in the kernel gets an error, and in a program waits.
  // Errors: FAILED_PRECONDITION, RESOURCE_EXHAUSTED.
  static absl::StatusOr<Userfault> OpenToPut();

  // Readable when there are faults.
  int fd() const { return fd_.get(); }

  // From now on whoever touches a missing page of [start, start + length)
  // waits. Pages that a file mapped there has are not missing.
  absl::Status Register(const uint8_t* start, uint64_t length) const;
  // Lets go whoever waits; afterwards the range is as any other. A part that
  // was unmapped or mapped anew meanwhile is left alone.
  void Unregister(const uint8_t* start, uint64_t length) const;

  // The address of the next fault, rounded down to its page; none: there is
  // none now. Does not block.
  absl::StatusOr<std::optional<uintptr_t>> NextFault() const;
  // Lets go whoever waits for pages of the range.
  void Wake(uintptr_t start, uint64_t length) const;

  // Puts whole pages where a shared mapping that is registered misses them, in
  // one step each: nobody ever sees a part. Pages that are there stay.
  // Errors: RESOURCE_EXHAUSTED, no memory.
  absl::Status Put(uint8_t* to, const uint8_t* from, uint64_t length) const;

 private:
  explicit Userfault(base::UniqueFd fd) : fd_(std::move(fd)) {}

  base::UniqueFd fd_;
};

}  // namespace catnap::memory

#endif  // CATNAP_LIB_MEMORY_USERFAULT_H_
