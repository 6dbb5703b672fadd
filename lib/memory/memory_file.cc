#include "memory/memory_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "base/checked.h"
#include "base/status.h"
#include "memory/pager.h"

// Linux 5.14; an older kernel says EINVAL.
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

namespace catnap::memory {
namespace {

absl::Status CheckSize(uint64_t size) {
  if (size == 0 || !base::IsAligned(size, base::kPageBytes) ||
      size > static_cast<uint64_t>(INT64_MAX)) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "memory file of {} bytes, must be a multiple of 4096", size);
  }
  return absl::OkStatus();
}

absl::Status AddSeals(int fd, int seals) {
  if (::fcntl(fd, F_ADD_SEALS, seals) == 0) return absl::OkStatus();
  return ErrnoError(errno, "seal a memory file ({:#x})", seals);
}

}  // namespace

absl::Status AllocatePages(int fd, base::PageRange range) {
  // EINTR also stands for work that the thread's io_uring has to do, which the
  // return from the call does.
  while (::fallocate(fd, 0, static_cast<off_t>(range.offset),
                     static_cast<off_t>(range.length)) != 0) {
    if (errno == EINTR) continue;
    return ErrnoError(errno, "allocate {} bytes of a memory file",
                      range.length);
  }
  return absl::OkStatus();
}

MemoryFile::MemoryFile(base::UniqueFd fd, base::Mapping alias, uint64_t size)
    : fd_(std::move(fd)), alias_(std::move(alias)), size_(size) {}

MemoryFile::~MemoryFile() = default;

absl::StatusOr<std::unique_ptr<MemoryFile>> MemoryFile::Create(
    const std::string& name, uint64_t size) {
  CATNAP_RETURN_IF_ERROR(CheckSize(size));
  CATNAP_ASSIGN_OR_RETURN(base::UniqueFd fd, base::CreateMemFd(name, size));
  CATNAP_RETURN_IF_ERROR(AddSeals(fd.get(), F_SEAL_SHRINK | F_SEAL_GROW));
  CATNAP_ASSIGN_OR_RETURN(base::Mapping alias,
                          base::Mapping::Shared(fd.get(), size));
  for (const int advice : {MADV_DONTFORK, MADV_DONTDUMP}) {
    if (::madvise(alias.data(), alias.size(), advice) != 0) {
      return ErrnoError(errno, "madvise {} over a memory file", advice);
    }
  }
  // new: the constructor is private.
  return std::unique_ptr<MemoryFile>(
      new MemoryFile(std::move(fd), std::move(alias), size));
}

absl::StatusOr<std::unique_ptr<MemoryFile>> MemoryFile::Adopt(int fd) {
  const int seals = ::fcntl(fd, F_GET_SEALS);
  if (seals < 0) return ErrnoError(errno, "seals of descriptor {}", fd);
  constexpr int kNeeded = F_SEAL_SHRINK | F_SEAL_WRITE;
  if ((seals & kNeeded) != kNeeded) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "memory file has the seals {:#x}, needs {:#x}", seals,
                 kNeeded);
  }
  // A file that may grow would be no harm, but its size is read once.
  CATNAP_RETURN_IF_ERROR(AddSeals(fd, F_SEAL_GROW));
  struct stat info {};
  if (::fstat(fd, &info) != 0) {
    return ErrnoError(errno, "fstat of memory file {}", fd);
  }
  const auto size = static_cast<uint64_t>(info.st_size);
  CATNAP_RETURN_IF_ERROR(CheckSize(size));
  base::UniqueFd own(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (!own.valid()) return ErrnoError(errno, "duplicate memory file {}", fd);
  // new: the constructor is private.
  return std::unique_ptr<MemoryFile>(
      new MemoryFile(std::move(own), base::Mapping(), size));
}

absl::StatusOr<std::span<uint8_t>> MemoryFile::Writable(base::PageRange range) {
  if (!writable()) {
    return absl::FailedPreconditionError("the memory file is sealed");
  }
  if (!base::InRange(range.offset, range.length, size_)) {
    return Error(absl::StatusCode::kOutOfRange,
                 "{} bytes at {:#x} are not in a memory file of {} bytes",
                 range.length, range.offset, size_);
  }
  return std::span<uint8_t>(alias_.data() + range.offset, range.length);
}

