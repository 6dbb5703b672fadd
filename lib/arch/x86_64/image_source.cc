#include "arch/x86_64/image_source.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/checked.h"
#include "base/status.h"

namespace catnap::arch {

absl::StatusOr<ImageSource> ImageSource::FromFd(int fd, std::string name) {
  struct stat info {};
  if (::fstat(fd, &info) != 0) {
    return ErrnoError(errno, "fstat of {} (descriptor {})", name, fd);
  }
  if (!S_ISREG(info.st_mode)) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "{} (descriptor {}) must be a regular file or a memfd", name,
                 fd);
  }
  return ImageSource(fd, {}, static_cast<uint64_t>(info.st_size),
                     std::move(name));
}

ImageSource ImageSource::FromBytes(std::span<const uint8_t> bytes,
                                   std::string name) {
  return {-1, bytes, bytes.size(), std::move(name)};
}

absl::Status ImageSource::ReadAt(uint64_t offset,
                                 std::span<uint8_t> into) const {
  if (!base::InRange(offset, into.size(), size_)) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "{} is truncated: it has {} bytes, {} bytes at offset {} are "
                 "wanted",
                 name_, size_, into.size(), offset);
  }
  if (into.empty()) return absl::OkStatus();
  if (fd_ < 0) {
    std::memcpy(into.data(), bytes_.data() + offset, into.size());
    return absl::OkStatus();
  }
  size_t done = 0;
  while (done < into.size()) {
    const ssize_t count = ::pread(fd_, into.data() + done, into.size() - done,
                                  static_cast<off_t>(offset + done));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      return ErrnoError(errno, "read {} bytes at offset {} of {}",
                        into.size() - done, offset + done, name_);
    }
    if (count == 0) {
      return Error(absl::StatusCode::kInvalidArgument,
                   "{} had {} bytes and now ends at {}", name_, size_,
                   offset + done);
    }
    done += static_cast<size_t>(count);
  }
  return absl::OkStatus();
}

}  // namespace catnap::arch
