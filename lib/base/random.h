#ifndef CATNAP_LIB_BASE_RANDOM_H_
#define CATNAP_LIB_BASE_RANDOM_H_

#include <array>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace catnap::base {

// Fills `into` from the kernel's generator: good for ids, keys and VMGENID.
// Thread-safe. Blocks only in the first seconds of the host's boot.
// Errors: UNAVAILABLE or what the kernel says; `into` is then unspecified.
absl::Status FillRandom(std::span<uint8_t> into);

template <size_t kSize>
absl::StatusOr<std::array<uint8_t, kSize>> RandomBytes() {
  std::array<uint8_t, kSize> bytes{};
  if (absl::Status status = FillRandom(bytes); !status.ok()) return status;
  return bytes;
}

}  // namespace catnap::base

#endif  // CATNAP_LIB_BASE_RANDOM_H_