absl::Status MemoryFile::Populate(base::PageRange range) {
  CATNAP_ASSIGN_OR_RETURN(const auto bytes, Writable(range));
  if (bytes.empty()) return absl::OkStatus();
  int populated = 0;
  do {
    populated = ::madvise(bytes.data(), bytes.size(), MADV_POPULATE_WRITE);
  } while (populated != 0 && errno == EINTR);
  if (populated == 0) return absl::OkStatus();
  // EINVAL: the kernel is older. Pages then fault when they are filled, but
  // that there is memory for them is known now, instead of by SIGBUS.
  if (errno == EINVAL) return AllocatePages(fd(), range);
  // EFAULT: SIGBUS would be the answer to a touch, there is no memory.
  const int error = errno == EFAULT ? ENOMEM : errno;
  return ErrnoError(error, "populate {} bytes of a memory file", range.length);
}

absl::Status MemoryFile::Discard(base::PageRange range) {
  CATNAP_ASSIGN_OR_RETURN(const auto bytes, Writable(range));
  if (sealed_to_alias_) {
    return absl::FailedPreconditionError(
        "the memory file is sealed to its alias");
  }
  if (bytes.empty()) return absl::OkStatus();
  if (::fallocate(fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                  static_cast<off_t>(range.offset),
                  static_cast<off_t>(range.length)) != 0) {
    return ErrnoError(errno, "discard {} bytes of a memory file", range.length);
  }
  return absl::OkStatus();
}

absl::Status MemoryFile::SealToAlias() {
  if (!writable()) {
    return absl::FailedPreconditionError("the memory file is sealed");
  }
  CATNAP_RETURN_IF_ERROR(AddSeals(fd(), F_SEAL_FUTURE_WRITE));
  sealed_to_alias_ = true;
  return absl::OkStatus();
}

absl::Status MemoryFile::Seal() {
  alias_.Reset();
  constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
  if (::fcntl(fd(), F_ADD_SEALS, kSeals) == 0) return absl::OkStatus();
  if (errno == EBUSY) {
    return absl::UnavailableError(
        "a memory file cannot be sealed: its pages are in use");
  }
  return ErrnoError(errno, "seal a memory file");
}

absl::Status MemoryFile::FillOnDemand(std::unique_ptr<PageSupply> supply,
                                      bool fills) {
  CATNAP_ASSIGN_OR_RETURN(const auto bytes, Writable({0, size_}));
  Pager::Options options;
  options.alias = bytes;
  options.supply = std::move(supply);
  options.on_full = [this] {
    // Where pages are in use by I/O the file stays sealed to an alias that
    // nobody has any more, which is as good.
    static_cast<void>(Seal());
  };
  // After the pager, without which the file is filled in other ways.
  CATNAP_ASSIGN_OR_RETURN(auto pager, Pager::Start(std::move(options)));
  CATNAP_RETURN_IF_ERROR(SealToAlias());
  // What it does from here on may end in Seal(), on its own thread.
  if (fills) CATNAP_RETURN_IF_ERROR(pager->StartFilling());
  pager_ = std::move(pager);
  return absl::OkStatus();
}

absl::Status MemoryFile::Read(uint64_t offset, std::span<uint8_t> into) const {
  if (!base::InRange(offset, into.size(), size_)) {
    return Error(absl::StatusCode::kOutOfRange,
                 "{} bytes at {:#x} are not in a memory file of {} bytes",
                 into.size(), offset, size_);
  }
  if (pager_ != nullptr && !into.empty()) {
    const uint64_t start = offset & ~(base::kPageBytes - 1);
    const uint64_t end = offset + into.size() + base::kPageBytes - 1;
    CATNAP_RETURN_IF_ERROR(
        pager_->BringIn({start, (end & ~(base::kPageBytes - 1)) - start}));
  }
  while (!into.empty()) {
    const ssize_t got =
        ::pread(fd(), into.data(), into.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoError(errno, "read a memory file");
    if (got == 0) return absl::InternalError("a memory file ended early");
    into = into.subspan(static_cast<size_t>(got));
    offset += static_cast<uint64_t>(got);
  }
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> MemoryFile::AllocatedBytes() const {
  struct stat info {};
  if (::fstat(fd(), &info) != 0) {
    return ErrnoError(errno, "fstat of a memory file");
  }
  return static_cast<uint64_t>(info.st_blocks) * 512;
}

}  // namespace catnap::memory
