#ifndef CATNAP_LIB_BASE_BYTE_ORDER_H_
#define CATNAP_LIB_BASE_BYTE_ORDER_H_

#include <bit>
#include <concepts>
#include <cstring>

namespace catnap::base {

static_assert(std::endian::native == std::endian::little,
              "x86-64 only: loads and stores below assume little-endian");

// Unaligned little-endian loads and stores. The caller has checked the bounds.
template <std::unsigned_integral T>
T LoadLe(const void* from) {
  T value{};
  std::memcpy(&value, from, sizeof(value));
  return value;
}

template <std::unsigned_integral T>
void StoreLe(void* to, T value) {
  std::memcpy(to, &value, sizeof(value));
}

}  // namespace catnap::base

#endif  // CATNAP_LIB_BASE_BYTE_ORDER_H_
