#ifndef CATNAP_LIB_DISK_BUFFERS_H_
#define CATNAP_LIB_DISK_BUFFERS_H_

#include <sys/uio.h>

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"

namespace catnap::disk {

// Buffers of a request, and parts of them.
using Buffers = std::vector<iovec>;

// The sum of the lengths; UINT64_MAX when it does not fit.
uint64_t TotalBytes(std::span<const iovec> buffers);

// The bytes [start, start + length) of the buffers, which hold them.
Buffers Slice(std::span<const iovec> buffers, uint64_t start, uint64_t length);

void FillZero(std::span<const iovec> buffers);

// Buffers of `length` zero bytes, for writing from: they all name one page,
// which nobody may change.
Buffers ZeroBuffers(uint64_t length);

// Whether a request may be started. Errors: as BlockIo says.
absl::Status CheckRange(uint64_t offset, uint64_t length, uint64_t max_length,
                        uint64_t capacity);

}  // namespace catnap::disk

#endif  // CATNAP_LIB_DISK_BUFFERS_H_
