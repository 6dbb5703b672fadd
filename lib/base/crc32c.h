#ifndef CATNAP_LIB_BASE_CRC32C_H_
#define CATNAP_LIB_BASE_CRC32C_H_

#include <cstdint>
#include <span>

namespace catnap::base {

// CRC-32C (Castagnoli), as iSCSI, ext4 and NVMe use it. Thread-safe.

// The checksum of everything that `crc` covers, followed by `bytes`. Start
// with 0. Takes the processor's instruction where there is one.
uint32_t ExtendCrc32c(uint32_t crc, std::span<const uint8_t> bytes);

inline uint32_t Crc32c(std::span<const uint8_t> bytes) {
  return ExtendCrc32c(0, bytes);
}

namespace internal {

// The two implementations, so that tests can compare them.
uint32_t ExtendCrc32cPortable(uint32_t crc, std::span<const uint8_t> bytes);
// REQUIRES: HasCrc32cInstruction().
uint32_t ExtendCrc32cHardware(uint32_t crc, std::span<const uint8_t> bytes);
bool HasCrc32cInstruction();

}  // namespace internal
}  // namespace catnap::base

#endif  // CATNAP_LIB_BASE_CRC32C_H_
