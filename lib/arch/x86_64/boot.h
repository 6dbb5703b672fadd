#ifndef CATNAP_LIB_ARCH_X86_64_BOOT_H_
#define CATNAP_LIB_ARCH_X86_64_BOOT_H_

#include <string>

#include "absl/status/statusor.h"
#include "arch/x86_64/acpi.h"
#include "arch/x86_64/image_source.h"
#include "arch/x86_64/initial_state.h"
#include "arch/x86_64/kernel_loader.h"
#include "memory/guest_memory.h"

namespace catnap::arch {

// What a Linux guest starts from. The descriptors are borrowed for the call.
struct LinuxBoot {
  int kernel_fd = -1;     // vmlinux or bzImage; see LoadKernel().
  int initramfs_fd = -1;  // -1: none.
  std::string command_line;
  AcpiConfig acpi;
};

// Makes `memory` what firmware and a boot loader would leave: kernel,
// initramfs, command line, ACPI tables, reset code, zero page, segment table
// and page tables, at the places in layout.h, and says where the first vCPU
// starts.
//
// `memory` must be mapped, fresh (all zero), and start at 0; after an error its
// content is not specified. Cost: reading both files. Blocks on the disk.
//
// Errors: INVALID_ARGUMENT (kernel, see LoadKernel(); initramfs that is empty
// or does not fit; command line that is too long or holds a NUL; ACPI
// configuration), FAILED_PRECONDITION (memory not mapped), or a read's.
absl::StatusOr<InitialState> LoadLinux(memory::GuestMemory& memory,
                                       const LinuxBoot& boot);

// The parts of LoadLinux() that have errors of their own.

// Puts the command line, with a NUL behind it, at kCommandLine.
// Errors: INVALID_ARGUMENT (longer than `kernel` takes, or holds a NUL).
absl::Status WriteCommandLine(memory::GuestMemory& memory,
                              const LoadedKernel& kernel,
                              const std::string& command_line);

// Reads `file` into RAM below 4 GiB as high as the kernel allows, on a page
// boundary and clear of the kernel. Returns where.
// Errors: INVALID_ARGUMENT (empty, or does not fit), or the read's.
absl::StatusOr<memory::Gpa> LoadInitramfs(memory::GuestMemory& memory,
                                          const LoadedKernel& kernel,
                                          const ImageSource& file);

// Writes the code at kResetVector, for a guest that resets by jumping there in
// real mode: it writes kResetValue to kResetPort. Linux with EFI support does
// so on a hardware-reduced machine without EFI, and never tries RESET_REG.
absl::Status WriteResetCode(memory::GuestMemory& memory);

// Writes the segment table and the page tables, which map [0, kBootMappedEnd)
// one to one with pages of 2 MiB.
// Returns the state that starts `kernel` with them.
absl::StatusOr<InitialState> WriteInitialState(memory::GuestMemory& memory,
                                               const LoadedKernel& kernel);

}  // namespace catnap::arch

#endif  // CATNAP_LIB_ARCH_X86_64_BOOT_H_
