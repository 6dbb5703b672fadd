#ifndef CATNAP_LIB_DISK_FILE_IO_H_
#define CATNAP_LIB_DISK_FILE_IO_H_

#include <sys/uio.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace catnap::disk {

using FileCompletion = absl::AnyInvocable<void(absl::StatusOr<size_t>) &&>;

// The one file under a disk, and the loop that serves it: the seam where tests
// bring faults and crashes. Asynchronous calls behave as those of
// io::EventLoop: one completion each, never inside the call, buffers borrowed
// until then, RESOURCE_EXHAUSTED for a full host. Thread-safe.
class FileIo {
 public:
  virtual ~FileIo() = default;

  // A smaller count than asked for is the end of the file.
  virtual void Read(std::span<const iovec> buffers, uint64_t offset,
                    FileCompletion done) = 0;
  virtual void Write(std::span<const iovec> buffers, uint64_t offset,
                     FileCompletion done) = 0;
  // fdatasync(2): covers writes that completed before the call.
  virtual void Datasync(FileCompletion done) = 0;
  // The range reads as zeroes and needs no space; the file keeps its size.
  // Errors: UNIMPLEMENTED, the file system cannot.
  virtual void PunchHole(uint64_t offset, uint64_t length,
                         FileCompletion done) = 0;
  virtual void StartTimer(std::chrono::nanoseconds delay,
                          FileCompletion done) = 0;
  // Runs `function` as completions are run.
  virtual void Post(absl::AnyInvocable<void() &&> function) = 0;

  // These block the calling thread on the disk: for opening and growing.
  virtual absl::StatusOr<uint64_t> Size() = 0;
  virtual absl::Status SetSize(uint64_t bytes) = 0;
  // Exactly `bytes`. Errors: OUT_OF_RANGE, the file ends before.
  virtual absl::Status ReadNow(std::span<uint8_t> bytes, uint64_t offset) = 0;
  virtual absl::Status WriteNow(std::span<const uint8_t> bytes,
                                uint64_t offset) = 0;
};

}  // namespace catnap::disk

#endif  // CATNAP_LIB_DISK_FILE_IO_H_
