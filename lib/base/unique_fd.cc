#include "base/unique_fd.h"

#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>

#include "base/status.h"

namespace catnap::base {

UniqueFd& UniqueFd::operator=(UniqueFd&& other) noexcept {
  if (this != &other) {
    Reset();
    fd_ = std::exchange(other.fd_, -1);
  }
  return *this;
}

void UniqueFd::Reset() {
  // close() releases the number even when it reports an error on Linux, so a
  // retry would close somebody else's descriptor.
  if (fd_ >= 0) ::close(std::exchange(fd_, -1));
}

absl::StatusOr<UniqueFd> CreateEventFd() {
  UniqueFd fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!fd.valid()) return ErrnoError(errno, "eventfd");
  return fd;
}

void SignalEventFd(int fd) {
  const uint64_t one = 1;
  while (::write(fd, &one, sizeof(one)) < 0 && errno == EINTR) {
  }
}

bool DrainEventFd(int fd) {
  uint64_t count = 0;
  ssize_t got = 0;
  do {
    got = ::read(fd, &count, sizeof(count));
  } while (got < 0 && errno == EINTR);
  return got == static_cast<ssize_t>(sizeof(count));
}

absl::StatusOr<UniqueFd> CreateMemFd(const std::string& name, uint64_t size) {
  UniqueFd fd(::memfd_create(name.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid()) return ErrnoError(errno, "memfd_create {}", name);
  if (::ftruncate(fd.get(), static_cast<off_t>(size)) != 0) {
    return ErrnoError(errno, "ftruncate of memfd {} to {} bytes", name, size);
  }
  return fd;
}

}  // namespace catnap::base
