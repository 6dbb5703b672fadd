#include "base/mapping.h"

#include <sys/mman.h>

#include "base/status.h"

namespace catnap::base {

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  if (this != &other) {
    Reset();
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
  }
  return *this;
}

void Mapping::Reset() {
  if (data_ != nullptr) ::munmap(data_, size_);
  data_ = nullptr;
  size_ = 0;
}

absl::StatusOr<Mapping> Mapping::Reserve(size_t size, size_t alignment) {
  // Over-reserve, then cut the ends off so that the start is aligned.
  const size_t total = size + alignment;
  void* raw = ::mmap(nullptr, total, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (raw == MAP_FAILED) {
    return ErrnoError(errno, "reserve {} bytes of address space", size);
  }
  const auto start = reinterpret_cast<uintptr_t>(raw);
  const uintptr_t aligned = (start + alignment - 1) & ~(alignment - 1);
  const size_t head = aligned - start;
  const size_t tail = total - head - size;
  if (head != 0) ::munmap(raw, head);
  auto* data = static_cast<uint8_t*>(raw) + head;
  if (tail != 0) ::munmap(data + size, tail);
  return Mapping(data, size);
}

absl::StatusOr<Mapping> Mapping::Shared(int fd, size_t size, uint64_t offset) {
  void* data = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
                      static_cast<off_t>(offset));
  if (data == MAP_FAILED) {
    return ErrnoError(errno, "map {} bytes of descriptor {}", size, fd);
  }
  return Mapping(data, size);
}

absl::StatusOr<Mapping> Mapping::Anonymous(size_t size) {
  void* data = ::mmap(nullptr, size, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) return ErrnoError(errno, "map {} bytes", size);
  return Mapping(data, size);
}

}  // namespace catnap::base
