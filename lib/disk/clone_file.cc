#include "disk/clone_file.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
// This header's place is after <sys/ioctl.h>.
#include <linux/fs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "base/status.h"
#include "base/unique_fd.h"
#include "io/file.h"

namespace catnap::disk {
namespace {

constexpr off_t kPieceBytes = 1 << 20;

// [at, end) of the files, by the kernel where it can.
absl::Status CopyData(int from, int to, off_t at, off_t end) {
  std::vector<uint8_t> piece;  // Used once the kernel said no.
  while (at < end) {
    const auto length = static_cast<size_t>(
        piece.empty() ? end - at : std::min(end - at, kPieceBytes));
    if (piece.empty()) {
      off_t in = at;
      off_t out = at;
      const ssize_t done =
          ::copy_file_range(from, &in, to, &out, length, /*flags=*/0);
      if (done > 0) {
        at += done;
        continue;
      }
      if (done < 0 && errno == EINTR) continue;
      if (done < 0 && errno == ENOSPC) {
        return ErrnoError(errno, "copy {} bytes", length);
      }
      piece.resize(kPieceBytes);
      continue;
    }
    CATNAP_RETURN_IF_ERROR(
        io::ReadFully(from, piece.data(), length, static_cast<uint64_t>(at)));
    CATNAP_RETURN_IF_ERROR(
        io::WriteFully(to, piece.data(), length, static_cast<uint64_t>(at)));
    at += static_cast<off_t>(length);
  }
  return absl::OkStatus();
}

absl::Status CopySparse(int from, int to, off_t size) {
  if (::ftruncate(to, size) != 0) {
    return ErrnoError(errno, "make a file of {} bytes", size);
  }
  off_t at = 0;
  while (at < size) {
    const off_t data = ::lseek(from, at, SEEK_DATA);
    if (data < 0 && errno == ENXIO) break;  // A hole up to the end.
    if (data < 0) return ErrnoError(errno, "look for data");
    off_t hole = ::lseek(from, data, SEEK_HOLE);
    if (hole < 0) return ErrnoError(errno, "look for a hole");
    hole = std::min(hole, size);
    CATNAP_RETURN_IF_ERROR(CopyData(from, to, data, hole));
    at = hole;
  }
  return absl::OkStatus();
}

absl::Status FillClone(int from, int to) {
  if (::ioctl(to, FICLONE, from) != 0) {
    struct stat info {};
    if (::fstat(from, &info) != 0) return ErrnoError(errno, "stat");
    CATNAP_RETURN_IF_ERROR(CopySparse(from, to, info.st_size));
  }
  if (::fsync(to) != 0) return ErrnoError(errno, "fsync");
  return absl::OkStatus();
}

}  // namespace

absl::Status CloneFile(const std::string& from, const std::string& to) {
  // O_NONBLOCK: a FIFO in the file's place must not hold the caller up.
  CATNAP_ASSIGN_OR_RETURN(
      const base::UniqueFd source,
      io::OpenFile(from, O_RDONLY | O_NOFOLLOW | O_NONBLOCK));
  struct stat info {};
  if (::fstat(source.get(), &info) != 0)
    return ErrnoError(errno, "stat {}", from);
  if (!S_ISREG(info.st_mode)) {
    return Error(absl::StatusCode::kInvalidArgument, "{} is not a regular file",
                 from);
  }
  CATNAP_ASSIGN_OR_RETURN(const base::UniqueFd target,
                          io::OpenFile(to, O_RDWR | O_CREAT | O_EXCL));
  absl::Status filled = FillClone(source.get(), target.get());
  if (filled.ok()) return filled;
  ::unlink(to.c_str());
  return AddContext(filled, fmt::format("clone {} to {}", from, to));
}

absl::Status LinkOrCloneFile(const std::string& from, const std::string& to,
                             CopyMode mode) {
  if (mode == CopyMode::kLink) {
    if (::link(from.c_str(), to.c_str()) == 0) return absl::OkStatus();
    // Another file system, one without links, or too many of them.
    if (errno != EXDEV && errno != EPERM && errno != EMLINK &&
        errno != EOPNOTSUPP) {
      return ErrnoError(errno, "link {} to {}", from, to);
    }
  }
  return CloneFile(from, to);
}

}  // namespace catnap::disk
