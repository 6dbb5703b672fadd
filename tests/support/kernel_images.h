#ifndef CATNAP_TESTS_SUPPORT_KERNEL_IMAGES_H_
#define CATNAP_TESTS_SUPPORT_KERNEL_IMAGES_H_

#include <elf.h>

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <vector>

#include "base/byte_order.h"

// Small files that a kernel loader takes, to be damaged by the tests.
namespace catnap::testing {

struct ElfSegment {
  uint64_t paddr = 0;
  std::vector<uint8_t> bytes;
  uint64_t memsz = 0;
};

// A 64-bit x86 executable: header, program headers, then the segments' bytes.
inline std::vector<uint8_t> MakeElf(uint64_t entry,
                                    const std::vector<ElfSegment>& segments) {
  Elf64_Ehdr header{};
  std::memcpy(header.e_ident, ELFMAG, SELFMAG);
  header.e_ident[EI_CLASS] = ELFCLASS64;
  header.e_ident[EI_DATA] = ELFDATA2LSB;
  header.e_ident[EI_VERSION] = EV_CURRENT;
  header.e_type = ET_EXEC;
  header.e_machine = EM_X86_64;
  header.e_version = EV_CURRENT;
  header.e_entry = entry;
  header.e_phoff = sizeof(header);
  header.e_ehsize = sizeof(header);
  header.e_phentsize = sizeof(Elf64_Phdr);
  header.e_phnum = static_cast<uint16_t>(segments.size());
  std::vector<uint8_t> image(sizeof(header) +
                             segments.size() * sizeof(Elf64_Phdr));
  std::memcpy(image.data(), &header, sizeof(header));
  for (size_t i = 0; i < segments.size(); ++i) {
    Elf64_Phdr program{};
    program.p_type = PT_LOAD;
    program.p_offset = image.size();
    program.p_paddr = segments[i].paddr;
    program.p_filesz = segments[i].bytes.size();
    program.p_memsz = segments[i].memsz;
    std::memcpy(&image[sizeof(header) + i * sizeof(program)], &program,
                sizeof(program));
    image.insert(image.end(), segments[i].bytes.begin(),
                 segments[i].bytes.end());
  }
  return image;
}

// Offsets of fields in what MakeElf() makes.
inline constexpr size_t ElfSegmentField(size_t segment, size_t field) {
  return sizeof(Elf64_Ehdr) + segment * sizeof(Elf64_Phdr) + field;
}

// Offsets in a bzImage (Documentation/x86/boot.rst, "The Real-Mode Kernel
// Header").
inline constexpr size_t kBzSetupSects = 0x1f1;
inline constexpr size_t kBzSyssize = 0x1f4;
inline constexpr size_t kBzBootFlag = 0x1fe;
inline constexpr size_t kBzJumpOffset = 0x201;
inline constexpr size_t kBzMagic = 0x202;
inline constexpr size_t kBzVersion = 0x206;
inline constexpr size_t kBzLoadflags = 0x211;
inline constexpr size_t kBzInitrdAddrMax = 0x22c;
inline constexpr size_t kBzKernelAlignment = 0x230;
inline constexpr size_t kBzRelocatable = 0x234;
inline constexpr size_t kBzXloadflags = 0x236;
inline constexpr size_t kBzCmdlineSize = 0x238;
inline constexpr size_t kBzSetupData = 0x250;
inline constexpr size_t kBzPrefAddress = 0x258;
inline constexpr size_t kBzInitSize = 0x260;
inline constexpr size_t kBzHeaderEnd = 0x26c;
inline constexpr size_t kBzPayload = 1024;  // setup_sects is 1.

template <std::unsigned_integral T>
void Patch(std::vector<uint8_t>& image, size_t at, T value) {
  base::StoreLe(&image.at(at + sizeof(T) - 1) - (sizeof(T) - 1), value);
}

// A relocatable bzImage of protocol 2.15 that prefers 2 MiB and wants 1 MiB to
// unpack itself. `payload` is filled up to a multiple of 16 bytes.
inline std::vector<uint8_t> MakeBzImage(std::vector<uint8_t> payload) {
  payload.resize((payload.size() + 15) / 16 * 16);
  std::vector<uint8_t> image(kBzPayload + payload.size());
  std::copy(payload.begin(), payload.end(), image.begin() + kBzPayload);
  Patch<uint8_t>(image, kBzSetupSects, 1);
  Patch<uint32_t>(image, kBzSyssize,
                  static_cast<uint32_t>(payload.size() / 16));
  Patch<uint16_t>(image, kBzBootFlag, 0xaa55);
  Patch<uint8_t>(image, kBzJumpOffset - 1, 0xeb);
  Patch<uint8_t>(image, kBzJumpOffset, kBzHeaderEnd - kBzMagic);
  std::memcpy(&image[kBzMagic], "HdrS", 4);
  Patch<uint16_t>(image, kBzVersion, 0x020f);
  Patch<uint8_t>(image, kBzLoadflags, 1);
  Patch<uint32_t>(image, kBzInitrdAddrMax, 0x7fff'ffff);
  Patch<uint32_t>(image, kBzKernelAlignment, 0x20'0000);
  Patch<uint8_t>(image, kBzRelocatable, 1);
  Patch<uint16_t>(image, kBzXloadflags, 1);
  Patch<uint32_t>(image, kBzCmdlineSize, 2047);
  Patch<uint64_t>(image, kBzPrefAddress, 0x20'0000);
  Patch<uint32_t>(image, kBzInitSize, 0x10'0000);
  return image;
}

// Bytes that differ from their neighbours, so that a shift is seen.
inline std::vector<uint8_t> Pattern(size_t size, uint8_t seed) {
  std::vector<uint8_t> bytes(size);
  for (size_t i = 0; i < size; ++i) {
    bytes[i] = static_cast<uint8_t>(seed + i * 7 + (i >> 8));
  }
  return bytes;
}

}  // namespace catnap::testing

#endif  // CATNAP_TESTS_SUPPORT_KERNEL_IMAGES_H_
