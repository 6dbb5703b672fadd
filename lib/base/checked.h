#ifndef CATNAP_LIB_BASE_CHECKED_H_
#define CATNAP_LIB_BASE_CHECKED_H_

#include <concepts>
#include <limits>
#include <optional>
#include <type_traits>

namespace catnap::base {

// Sums, products and narrowing that say so when they do not fit.

template <std::integral T>
constexpr std::optional<T> CheckedAdd(std::type_identity_t<T> a, T b) {
  T result{};
  if (__builtin_add_overflow(a, b, &result)) return std::nullopt;
  return result;
}

template <std::integral T>
constexpr std::optional<T> CheckedMul(std::type_identity_t<T> a, T b) {
  T result{};
  if (__builtin_mul_overflow(a, b, &result)) return std::nullopt;
  return result;
}

template <std::integral To, std::integral From>
constexpr std::optional<To> CheckedCast(From value) {
  To result{};
  if (__builtin_add_overflow(value, From{0}, &result)) return std::nullopt;
  return result;
}

// `alignment` is a power of two.
template <std::unsigned_integral T>
constexpr bool IsAligned(T value, std::type_identity_t<T> alignment) {
  return (value & (alignment - 1)) == 0;
}

template <std::unsigned_integral T>
constexpr std::optional<T> AlignUp(T value, std::type_identity_t<T> alignment) {
  const auto sum = CheckedAdd<T>(value, static_cast<T>(alignment - 1));
  if (!sum.has_value()) return std::nullopt;
  return static_cast<T>(*sum & ~(alignment - 1));
}

template <std::unsigned_integral T>
constexpr T AlignDown(T value, std::type_identity_t<T> alignment) {
  return static_cast<T>(value & ~(alignment - 1));
}

// Whether [start, start + length) lies in [0, size). Never wraps.
template <std::unsigned_integral T>
constexpr bool InRange(T start, std::type_identity_t<T> length,
                       std::type_identity_t<T> size) {
  return start <= size && length <= size - start;
}

}  // namespace catnap::base

#endif  // CATNAP_LIB_BASE_CHECKED_H_
