#ifndef CATNAP_LIB_BASE_SCRATCH_BUFFER_H_
#define CATNAP_LIB_BASE_SCRATCH_BUFFER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace catnap::base {

// Memory for bytes that are about to be written, kept from use to use and never
// cleared: clearing would fault in what is not used. Thread-compatible.
class ScratchBuffer {
 public:
  // `bytes` bytes of no particular content, valid until the next call.
  std::span<uint8_t> Get(size_t bytes) {
    if (capacity_ < bytes) {
      data_ = std::make_unique_for_overwrite<uint8_t[]>(bytes);
      capacity_ = bytes;
    }
    return {data_.get(), bytes};
  }

 private:
  std::unique_ptr<uint8_t[]> data_;
  size_t capacity_ = 0;
};

}  // namespace catnap::base

#endif  // CATNAP_LIB_BASE_SCRATCH_BUFFER_H_
