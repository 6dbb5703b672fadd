#ifndef CATNAP_LIB_ARCH_X86_64_BOOT_PARAMS_H_
#define CATNAP_LIB_ARCH_X86_64_BOOT_PARAMS_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "arch/x86_64/kernel_loader.h"
#include "memory/guest_memory.h"

namespace catnap::arch {

// The types of memory that the guest is told of (ACPI 6.4, 15.2).
enum class E820Type : uint32_t { kRam = 1, kReserved = 2, kAcpi = 3 };

struct E820Entry {
  uint64_t start = 0;
  uint64_t size = 0;
  E820Type type = E820Type::kRam;

  friend bool operator==(const E820Entry&, const E820Entry&) = default;
};

// The guest's memory map: all of `regions` is RAM but what lies between
// kLowMemoryEnd and kHighMemoryStart. There the tables are ACPI memory; the
// rest is reserved, so that the guest gives the VM generation id's page to
// nobody and may still map it.
// Errors: INVALID_ARGUMENT (RAM does not start at 0, does not reach beyond
// kHighMemoryStart, or is in more regions than the zero page has room for).
absl::StatusOr<std::vector<E820Entry>> BuildE820(
    const std::vector<memory::Region>& regions);

// What the zero page says beyond the kernel's own setup header. Command line
// and initramfs must lie in guest memory already.
struct BootParams {
  uint32_t command_line = 0;    // Gpa of its first byte; it ends with NUL.
  uint32_t initramfs = 0;       // Gpa.
  uint32_t initramfs_size = 0;  // 0: none.
};

// The zero page (struct boot_params, 4 KiB) for `kernel`, with the memory map
// and the address of the RSDP.
// Errors: as BuildE820().
absl::StatusOr<std::vector<uint8_t>> BuildZeroPage(
    const LoadedKernel& kernel, const BootParams& params,
    const std::vector<memory::Region>& regions);

}  // namespace catnap::arch

#endif  // CATNAP_LIB_ARCH_X86_64_BOOT_PARAMS_H_
