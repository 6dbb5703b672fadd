#ifndef CATNAP_LIB_DISK_BLOCK_IO_H_
#define CATNAP_LIB_DISK_BLOCK_IO_H_

#include <sys/uio.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"

namespace catnap::disk {

inline constexpr uint64_t kSectorBytes = 512;
// Of one Discard() or WriteZeroes(), which take time in proportion.
inline constexpr uint64_t kMaxZeroBytes = uint64_t{4} << 30;
// Of one Read() or Write().
inline constexpr uint64_t kMaxTransferBytes = uint64_t{64} << 20;

// Tells disks apart that lie under others. All zero: not known.
using DiskId = std::array<uint8_t, 16>;

// The end of a request. OK: all of it is done.
using BlockCompletion = absl::AnyInvocable<void(absl::Status) &&>;
using DrainCompletion = absl::AnyInvocable<void() &&>;

// A disk of sectors, served asynchronously, many requests at once.
//
// Every request ends with exactly one completion. Buffers (not the iovec array)
// are the disk's until then. Offsets and lengths are bytes, multiples of
// kSectorBytes, at most kMaxTransferBytes long. Requests that overlap and are
// in flight together take effect in either order; a sector is never mixed.
//
// Completions run on a thread of the loops beneath the disk (a stack that
// lives on one EventLoop calls back on that loop's thread), one request at a
// time per loop, without locks held; test doubles may call inline. They must
// not block or throw, and may call everything here.
//
// What a completed Write(), Discard() or WriteZeroes() did may be lost by a
// crash, sector by sector, until a Flush() that was started after its
// completion has completed.
//
// Memory: each implementation says what a request in flight costs; callers
// bound how many they start.
//
// Errors of all requests: OUT_OF_RANGE, the range leaves the disk;
// INVALID_ARGUMENT, not aligned or too long; FAILED_PRECONDITION, it writes and
// the disk is read-only; CANCELLED, the loop stopped or the owner cancelled;
// others as the host's file system says. After an error any part of a range
// that was to be written may have been.
//
// Thread safety: implementations are thread-safe.
class BlockIo {
 public:
  virtual ~BlockIo() = default;

  // In bytes. Grows by Resize() only.
  virtual uint64_t capacity() const = 0;
  virtual bool read_only() const = 0;
  virtual DiskId id() const = 0;

  virtual void Read(std::span<const iovec> buffers, uint64_t offset,
                    BlockCompletion done) = 0;
  virtual void Write(std::span<const iovec> buffers, uint64_t offset,
                     BlockCompletion done) = 0;
  // Makes what completed before durable. On a read-only disk it does nothing.
  virtual void Flush(BlockCompletion done) = 0;
  // Both: the range reads as zeroes afterwards, and gives its space back to the
  // host where whole blocks of the implementation are covered.
  virtual void Discard(uint64_t offset, uint64_t length,
                       BlockCompletion done) = 0;
  virtual void WriteZeroes(uint64_t offset, uint64_t length,
                           BlockCompletion done) = 0;
  // Grows the disk; what is new reads as zeroes. Durable when completed;
  // requests may use the new range from then on. One at a time.
  // Errors: INVALID_ARGUMENT, smaller than now, not whole sectors, or more than
  // the format holds.
  virtual void Resize(uint64_t new_capacity, BlockCompletion done) = 0;

  // Calls back, as completions are, when every request that was started
  // before has completed. Parked requests (CowLayer) count as started.
  virtual void Drain(DrainCompletion done) = 0;
};

}  // namespace catnap::disk

#endif  // CATNAP_LIB_DISK_BLOCK_IO_H_
