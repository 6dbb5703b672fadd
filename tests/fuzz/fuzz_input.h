#ifndef CATNAP_TESTS_FUZZ_FUZZ_INPUT_H_
#define CATNAP_TESTS_FUZZ_FUZZ_INPUT_H_

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <span>

namespace catnap::fuzz {

// Cuts a fuzzer's bytes into values, from the front. What is missing at the
// end reads as zero bytes, so that every input means something. Borrows the
// bytes.
class FuzzInput {
 public:
  FuzzInput(const uint8_t* data, size_t size) : rest_(data, size) {}

  bool empty() const { return rest_.empty(); }
  size_t size() const { return rest_.size(); }

  // The next sizeof(T) bytes, little-endian.
  template <std::integral T>
  T Integer() {
    T value{};
    const auto bytes = Bytes(sizeof(T));
    if (!bytes.empty()) std::memcpy(&value, bytes.data(), bytes.size());
    return value;
  }

  // A value of [low, high]; takes sizeof(T) bytes.
  template <std::unsigned_integral T>
  T Between(T low, T high) {
    const T span = static_cast<T>(high - low);
    const T value = Integer<T>();
    if (span == static_cast<T>(-1)) return value;
    return static_cast<T>(low + value % static_cast<T>(span + 1));
  }

  // The next `length` bytes, or fewer at the end.
  std::span<const uint8_t> Bytes(size_t length) {
    const auto bytes = rest_.first(std::min(length, rest_.size()));
    rest_ = rest_.subspan(bytes.size());
    return bytes;
  }

  // Everything that is left.
  std::span<const uint8_t> Rest() { return Bytes(rest_.size()); }

 private:
  std::span<const uint8_t> rest_;
};

}  // namespace catnap::fuzz

#endif  // CATNAP_TESTS_FUZZ_FUZZ_INPUT_H_
