#ifndef CATNAP_LIB_ARCH_X86_64_KERNEL_LOADER_INTERNAL_H_
#define CATNAP_LIB_ARCH_X86_64_KERNEL_LOADER_INTERNAL_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "arch/x86_64/kernel_loader.h"

// The parts of LoadKernel(), which see one format each.
namespace catnap::arch::internal {

absl::StatusOr<LoadedKernel> LoadElf(memory::GuestMemory& memory,
                                     const ImageSource& file);
absl::StatusOr<LoadedKernel> LoadBzImage(memory::GuestMemory& memory,
                                         const ImageSource& file);

// Where a kernel must end at the latest: RAM's end or kBootMappedEnd.
uint64_t KernelLimit(const memory::GuestMemory& memory);

// The error for [start, start + size) when a kernel cannot lie there; `what`
// names the part.
absl::Status CheckPlace(const memory::GuestMemory& memory,
                        const std::string& what, uint64_t start, uint64_t size);

}  // namespace catnap::arch::internal

#endif  // CATNAP_LIB_ARCH_X86_64_KERNEL_LOADER_INTERNAL_H_
