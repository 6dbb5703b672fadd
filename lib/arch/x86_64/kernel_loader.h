#ifndef CATNAP_LIB_ARCH_X86_64_KERNEL_LOADER_H_
#define CATNAP_LIB_ARCH_X86_64_KERNEL_LOADER_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "arch/x86_64/image_source.h"
#include "arch/x86_64/layout.h"
#include "memory/guest_memory.h"

namespace catnap::arch {

enum class KernelFormat { kElf, kBzImage };

// A kernel that lies in guest memory, ready to start in 64-bit mode.
struct LoadedKernel {
  KernelFormat format = KernelFormat::kElf;
  memory::Gpa entry;
  // The kernel uses [start, end): what was loaded, its bss, and for a bzImage
  // the room to unpack itself.
  memory::Gpa start;
  memory::Gpa end;
  // The longest command line it takes, in bytes without the NUL. x86 Linux
  // itself takes 2047.
  uint32_t max_command_line = 2047;
  // The initramfs must end at or below.
  uint64_t initramfs_limit = kLowRamEnd;
  // bzImage: the setup header (struct setup_header), at most as long as its
  // place in struct boot_params. ELF: empty.
  std::vector<uint8_t> setup_header;
};

// Loads an x86-64 kernel, either an ELF file (vmlinux: each PT_LOAD segment at
// its physical address, started at e_entry) or a bzImage (boot protocol 2.12
// and up with a 64-bit entry point, at its preferred address). The bytes go
// straight from the file into `memory`.
//
// The kernel must fit in RAM within [kHighMemoryStart, kBootMappedEnd).
// `memory` must be fresh: what the file says is zero (bss) is not written.
// After an error its content is not specified.
//
// Errors: INVALID_ARGUMENT (the file is no such kernel, is damaged, or does
// not fit; the message names the value and its limit), or the read's.
// Blocks on the disk.
absl::StatusOr<LoadedKernel> LoadKernel(memory::GuestMemory& memory,
                                        const ImageSource& file);

}  // namespace catnap::arch

#endif  // CATNAP_LIB_ARCH_X86_64_KERNEL_LOADER_H_
