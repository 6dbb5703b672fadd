#include "io/file.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "base/byte_order.h"
#include "base/checked.h"
#include "base/random.h"
#include "base/status.h"

namespace catnap::io {
namespace {

constexpr std::string_view kTemporaryPrefix = ".catnap-";
constexpr std::string_view kTemporarySuffix = ".tmp";

// Repeats a system call that a signal of the host program interrupted.
template <typename Call>
auto Retry(Call&& call) {
  decltype(call()) result{};
  do {
    result = call();
  } while (result < 0 && errno == EINTR);
  return result;
}

absl::Status CheckRange(size_t length, uint64_t offset) {
  const auto end = base::CheckedAdd<uint64_t>(offset, length);
  if (!end.has_value() || !base::CheckedCast<off_t>(*end).has_value()) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "{} bytes at offset {} leave the range of files", length,
                 offset);
  }
  return absl::OkStatus();
}

absl::Status CopyFile(int from, int to, const std::string& name,
                      const std::stop_token& stop) {
  CATNAP_ASSIGN_OR_RETURN(const base::UniqueFd in,
                          OpenFileAt(from, name, O_RDONLY));
  CATNAP_ASSIGN_OR_RETURN(const base::UniqueFd out,
                          OpenFileAt(to, name, O_WRONLY | O_CREAT | O_EXCL));
  constexpr size_t kStep = size_t{1} << 20;
  std::vector<uint8_t> buffer(kStep);
  uint64_t offset = 0;
  while (true) {
    if (stop.stop_requested()) {
      return Error(absl::StatusCode::kCancelled, "copy of {} was cancelled",
                   name);
    }
    const ssize_t got = Retry([&] {
      return ::pread(in.get(), buffer.data(), buffer.size(),
                     static_cast<off_t>(offset));
    });
    if (got < 0) return ErrnoError(errno, "read {}", name);
    if (got == 0) return absl::OkStatus();
    CATNAP_RETURN_IF_ERROR(AddContext(
        WriteFully(out.get(), buffer.data(), static_cast<size_t>(got), offset),
        name));
    offset += static_cast<uint64_t>(got);
  }
}

absl::StatusOr<std::string> RandomTemporaryName() {
  CATNAP_ASSIGN_OR_RETURN(const auto random, base::RandomBytes<8>());
  return fmt::format("{}{:016x}{}", kTemporaryPrefix,
                     base::LoadLe<uint64_t>(random.data()), kTemporarySuffix);
}

}  // namespace

absl::StatusOr<base::UniqueFd> OpenFile(const std::string& path, int flags,
                                        mode_t mode) {
  base::UniqueFd fd(
      Retry([&] { return ::open(path.c_str(), flags | O_CLOEXEC, mode); }));
  if (!fd.valid()) return ErrnoError(errno, "open {}", path);
  return fd;
}

absl::StatusOr<base::UniqueFd> OpenFileAt(int directory,
                                          const std::string& name, int flags,
                                          mode_t mode) {
  base::UniqueFd fd(Retry([&] {
    return ::openat(directory, name.c_str(), flags | O_CLOEXEC, mode);
  }));
  if (!fd.valid()) return ErrnoError(errno, "open {}", name);
  return fd;
}

absl::Status ReadFully(int fd, void* data, size_t length, uint64_t offset) {
  CATNAP_RETURN_IF_ERROR(CheckRange(length, offset));
  size_t done = 0;
  while (done < length) {
    const ssize_t got = Retry([&] {
      return ::pread(fd, static_cast<uint8_t*>(data) + done, length - done,
                     static_cast<off_t>(offset + done));
    });
    if (got < 0) {
      return ErrnoError(errno, "read {} bytes at offset {}", length, offset);
    }
    if (got == 0) {
      return Error(absl::StatusCode::kOutOfRange,
                   "read {} bytes at offset {}: the file ends after {} of them",
                   length, offset, done);
    }
    done += static_cast<size_t>(got);
  }
  return absl::OkStatus();
}

absl::Status WriteFully(int fd, const void* data, size_t length,
                        uint64_t offset) {
  CATNAP_RETURN_IF_ERROR(CheckRange(length, offset));
  size_t done = 0;
  while (done < length) {
    const ssize_t put = Retry([&] {
      return ::pwrite(fd, static_cast<const uint8_t*>(data) + done,
                      length - done, static_cast<off_t>(offset + done));
    });
    if (put <= 0) {
      // A write that makes no progress would loop for ever.
      return ErrnoError(put < 0 ? errno : EIO, "write {} bytes at offset {}",
                        length, offset);
    }
    done += static_cast<size_t>(put);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadFile(const std::string& path,
                                     size_t max_bytes) {
  CATNAP_ASSIGN_OR_RETURN(const base::UniqueFd fd,
                          OpenFile(path, O_RDONLY | O_NONBLOCK));
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) return ErrnoError(errno, "stat {}", path);
  if (!S_ISREG(info.st_mode)) {
    return Error(absl::StatusCode::kInvalidArgument, "{} is not a regular file",
                 path);
  }
  // The size is a hint (0 in /proc, and files grow); only reading decides.
  const size_t claimed = static_cast<size_t>(std::max<off_t>(info.st_size, 0));
  if (claimed > max_bytes) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "{} has {} bytes, must be at most {}", path, claimed,
                 max_bytes);
  }
  constexpr size_t kStep = 64 << 10;
  std::string content;
  size_t size = 0;
  while (true) {
    // One byte more than may come tells the end of the file from too much.
    const size_t room =
        std::min(max_bytes - size,
                 std::max(claimed - std::min(claimed, size), kStep)) +
        1;
    content.resize(size + room);
    const ssize_t got =
        Retry([&] { return ::read(fd.get(), content.data() + size, room); });
    if (got < 0) return ErrnoError(errno, "read {}", path);
    if (got == 0) break;
    size += static_cast<size_t>(got);
    if (size > max_bytes) {
      return Error(absl::StatusCode::kInvalidArgument,
                   "{} has more than {} bytes, which is the limit", path,
                   max_bytes);
    }
  }
  content.resize(size);
  return content;
}

