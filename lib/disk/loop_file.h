#ifndef CATNAP_LIB_DISK_LOOP_FILE_H_
#define CATNAP_LIB_DISK_LOOP_FILE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <tuple>
#include <utility>

#include "base/unique_fd.h"
#include "disk/file_io.h"
#include "io/event_loop.h"

namespace catnap::disk {

// Which file it is: no other has both while somebody has it open.
struct FileKey {
  uint64_t device = 0;
  uint64_t inode = 0;

  friend bool operator<(const FileKey& a, const FileKey& b) {
    return std::tie(a.device, a.inode) < std::tie(b.device, b.inode);
  }
};

// A regular file or block device on an EventLoop. Thread-safe. Holds one
// descriptor, closed when the last user of it is gone: `fd` may be shared by
// LoopFiles of several loops.
class LoopFile final : public FileIo {
 public:
  // `loop` is borrowed and must outlive this object and be destroyed only after
  // every disk on it has been.
  LoopFile(std::shared_ptr<const base::UniqueFd> fd, io::EventLoop* loop)
      : fd_(std::move(fd)), loop_(loop) {}

  // open(2) with O_CLOEXEC. Blocks on the disk.
  // Errors: INVALID_ARGUMENT, neither a regular file nor a block device.
  static absl::StatusOr<std::shared_ptr<LoopFile>> Open(const std::string& path,
                                                        int flags,
                                                        io::EventLoop* loop);

  // Errors: what fstat(2) says.
  absl::StatusOr<FileKey> Key() const;

  void Read(std::span<const iovec> buffers, uint64_t offset,
            FileCompletion done) override;
  void Write(std::span<const iovec> buffers, uint64_t offset,
             FileCompletion done) override;
  void Datasync(FileCompletion done) override;
  void PunchHole(uint64_t offset, uint64_t length,
                 FileCompletion done) override;
  void StartTimer(std::chrono::nanoseconds delay, FileCompletion done) override;
  void Post(absl::AnyInvocable<void() &&> function) override;
  absl::StatusOr<uint64_t> Size() override;
  absl::Status SetSize(uint64_t bytes) override;
  absl::Status ReadNow(std::span<uint8_t> bytes, uint64_t offset) override;
  absl::Status WriteNow(std::span<const uint8_t> bytes,
                        uint64_t offset) override;

 private:
  const std::shared_ptr<const base::UniqueFd> fd_;
  io::EventLoop* const loop_;  // Not owned.
};

}  // namespace catnap::disk

#endif  // CATNAP_LIB_DISK_LOOP_FILE_H_
