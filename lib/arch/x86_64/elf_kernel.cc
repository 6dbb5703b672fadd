#include <elf.h>

#include <algorithm>
#include <vector>

#include "arch/x86_64/kernel_loader_internal.h"
#include "base/checked.h"
#include "base/status.h"

namespace catnap::arch::internal {
namespace {

// A Linux kernel has five program headers; more than this is not a kernel, and
// the overlap check compares each with each.
constexpr int kMaxProgramHeaders = 64;

absl::StatusOr<Elf64_Ehdr> ReadHeader(const ImageSource& file) {
  Elf64_Ehdr header{};
  CATNAP_RETURN_IF_ERROR(
      file.ReadAt(0, {reinterpret_cast<uint8_t*>(&header), sizeof(header)}));
  if (header.e_ident[EI_CLASS] != ELFCLASS64 ||
      header.e_ident[EI_DATA] != ELFDATA2LSB || header.e_machine != EM_X86_64) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "{} is ELF of class {}, byte order {}, machine {}; must be "
                 "{}, {}, {} (64 bits, little-endian, x86-64)",
                 file.name(), header.e_ident[EI_CLASS], header.e_ident[EI_DATA],
                 header.e_machine, ELFCLASS64, ELFDATA2LSB, EM_X86_64);
  }
  if (header.e_ident[EI_VERSION] != EV_CURRENT) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "{} has ELF version {}, must be {}", file.name(),
                 header.e_ident[EI_VERSION], EV_CURRENT);
  }
  if (header.e_type != ET_EXEC && header.e_type != ET_DYN) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "{} has ELF type {}, must be {} or {} (executable, shared)",
                 file.name(), header.e_type, ET_EXEC, ET_DYN);
  }
  if (header.e_phentsize != sizeof(Elf64_Phdr) || header.e_phnum == 0 ||
      header.e_phnum > kMaxProgramHeaders) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "{} has {} program headers of {} bytes, must be 1 to {} of {}",
                 file.name(), header.e_phnum, header.e_phentsize,
                 kMaxProgramHeaders, sizeof(Elf64_Phdr));
  }
  return header;
}

std::string SegmentName(const ImageSource& file, size_t index) {
  return fmt::format("{} segment {}", file.name(), index);
}

absl::Status CheckSegment(const memory::GuestMemory& memory,
                          const ImageSource& file, size_t index,
                          const Elf64_Phdr& segment) {
  if (segment.p_filesz > segment.p_memsz) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "{} has {} bytes in the file, must be at most its {} bytes in "
                 "memory",
                 SegmentName(file, index), segment.p_filesz, segment.p_memsz);
  }
  if (!base::InRange(segment.p_offset, segment.p_filesz, file.size())) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "{} is truncated: {} bytes at offset {:#x} of a file of {} "
                 "bytes",
                 SegmentName(file, index), segment.p_filesz, segment.p_offset,
                 file.size());
  }
  return CheckPlace(memory, SegmentName(file, index), segment.p_paddr,
                    segment.p_memsz);
}

// The segments to load, each checked; their sums do not wrap.
absl::StatusOr<std::vector<Elf64_Phdr>> ReadSegments(
    const memory::GuestMemory& memory, const ImageSource& file,
    const Elf64_Ehdr& header) {
  std::vector<Elf64_Phdr> all(header.e_phnum);
  CATNAP_RETURN_IF_ERROR(
      file.ReadAt(header.e_phoff, {reinterpret_cast<uint8_t*>(all.data()),
                                   all.size() * sizeof(Elf64_Phdr)}));
  std::vector<Elf64_Phdr> segments;
  for (size_t i = 0; i < all.size(); ++i) {
    const Elf64_Phdr& segment = all[i];
    if (segment.p_type != PT_LOAD || segment.p_memsz == 0) continue;
    CATNAP_RETURN_IF_ERROR(CheckSegment(memory, file, i, segment));
    for (const Elf64_Phdr& other : segments) {
      if (segment.p_paddr < other.p_paddr + other.p_memsz &&
          other.p_paddr < segment.p_paddr + segment.p_memsz) {
        return Error(absl::StatusCode::kInvalidArgument,
                     "{} at [{:#x}, {:#x}) overlaps the one at [{:#x}, {:#x})",
                     SegmentName(file, i), segment.p_paddr,
                     segment.p_paddr + segment.p_memsz, other.p_paddr,
                     other.p_paddr + other.p_memsz);
      }
    }
    segments.push_back(segment);
  }
  if (segments.empty()) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "{} has no segment to load among {} program headers",
                 file.name(), header.e_phnum);
  }
  return segments;
}

}  // namespace

absl::StatusOr<LoadedKernel> LoadElf(memory::GuestMemory& memory,
                                     const ImageSource& file) {
  CATNAP_ASSIGN_OR_RETURN(const Elf64_Ehdr header, ReadHeader(file));
  CATNAP_ASSIGN_OR_RETURN(const std::vector<Elf64_Phdr> segments,
                          ReadSegments(memory, file, header));
  LoadedKernel kernel{.format = KernelFormat::kElf,
                      .entry = {header.e_entry},
                      .start = {segments[0].p_paddr},
                      .end = {0},
                      .setup_header = {}};
  bool entry_loaded = false;
  for (const Elf64_Phdr& segment : segments) {
    kernel.start.value = std::min(kernel.start.value, segment.p_paddr);
    kernel.end.value =
        std::max(kernel.end.value, segment.p_paddr + segment.p_memsz);
    entry_loaded |= header.e_entry >= segment.p_paddr &&
                    header.e_entry - segment.p_paddr < segment.p_filesz;
  }
  if (!entry_loaded) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "{} has its entry at {:#x}, must be in a loaded segment; they "
                 "lie in [{:#x}, {:#x})",
                 file.name(), header.e_entry, kernel.start.value,
                 kernel.end.value);
  }
  for (const Elf64_Phdr& segment : segments) {
    CATNAP_ASSIGN_OR_RETURN(
        const std::span<uint8_t> into,
        memory.Slice(memory::Gpa{segment.p_paddr}, segment.p_filesz));
    CATNAP_RETURN_IF_ERROR(file.ReadAt(segment.p_offset, into));
  }
  return kernel;
}

}  // namespace catnap::arch::internal
