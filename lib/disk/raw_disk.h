#ifndef CATNAP_LIB_DISK_RAW_DISK_H_
#define CATNAP_LIB_DISK_RAW_DISK_H_

#include <memory>

#include "absl/base/thread_annotations.h"
#include "base/mutex.h"
#include "disk/block_io.h"
#include "disk/file_io.h"
#include "disk/in_flight.h"

namespace catnap::disk {

struct RawDiskOptions {
  bool read_only = true;
  DiskId id{};
};

// A file or block device as it is: a base image that many disks share, or a
// plain disk. A file that became shorter reads as zeroes behind its end.
// Memory: under 300 bytes for each request in flight besides the loop's, and
// 16 for each buffer.
class RawDisk final : public BlockIo,
                      public std::enable_shared_from_this<RawDisk> {
 public:
  // Errors: INVALID_ARGUMENT, the size is not a multiple of 512.
  static absl::StatusOr<std::shared_ptr<RawDisk>> Create(
      std::shared_ptr<FileIo> file, const RawDiskOptions& options);

  uint64_t capacity() const override;
  bool read_only() const override { return options_.read_only; }
  DiskId id() const override { return options_.id; }
  void Read(std::span<const iovec> buffers, uint64_t offset,
            BlockCompletion done) override;
  void Write(std::span<const iovec> buffers, uint64_t offset,
             BlockCompletion done) override;
  void Flush(BlockCompletion done) override;
  void Discard(uint64_t offset, uint64_t length, BlockCompletion done) override;
  void WriteZeroes(uint64_t offset, uint64_t length,
                   BlockCompletion done) override;
  // Of a regular file.
  void Resize(uint64_t new_capacity, BlockCompletion done) override;
  void Drain(DrainCompletion done) override;

 private:
  RawDisk(std::shared_ptr<FileIo> file, const RawDiskOptions& options,
          uint64_t capacity)
      : file_(std::move(file)), options_(options), capacity_(capacity) {}

  // Counts the request; the result ends it, from any callback.
  BlockCompletion Begin(BlockCompletion done);
  void Fail(absl::Status status, BlockCompletion done);
  // What every request that writes is checked for.
  absl::Status CheckWrite(uint64_t offset, uint64_t length,
                          uint64_t max_length) const;
  // Writes zeroes from `at` to `end`, a piece after the other.
  void WriteZeroPieces(uint64_t at, uint64_t end, BlockCompletion done);

  const std::shared_ptr<FileIo> file_;
  const RawDiskOptions options_;
  mutable base::Mutex mutex_;
  uint64_t capacity_ ABSL_GUARDED_BY(mutex_);
  InFlight in_flight_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace catnap::disk

#endif  // CATNAP_LIB_DISK_RAW_DISK_H_
