#ifndef CATNAP_LIB_MEMORY_MEMORY_FILE_H_
#define CATNAP_LIB_MEMORY_MEMORY_FILE_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mapping.h"
#include "base/page_range.h"
#include "base/unique_fd.h"

namespace catnap::memory {

class Pager;
class PageSupply;

// Gives pages of a memory file that have none memory, with zeros; also on a
// sealed one, as no content changes.
// Errors: RESOURCE_EXHAUSTED (no memory).
absl::Status AllocatePages(int fd, base::PageRange range);

// A memfd of the size of a guest's RAM that holds some of the RAM's pages,
// each at its place in the RAM. It takes memory only where it was written.
//
// It is filled through one shared writable mapping, the alias, which is kept
// out of forked children and of core dumps; Seal() ends that for ever. The
// size never changes.
//
// It may also be mapped before it is full, and be filled while guests run over
// it: FillOnDemand().
//
// Thread safety: bytes of different ranges may be filled from different
// threads. Seal(), SealToAlias() and destruction must not overlap with
// anything; on a sealed file everything may overlap.
class MemoryFile {
 public:
  // `size` in bytes, a multiple of 4 KiB, not 0. `name` is seen in /proc only.
  // Errors: INVALID_ARGUMENT (size), RESOURCE_EXHAUSTED.
  static absl::StatusOr<std::unique_ptr<MemoryFile>> Create(
      const std::string& name, uint64_t size);

  // A file that somebody else filled; `fd` is duplicated.
  // Errors: INVALID_ARGUMENT (not sealed against shrinking and writing, size).
  static absl::StatusOr<std::unique_ptr<MemoryFile>> Adopt(int fd);
  ~MemoryFile();
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  uint64_t size() const { return size_; }
  int fd() const { return fd_.get(); }
  // Whether Seal() was not called yet.
  bool writable() const { return alias_.data() != nullptr; }

  // The bytes of `range` in the alias, for filling; valid until Seal().
  // Pages never written read as zeros, and take memory once read.
  // Errors: OUT_OF_RANGE, FAILED_PRECONDITION (sealed).
  absl::StatusOr<std::span<uint8_t>> Writable(base::PageRange range);

  // Faults the pages of `range` in, so that filling them takes no faults.
  // Errors: as Writable(); RESOURCE_EXHAUSTED (no memory).
  absl::Status Populate(base::PageRange range);

  // Gives the memory of `range` back; it reads as zeros again.
  // Errors: as Writable(); FAILED_PRECONDITION after SealToAlias() too.
  absl::Status Discard(base::PageRange range);

  // From now on nobody makes another writable mapping, so the file may be
  // mapped by guests while its owner goes on filling it through the alias.
  absl::Status SealToAlias();

  // Ends filling: the alias goes, nobody can write to the file any more.
  // Spans of the alias are invalid, also when this fails. Idempotent.
  // Errors: UNAVAILABLE, pages are still in use by I/O (call again when that
  // has ended).
  absl::Status Seal();

  // Has a pager bring the pages that have no memory yet, while guests run over
  // the file, and seals it when all are there; with `fills` false it brings
  // only what is touched. What is to be filled otherwise must be full. Nobody
  // touches the alias afterwards. Unless userfaultfd is
  // refused, which leaves the file as it was, an error makes it useless.
  // Errors: as Pager::Start(); FAILED_PRECONDITION (sealed).
  absl::Status FillOnDemand(std::unique_ptr<PageSupply> supply, bool fills);
  // Null without FillOnDemand(). Lives as long as the file.
  Pager* pager() const { return pager_.get(); }

  // Copies bytes out, at any offset; where nothing was written they are zeros.
  // Reading takes no memory, but has a pager bring what is missing.
  // Errors: OUT_OF_RANGE; as Pager::BringIn().
  absl::Status Read(uint64_t offset, std::span<uint8_t> into) const;

  // Bytes of memory and swap that the file takes.
  absl::StatusOr<uint64_t> AllocatedBytes() const;

 private:
  MemoryFile(base::UniqueFd fd, base::Mapping alias, uint64_t size);

  const base::UniqueFd fd_;
  base::Mapping alias_;  // Empty once sealed.
  const uint64_t size_;
  bool sealed_to_alias_ = false;
  std::unique_ptr<Pager> pager_;  // Last: uses the rest.
};

}  // namespace catnap::memory

#endif  // CATNAP_LIB_MEMORY_MEMORY_FILE_H_
