#include "runtime/directory_copy.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <system_error>
#include <vector>

#include "base/status.h"
#include "base/unique_fd.h"
#include "io/file.h"

namespace catnap::runtime {
namespace {

// Between two looks at whether to stop.
constexpr uint64_t kStepBytes = uint64_t{64} << 20;
constexpr size_t kBufferBytes = size_t{1} << 20;

absl::Status CheckLimits(const agent::CallLimits& limits) {
  if (limits.stop.stop_requested()) return absl::CancelledError("cancelled");
  if (limits.deadline.has_value() &&
      std::chrono::steady_clock::now() >= *limits.deadline) {
    return absl::DeadlineExceededError("CallOptions::timeout has passed");
  }
  return absl::OkStatus();
}

absl::Status CopyRange(int from, int to, uint64_t start, uint64_t end,
                       const agent::CallLimits& limits) {
  std::vector<char> buffer;
  auto at = static_cast<off_t>(start);
  while (static_cast<uint64_t>(at) < end) {
    CATNAP_RETURN_IF_ERROR(CheckLimits(limits));
    const uint64_t left = end - static_cast<uint64_t>(at);
    off_t in = at;
    off_t out = at;
    const ssize_t copied =
        buffer.empty() ? ::copy_file_range(from, &in, to, &out,
                                           std::min(left, kStepBytes), 0)
                       : -1;
    if (copied > 0) {
      at += copied;
      continue;
    }
    // Two file systems, or one that cannot.
    if (buffer.empty()) buffer.resize(kBufferBytes);
    const size_t length = std::min<uint64_t>(left, buffer.size());
    CATNAP_RETURN_IF_ERROR(
        io::ReadFully(from, buffer.data(), length, static_cast<uint64_t>(at)));
    CATNAP_RETURN_IF_ERROR(
        io::WriteFully(to, buffer.data(), length, static_cast<uint64_t>(at)));
    at += static_cast<off_t>(length);
  }
  return absl::OkStatus();
}

absl::Status CopyFile(const std::filesystem::path& from,
                      const std::filesystem::path& to,
                      const agent::CallLimits& limits) {
  CATNAP_ASSIGN_OR_RETURN(const base::UniqueFd in,
                          io::OpenFile(from.string(), O_RDONLY | O_NOFOLLOW));
  CATNAP_ASSIGN_OR_RETURN(
      const base::UniqueFd out,
      io::OpenFile(to.string(), O_RDWR | O_CREAT | O_EXCL, 0644));
  struct stat info {};
  if (::fstat(in.get(), &info) != 0) {
    return ErrnoError(errno, "stat {}", from.string());
  }
  const auto size = static_cast<uint64_t>(info.st_size);
  if (::ioctl(out.get(), FICLONE, in.get()) != 0) {
    if (::ftruncate(out.get(), info.st_size) != 0) {
      return ErrnoError(errno, "size {}", to.string());
    }
    for (uint64_t at = 0; at < size;) {
      const off_t data = ::lseek(in.get(), static_cast<off_t>(at), SEEK_DATA);
      if (data < 0) break;  // A hole up to the end.
      const off_t hole = ::lseek(in.get(), data, SEEK_HOLE);
      const uint64_t end =
          hole < 0 ? size : std::min(size, static_cast<uint64_t>(hole));
      CATNAP_RETURN_IF_ERROR(CopyRange(
          in.get(), out.get(), static_cast<uint64_t>(data), end, limits));
      at = end;
    }
  }
  if (::fsync(out.get()) != 0)
    return ErrnoError(errno, "fsync {}", to.string());
  return absl::OkStatus();
}

using FileAction = std::function<absl::Status(const std::filesystem::path& from,
                                              const std::filesystem::path& to)>;

absl::Status Walk(const std::filesystem::path& from,
                  const std::filesystem::path& to, const FileAction& action) {
  std::error_code error;
  for (std::filesystem::directory_iterator at(from, error), end;
       !error && at != end; at.increment(error)) {
    const std::filesystem::path target = to / at->path().filename();
    const auto type = at->symlink_status(error).type();
    if (error) break;
    if (type == std::filesystem::file_type::regular) {
      CATNAP_RETURN_IF_ERROR(action(at->path(), target));
    } else if (type == std::filesystem::file_type::directory) {
      if (::mkdir(target.c_str(), S_IRWXU) != 0) {
        return ErrnoError(errno, "make {}", target.string());
      }
      CATNAP_RETURN_IF_ERROR(Walk(at->path(), target, action));
    } else {
      return Error(absl::StatusCode::kInvalidArgument,
                   "{} is neither a file nor a directory", at->path().string());
    }
  }
  if (error) return ErrnoError(error.value(), "read {}", from.string());
  return io::FsyncDirectory(to.string());
}

}  // namespace

absl::Status CopyDirectory(const std::filesystem::path& from,
                           const std::filesystem::path& to,
                           const agent::CallLimits& limits) {
  return Walk(from, to,
              [&limits](const std::filesystem::path& in,
                        const std::filesystem::path& out) -> absl::Status {
                CATNAP_RETURN_IF_ERROR(CheckLimits(limits));
                return CopyFile(in, out, limits);
              });
}

absl::Status LinkDirectory(const std::filesystem::path& from,
                           const std::filesystem::path& to) {
  return Walk(
      from, to,
      [](const std::filesystem::path& in, const std::filesystem::path& out) {
        if (::link(in.c_str(), out.c_str()) == 0) {
          return absl::OkStatus();
        }
        return ErrnoError(errno, "link {} to {}", in.string(), out.string());
      });
}

uint64_t OccupiedBytes(const std::filesystem::path& directory) {
  uint64_t bytes = 0;
  std::error_code error;
  for (std::filesystem::recursive_directory_iterator at(directory, error), end;
       !error && at != end; at.increment(error)) {
    struct stat info {};
    if (::lstat(at->path().c_str(), &info) == 0) {
      bytes += static_cast<uint64_t>(info.st_blocks) * 512;
    }
  }
  return bytes;
}

}  // namespace catnap::runtime
