#include "disk/loop_file.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
// This header's place is after <sys/ioctl.h>.
#include <linux/fs.h>
#include <unistd.h>

#include <cerrno>

#include "base/checked.h"
#include "base/status.h"
#include "io/file.h"

namespace catnap::disk {

absl::StatusOr<std::shared_ptr<LoopFile>> LoopFile::Open(
    const std::string& path, int flags, io::EventLoop* loop) {
  // O_NONBLOCK: a FIFO in the file's place must not hold the caller up.
  CATNAP_ASSIGN_OR_RETURN(base::UniqueFd fd,
                          io::OpenFile(path, flags | O_NONBLOCK));
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) return ErrnoError(errno, "stat {}", path);
  if (!S_ISREG(info.st_mode) && !S_ISBLK(info.st_mode)) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "{} is neither a regular file nor a block device", path);
  }
  return std::make_shared<LoopFile>(
      std::make_shared<const base::UniqueFd>(std::move(fd)), loop);
}

absl::StatusOr<FileKey> LoopFile::Key() const {
  struct stat info {};
  if (::fstat(fd_->get(), &info) != 0) return ErrnoError(errno, "stat a disk");
  return FileKey{.device = info.st_dev, .inode = info.st_ino};
}

void LoopFile::Read(std::span<const iovec> buffers, uint64_t offset,
                    FileCompletion done) {
  loop_->ReadVector(fd_->get(), buffers, offset, std::move(done));
}

void LoopFile::Write(std::span<const iovec> buffers, uint64_t offset,
                     FileCompletion done) {
  loop_->WriteVector(fd_->get(), buffers, offset, std::move(done));
}

void LoopFile::Datasync(FileCompletion done) {
  loop_->Fdatasync(fd_->get(), std::move(done));
}

void LoopFile::PunchHole(uint64_t offset, uint64_t length,
                         FileCompletion done) {
  loop_->Fallocate(fd_->get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                   offset, length, std::move(done));
}

void LoopFile::StartTimer(std::chrono::nanoseconds delay, FileCompletion done) {
  loop_->StartTimer(std::chrono::steady_clock::now() + delay, std::move(done));
}

void LoopFile::Post(absl::AnyInvocable<void() &&> function) {
  loop_->Post(std::move(function));
}

absl::StatusOr<uint64_t> LoopFile::Size() {
  struct stat info {};
  if (::fstat(fd_->get(), &info) != 0) return ErrnoError(errno, "stat disk");
  if (S_ISBLK(info.st_mode)) {
    uint64_t bytes = 0;
    if (::ioctl(fd_->get(), BLKGETSIZE64, &bytes) != 0) {
      return ErrnoError(errno, "size of the block device");
    }
    return bytes;
  }
  return static_cast<uint64_t>(info.st_size);
}

absl::Status LoopFile::SetSize(uint64_t bytes) {
  const auto size = base::CheckedCast<off_t>(bytes);
  if (!size.has_value()) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "{} bytes leave the range of files", bytes);
  }
  if (::ftruncate(fd_->get(), *size) != 0) {
    return ErrnoError(errno, "grow the disk's file to {} bytes", bytes);
  }
  return absl::OkStatus();
}

absl::Status LoopFile::ReadNow(std::span<uint8_t> bytes, uint64_t offset) {
  return io::ReadFully(fd_->get(), bytes.data(), bytes.size(), offset);
}

absl::Status LoopFile::WriteNow(std::span<const uint8_t> bytes,
                                uint64_t offset) {
  return io::WriteFully(fd_->get(), bytes.data(), bytes.size(), offset);
}

}  // namespace catnap::disk
