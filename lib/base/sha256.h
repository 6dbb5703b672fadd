#ifndef CATNAP_LIB_BASE_SHA256_H_
#define CATNAP_LIB_BASE_SHA256_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace catnap::base {

// SHA-256 (FIPS 180-4), to tell contents apart. Thread-compatible.
class Sha256 {
 public:
  using Digest = std::array<uint8_t, 32>;

  void Update(std::span<const uint8_t> bytes);
  // Of all that was given. At most once, last.
  Digest Finish();

 private:
  static constexpr size_t kBlockBytes = 64;
  void Block(const uint8_t* block);

  std::array<uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372,
                                    0xa54ff53a, 0x510e527f, 0x9b05688c,
                                    0x1f83d9ab, 0x5be0cd19};
  std::array<uint8_t, kBlockBytes> pending_{};
  size_t pending_bytes_ = 0;
  uint64_t total_bytes_ = 0;
};

// Lower case.
std::string HexText(std::span<const uint8_t> bytes);

}  // namespace catnap::base

#endif  // CATNAP_LIB_BASE_SHA256_H_
