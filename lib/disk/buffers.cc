#include "disk/buffers.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/checked.h"
#include "base/status.h"
#include "disk/block_io.h"

namespace catnap::disk {
namespace {

constexpr size_t kZeroBytes = 64 << 10;
alignas(4096) constexpr std::array<uint8_t, kZeroBytes> kZeroes{};

}  // namespace

uint64_t TotalBytes(std::span<const iovec> buffers) {
  uint64_t total = 0;
  for (const iovec& buffer : buffers) {
    const auto sum = base::CheckedAdd<uint64_t>(total, buffer.iov_len);
    if (!sum.has_value()) return UINT64_MAX;
    total = *sum;
  }
  return total;
}

Buffers Slice(std::span<const iovec> buffers, uint64_t start, uint64_t length) {
  Buffers slice;
  for (const iovec& buffer : buffers) {
    if (length == 0) break;
    if (start >= buffer.iov_len) {
      start -= buffer.iov_len;
      continue;
    }
    const uint64_t take = std::min<uint64_t>(length, buffer.iov_len - start);
    slice.push_back({static_cast<uint8_t*>(buffer.iov_base) + start, take});
    start = 0;
    length -= take;
  }
  return slice;
}

void FillZero(std::span<const iovec> buffers) {
  for (const iovec& buffer : buffers) {
    if (buffer.iov_len != 0) std::memset(buffer.iov_base, 0, buffer.iov_len);
  }
}

Buffers ZeroBuffers(uint64_t length) {
  Buffers buffers;
  while (length > 0) {
    const uint64_t take = std::min<uint64_t>(length, kZeroBytes);
    // Only ever written from; iovec has no const.
    buffers.push_back({const_cast<uint8_t*>(kZeroes.data()), take});
    length -= take;
  }
  return buffers;
}

absl::Status CheckRange(uint64_t offset, uint64_t length, uint64_t max_length,
                        uint64_t capacity) {
  if (!base::IsAligned<uint64_t>(offset, kSectorBytes) ||
      !base::IsAligned<uint64_t>(length, kSectorBytes)) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "{} bytes at offset {} are not whole sectors", length, offset);
  }
  if (length > max_length) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "{} bytes in one request, must be at most {}", length,
                 max_length);
  }
  if (!base::InRange<uint64_t>(offset, length, capacity)) {
    return Error(absl::StatusCode::kOutOfRange,
                 "{} bytes at offset {} leave the disk of {} bytes", length,
                 offset, capacity);
  }
  return absl::OkStatus();
}

}  // namespace catnap::disk
