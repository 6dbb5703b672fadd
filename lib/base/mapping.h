#ifndef CATNAP_LIB_BASE_MAPPING_H_
#define CATNAP_LIB_BASE_MAPPING_H_

#include <cstddef>
#include <cstdint>
#include <utility>

#include "absl/status/statusor.h"

namespace catnap::base {

// Owns a range of address space. Thread-compatible.
class Mapping {
 public:
  Mapping() = default;
  Mapping(Mapping&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        size_(std::exchange(other.size_, 0)) {}
  Mapping& operator=(Mapping&& other) noexcept;
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() { Reset(); }

  // Address space that nothing may touch yet (PROT_NONE); costs no memory.
  // `size` in bytes, a multiple of the page size, not 0; `alignment` a power
  // of two of at least a page (2 MiB lets the kernel use huge pages).
  static absl::StatusOr<Mapping> Reserve(size_t size, size_t alignment);

  // A shared mapping of `size` bytes of `fd` from `offset`, for reading and
  // writing.
  static absl::StatusOr<Mapping> Shared(int fd, size_t size,
                                        uint64_t offset = 0);

  // Private zeroed memory for reading and writing.
  static absl::StatusOr<Mapping> Anonymous(size_t size);

  uint8_t* data() const { return data_; }
  size_t size() const { return size_; }
  void Reset();

 private:
  Mapping(void* data, size_t size)
      : data_(static_cast<uint8_t*>(data)), size_(size) {}

  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace catnap::base

#endif  // CATNAP_LIB_BASE_MAPPING_H_
