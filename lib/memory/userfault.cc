#include "memory/userfault.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "base/status.h"

// Linux 5.11 and 6.1; older headers lack them.
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

namespace catnap::memory {
namespace {

constexpr int kFlags = O_CLOEXEC | O_NONBLOCK;

// By the system call or, where that is for the privileged only, by the device,
// whose file mode says who may.
base::UniqueFd OpenAny(int* error) {
  base::UniqueFd fd(static_cast<int>(::syscall(SYS_userfaultfd, kFlags)));
  if (fd.valid()) return fd;
  *error = errno;
  const base::UniqueFd device(::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
  if (!device.valid()) return fd;
  return base::UniqueFd(::ioctl(device.get(), USERFAULTFD_IOC_NEW, kFlags));
}

absl::Status AskForSharedMemory(int fd) {
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = UFFD_FEATURE_MISSING_SHMEM;
  if (::ioctl(fd, UFFDIO_API, &api) == 0) return absl::OkStatus();
  return Error(absl::StatusCode::kFailedPrecondition,
               "userfaultfd does not serve shared memory here ({})",
               ErrnoText(errno));
}

}  // namespace

absl::StatusOr<Userfault> Userfault::Open() {
  int error = 0;
  base::UniqueFd fd = OpenAny(&error);
  if (!fd.valid()) {
    if (error == EMFILE || error == ENFILE || error == ENOMEM) {
      return ErrnoError(error, "userfaultfd");
    }
    return Error(
        absl::StatusCode::kFailedPrecondition,
        "userfaultfd may not serve faults of the kernel here ({}); it needs "
        "CAP_SYS_PTRACE, the sysctl vm.unprivileged_userfaultfd=1, or access "
        "to /dev/userfaultfd",
        ErrnoText(error));
  }
  CATNAP_RETURN_IF_ERROR(AskForSharedMemory(fd.get()));
  return Userfault(std::move(fd));
}

absl::StatusOr<Userfault> Userfault::OpenToPut() {
  // Also for the unprivileged.
  base::UniqueFd fd(static_cast<int>(
      ::syscall(SYS_userfaultfd, kFlags | UFFD_USER_MODE_ONLY)));
  if (!fd.valid()) return Open();
  CATNAP_RETURN_IF_ERROR(AskForSharedMemory(fd.get()));
  return Userfault(std::move(fd));
}

absl::Status Userfault::Register(const uint8_t* start, uint64_t length) const {
  uffdio_register area{};
  area.range.start = reinterpret_cast<uintptr_t>(start);
  area.range.len = length;
  area.mode = UFFDIO_REGISTER_MODE_MISSING;
  if (::ioctl(fd_.get(), UFFDIO_REGISTER, &area) == 0) return absl::OkStatus();
  return ErrnoError(errno, "register {} bytes with userfaultfd", length);
}

void Userfault::Unregister(const uint8_t* start, uint64_t length) const {
  uffdio_range range{};
  range.start = reinterpret_cast<uintptr_t>(start);
  range.len = length;
  ::ioctl(fd_.get(), UFFDIO_UNREGISTER, &range);
}

absl::StatusOr<std::optional<uintptr_t>> Userfault::NextFault() const {
  while (true) {
    uffd_msg message{};
    const ssize_t got = ::read(fd_.get(), &message, sizeof(message));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) return std::optional<uintptr_t>();
    if (got < 0) return ErrnoError(errno, "read a fault");
    if (got != sizeof(message)) {
      return absl::InternalError("userfaultfd gave a part of a fault");
    }
    if (message.event != UFFD_EVENT_PAGEFAULT) continue;  // None asked for.
    return std::optional<uintptr_t>(message.arg.pagefault.address &
                                    ~(base::kPageBytes - 1));
  }
}

void Userfault::Wake(uintptr_t start, uint64_t length) const {
  uffdio_range range{};
  range.start = start;
  range.len = length;
  ::ioctl(fd_.get(), UFFDIO_WAKE, &range);
}

absl::Status Userfault::Put(uint8_t* to, const uint8_t* from,
                            uint64_t length) const {
  uint64_t done = 0;
  while (done < length) {
    uffdio_copy copy{};
    copy.dst = reinterpret_cast<uintptr_t>(to) + done;
    copy.src = reinterpret_cast<uintptr_t>(from) + done;
    copy.len = length - done;
    if (::ioctl(fd_.get(), UFFDIO_COPY, &copy) == 0) return absl::OkStatus();
    const int error = errno;
    if (copy.copy > 0) {
      done += static_cast<uint64_t>(copy.copy);
    } else if (error == EEXIST) {
      done += base::kPageBytes;
    } else if (error != EAGAIN && error != EINTR) {
      return ErrnoError(error, "put {} bytes of guest memory in place",
                        length - done);
    }
  }
  return absl::OkStatus();
}

}  // namespace catnap::memory