absl::Status FsyncFile(int fd) {
  if (Retry([fd] { return ::fsync(fd); }) != 0) {
    return ErrnoError(errno, "fsync of descriptor {}", fd);
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> LinkOrCopy(int from, int to, const std::string& name,
                                const std::stop_token& stop) {
  if (::linkat(from, name.c_str(), to, name.c_str(), 0) == 0) return true;
  switch (errno) {
    case EXDEV:
    case EMLINK:
    case EPERM:  // The file system has no links, or this file must have none.
    case EOPNOTSUPP:
      CATNAP_RETURN_IF_ERROR(CopyFile(from, to, name, stop));
      return false;
    default:
      return ErrnoError(errno, "link {}", name);
  }
}

absl::Status FsyncDirectory(const std::string& path) {
  CATNAP_ASSIGN_OR_RETURN(const base::UniqueFd fd,
                          OpenFile(path, O_RDONLY | O_DIRECTORY));
  if (Retry([&fd] { return ::fsync(fd.get()); }) != 0) {
    return ErrnoError(errno, "fsync directory {}", path);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<AtomicFile>> AtomicFile::Create(
    const std::string& path, mode_t mode) {
  const size_t slash = path.rfind('/');
  std::string name = slash == std::string::npos ? path : path.substr(slash + 1);
  if (name.empty() || name == "." || name == "..") {
    return Error(absl::StatusCode::kInvalidArgument,
                 "path is \"{}\", must name a file", path);
  }
  const std::string folder = slash == std::string::npos ? "."
                             : slash == 0               ? "/"
                                                        : path.substr(0, slash);
  // Names relative to a descriptor: the host program may change its working
  // directory, or move ours, at any time.
  CATNAP_ASSIGN_OR_RETURN(base::UniqueFd directory,
                          OpenFile(folder, O_RDONLY | O_DIRECTORY));
  CATNAP_ASSIGN_OR_RETURN(std::string temporary, RandomTemporaryName());
  base::UniqueFd file(Retry([&] {
    return ::openat(directory.get(), temporary.c_str(),
                    O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, mode);
  }));
  if (!file.valid()) {
    return ErrnoError(errno, "create a temporary file in {}", folder);
  }
  return std::unique_ptr<AtomicFile>(
      new AtomicFile(path, std::move(name), std::move(temporary),
                     std::move(directory), std::move(file)));
}

AtomicFile::~AtomicFile() {
  if (!temporary_name_.empty()) {
    ::unlinkat(directory_.get(), temporary_name_.c_str(), 0);
  }
}

absl::Status AtomicFile::Append(const void* data, size_t length) {
  if (const absl::Status status =
          WriteFully(file_.get(), data, length, appended_bytes_);
      !status.ok()) {
    return AddContext(status, path_);
  }
  appended_bytes_ += length;
  return absl::OkStatus();
}

absl::Status AtomicFile::BeginCommit() {
  // Once only: after a failed fsync the next one may say OK although pages were
  // dropped, so the caller has to write the file again.
  if (std::exchange(commit_tried_, true)) {
    return Error(absl::StatusCode::kFailedPrecondition,
                 "Commit() of {} was called before", path_);
  }
  return absl::OkStatus();
}

absl::Status AtomicFile::Rename() {
  if (::renameat(directory_.get(), temporary_name_.c_str(), directory_.get(),
                 name_.c_str()) != 0) {
    return ErrnoError(errno, "rename to {}", path_);
  }
  temporary_name_.clear();
  return absl::OkStatus();
}

absl::Status AtomicFile::CommitLater() {
  CATNAP_RETURN_IF_ERROR(BeginCommit());
  return Rename();
}

absl::Status AtomicFile::Commit() {
  CATNAP_RETURN_IF_ERROR(BeginCommit());
  if (Retry([this] { return ::fsync(file_.get()); }) != 0) {
    return ErrnoError(errno, "fsync {}", path_);
  }
  CATNAP_RETURN_IF_ERROR(Rename());
  if (Retry([this] { return ::fsync(directory_.get()); }) != 0) {
    return ErrnoError(errno, "fsync the directory of {}", path_);
  }
  return absl::OkStatus();
}

bool AtomicFile::IsTemporaryName(std::string_view name) {
  constexpr size_t kRandomDigits = 16;
  return name.size() == kTemporaryPrefix.size() + kRandomDigits +
                            kTemporarySuffix.size() &&
         name.starts_with(kTemporaryPrefix) && name.ends_with(kTemporarySuffix);
}

}  // namespace catnap::io
