#ifndef CATNAP_LIB_NET_WIRE_H_
#define CATNAP_LIB_NET_WIRE_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace catnap::net {

// Network byte order. The caller of the loads has checked the bounds.
inline uint16_t Load16(std::span<const uint8_t> from, size_t at) {
  return static_cast<uint16_t>(from[at] << 8 | from[at + 1]);
}

inline uint32_t Load32(std::span<const uint8_t> from, size_t at) {
  return uint32_t{Load16(from, at)} << 16 | Load16(from, at + 2);
}

inline void Store16(std::span<uint8_t> to, size_t at, uint16_t value) {
  to[at] = static_cast<uint8_t>(value >> 8);
  to[at + 1] = static_cast<uint8_t>(value);
}

inline void Append8(std::vector<uint8_t>* to, uint8_t value) {
  to->push_back(value);
}

inline void Append16(std::vector<uint8_t>* to, uint16_t value) {
  to->push_back(static_cast<uint8_t>(value >> 8));
  to->push_back(static_cast<uint8_t>(value));
}

inline void Append32(std::vector<uint8_t>* to, uint32_t value) {
  Append16(to, static_cast<uint16_t>(value >> 16));
  Append16(to, static_cast<uint16_t>(value));
}

inline void AppendBytes(std::vector<uint8_t>* to,
                        std::span<const uint8_t> bytes) {
  to->insert(to->end(), bytes.begin(), bytes.end());
}

// The sum of RFC 1071 over `bytes`, added to `sum`, for Checksum().
inline uint32_t AddToSum(uint32_t sum, std::span<const uint8_t> bytes) {
  uint64_t total = sum;
  size_t at = 0;
  for (; at + 1 < bytes.size(); at += 2) total += Load16(bytes, at);
  if (at < bytes.size()) total += uint32_t{bytes[at]} << 8;
  while (total >> 16 != 0) total = (total & 0xffff) + (total >> 16);
  return static_cast<uint32_t>(total);
}

// What a header with a zero checksum field is to hold there; 0 over a header
// that holds it.
inline uint16_t Checksum(uint32_t sum) {
  while (sum >> 16 != 0) sum = (sum & 0xffff) + (sum >> 16);
  return static_cast<uint16_t>(~sum);
}

}  // namespace catnap::net

#endif  // CATNAP_LIB_NET_WIRE_H_
