#include "arch/x86_64/kernel_loader.h"

#include <elf.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "arch/x86_64/kernel_loader_internal.h"
#include "base/byte_order.h"
#include "base/status.h"

namespace catnap::arch {
namespace internal {

uint64_t KernelLimit(const memory::GuestMemory& memory) {
  const memory::Region& low = memory.regions().front();
  if (low.start.value != 0) return 0;
  return std::min(low.size, kBootMappedEnd);
}

absl::Status CheckPlace(const memory::GuestMemory& memory,
                        const std::string& what, uint64_t start,
                        uint64_t size) {
  const uint64_t limit = KernelLimit(memory);
  if (start < kHighMemoryStart) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "{} starts at {:#x}, must be at or above {:#x}", what, start,
                 kHighMemoryStart);
  }
  if (start > limit || size > limit - start) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "{} takes {} bytes from {:#x}, must end at or below {:#x} "
                 "(the guest has {} bytes of memory; a kernel lies in the "
                 "first {})",
                 what, size, start, limit, memory.size(), kBootMappedEnd);
  }
  return absl::OkStatus();
}

}  // namespace internal

absl::StatusOr<LoadedKernel> LoadKernel(memory::GuestMemory& memory,
                                        const ImageSource& file) {
  // Where a bzImage has the magic number of its setup header.
  static constexpr size_t kHdrsOffset = 0x202;
  std::array<uint8_t, kHdrsOffset + 4> head{};
  const size_t head_bytes = std::min<uint64_t>(head.size(), file.size());
  CATNAP_RETURN_IF_ERROR(file.ReadAt(0, std::span(head).first(head_bytes)));
  if (std::memcmp(head.data(), ELFMAG, SELFMAG) == 0) {
    return internal::LoadElf(memory, file);
  }
  if (std::memcmp(&head[kHdrsOffset], "HdrS", 4) == 0) {
    return internal::LoadBzImage(memory, file);
  }
  return Error(absl::StatusCode::kInvalidArgument,
               "{} is neither an ELF file nor a bzImage: it has {} bytes and "
               "starts with {:02x} {:02x} {:02x} {:02x}",
               file.name(), file.size(), head[0], head[1], head[2], head[3]);
}

}  // namespace catnap::arch
