#include "arch/x86_64/kernel_loader.h"

#include <cstddef>

#include "arch/x86_64/layout.h"
#include "support/kernel_images.h"
#include "unit/arch/arch_test_support.h"

namespace catnap::arch {
namespace {

using memory::Gpa;
using testing::ElfSegmentField;
using testing::Patch;
using testing::Pattern;

constexpr uint64_t kMemory = 16 << 20;
constexpr uint64_t kText = 0x20'0000;
constexpr uint64_t kData = 0x40'0000;

// Text of 8 KiB, and data of 100 bytes with bss up to 64 KiB.
std::vector<uint8_t> GoodElf() {
  return testing::MakeElf(kText + 0x10, {{kText, Pattern(8192, 1), 8192},
                                         {kData, Pattern(100, 2), 65536}});
}

std::vector<uint8_t> GoodBzImage() {
  return testing::MakeBzImage(Pattern(5000, 3));
}

absl::StatusOr<LoadedKernel> LoadBytes(memory::GuestMemory& memory,
                                       const std::vector<uint8_t>& bytes) {
  return LoadKernel(memory, ImageSource::FromBytes(bytes, "kernel"));
}

// The error that the loader has for `bytes`.
absl::Status Refusal(const std::vector<uint8_t>& bytes) {
  const auto memory = MakeMemory(kMemory);
  return LoadBytes(*memory, bytes).status();
}

TEST_CASE("An ELF kernel is loaded at its physical addresses") {
  const auto memory = MakeMemory(kMemory);
  const auto kernel = LoadBytes(*memory, GoodElf());
  INFO(kernel.status().ToString());
  REQUIRE(kernel.ok());
  CHECK(kernel->format == KernelFormat::kElf);
  CHECK(kernel->entry == Gpa{kText + 0x10});
  CHECK(kernel->start == Gpa{kText});
  CHECK(kernel->end == Gpa{kData + 65536});
  CHECK(kernel->max_command_line == 2047);
  CHECK(kernel->setup_header.empty());
  CHECK(ReadMemory(*memory, kText, 8192) == Pattern(8192, 1));
  CHECK(ReadMemory(*memory, kData, 100) == Pattern(100, 2));
  CHECK(ReadMemory(*memory, kData + 100, 1000) == std::vector<uint8_t>(1000));
}

TEST_CASE("A kernel is read from a memfd, whatever its offset is") {
  const auto memory = MakeMemory(kMemory);
  const auto fd = MakeFile(GoodElf());
  REQUIRE(::lseek(fd.get(), 7, SEEK_SET) == 7);
  const auto file = ImageSource::FromFd(fd.get(), "kernel");
  REQUIRE(file.ok());
  REQUIRE(LoadKernel(*memory, *file).ok());
  CHECK(ReadMemory(*memory, kText, 8192) == Pattern(8192, 1));
  CHECK(::lseek(fd.get(), 0, SEEK_CUR) == 7);
}

TEST_CASE("An ELF segment may end where the guest's memory ends") {
  const auto memory = MakeMemory(kMemory);
  const auto image = testing::MakeElf(
      kMemory - 4096, {{kMemory - 4096, Pattern(4096, 1), 4096}});
  CHECK(LoadBytes(*memory, image).ok());
}

TEST_CASE("Program headers that are not to load are skipped") {
  auto image = GoodElf();
  Patch<uint32_t>(image, ElfSegmentField(1, offsetof(Elf64_Phdr, p_type)),
                  PT_NOTE);
  Patch<uint64_t>(image, ElfSegmentField(1, offsetof(Elf64_Phdr, p_paddr)), 0);
  const auto memory = MakeMemory(kMemory);
  const auto kernel = LoadBytes(*memory, image);
  REQUIRE(kernel.ok());
  CHECK(kernel->end == Gpa{kText + 8192});
}

TEST_CASE("A file that is no kernel is refused by its first bytes") {
  CheckInvalid(Refusal({}), {"neither an ELF file nor a bzImage", "0 bytes"});
  CheckInvalid(Refusal({0x1f, 0x8b, 0x08, 0x00, 0x00}),
               {"5 bytes", "1f 8b 08 00"});
  CheckInvalid(Refusal(Pattern(100'000, 9)), {"100000 bytes"});
}

TEST_CASE("An ELF file cut at any place is refused") {
  const auto image = GoodElf();
  const size_t size =
      GENERATE(size_t{4}, size_t{63}, size_t{64}, size_t{119}, size_t{175},
               size_t{176}, size_t{5000}, size_t{8467});
  REQUIRE(size < image.size());
  CAPTURE(size);
  CheckInvalid(
      Refusal({image.begin(), image.begin() + static_cast<ptrdiff_t>(size)}),
      {"truncated", std::to_string(size)});
}

TEST_CASE("An ELF file for another machine is refused") {
  auto image = GoodElf();
  SECTION("32 bits") {
    image[EI_CLASS] = ELFCLASS32;
    CheckInvalid(Refusal(image), {"class 1", "64 bits"});
  }
  SECTION("big-endian") {
    image[EI_DATA] = ELFDATA2MSB;
    CheckInvalid(Refusal(image), {"byte order 2", "little-endian"});
  }
  SECTION("ARM") {
    Patch<uint16_t>(image, offsetof(Elf64_Ehdr, e_machine), EM_AARCH64);
    CheckInvalid(Refusal(image), {"machine 183", "62"});
  }
  SECTION("an unknown version") {
    image[EI_VERSION] = 2;
    CheckInvalid(Refusal(image), {"ELF version 2"});
  }
  SECTION("an object file") {
    Patch<uint16_t>(image, offsetof(Elf64_Ehdr, e_type), ET_REL);
    CheckInvalid(Refusal(image), {"ELF type 1"});
  }
}

TEST_CASE("An ELF file with a wrong program header table is refused") {
  auto image = GoodElf();
  SECTION("none") {
    Patch<uint16_t>(image, offsetof(Elf64_Ehdr, e_phnum), 0);
    CheckInvalid(Refusal(image), {"0 program headers", "1 to 64"});
  }
  SECTION("too many") {
    Patch<uint16_t>(image, offsetof(Elf64_Ehdr, e_phnum), 65);
    CheckInvalid(Refusal(image), {"65 program headers", "1 to 64"});
  }
  SECTION("of another size") {
    Patch<uint16_t>(image, offsetof(Elf64_Ehdr, e_phentsize), 32);
    CheckInvalid(Refusal(image), {"of 32 bytes", "of 56"});
  }
  SECTION("behind the file's end") {
    Patch<uint64_t>(image, offsetof(Elf64_Ehdr, e_phoff), image.size() - 111);
    CheckInvalid(Refusal(image), {"truncated"});
  }
  SECTION("at an offset that wraps") {
    Patch<uint64_t>(image, offsetof(Elf64_Ehdr, e_phoff), UINT64_MAX - 10);
    CheckInvalid(Refusal(image), {"truncated"});
  }
  SECTION("with nothing to load") {
    for (const size_t i : {size_t{0}, size_t{1}}) {
      Patch<uint32_t>(image, ElfSegmentField(i, offsetof(Elf64_Phdr, p_type)),
                      PT_NOTE);
    }
    CheckInvalid(Refusal(image), {"no segment to load"});
  }
}

TEST_CASE("An ELF segment that does not fit where it should go is refused") {
  const auto [paddr, memsz, limit] =
      GENERATE(table<uint64_t, uint64_t, std::string>({
          {0, 8192, "0x100000"},                     // in low memory
          {kAcpiStart, 8192, "0x100000"},            // over the ACPI tables
          {kHighMemoryStart - 1, 8192, "0x100000"},  // crosses into it
          {kMemory - 4096, 8192, "0x1000000"},       // behind the RAM
          {kMemory, 8192, "0x1000000"},
          {kText, kMemory, "0x1000000"},     // bss behind the RAM
          {kText, UINT64_MAX, "0x1000000"},  // the sum wraps
          {UINT64_MAX - 100, 8192, "0x1000000"},
      }));
  CAPTURE(paddr, memsz);
  auto image = GoodElf();
  Patch<uint64_t>(image, ElfSegmentField(0, offsetof(Elf64_Phdr, p_paddr)),
                  paddr);
  Patch<uint64_t>(image, ElfSegmentField(0, offsetof(Elf64_Phdr, p_memsz)),
                  memsz);
  CheckInvalid(Refusal(image),
               {"segment 0", fmt::format("{:#x}", paddr), limit});
}

TEST_CASE("A kernel must lie in what the boot page tables map") {
  // RAM is only reserved address space: nothing is touched up there.
  const auto memory = MakeMemory(kBootMappedEnd + (16 << 20));
  const auto image = testing::MakeElf(
      kBootMappedEnd - 4096, {{kBootMappedEnd - 4096, Pattern(16, 1), 8192}});
  CheckInvalid(LoadBytes(*memory, image).status(), {"0x40000000"});
}

TEST_CASE("An ELF segment with more bytes in file than in memory is refused") {
  auto image = GoodElf();
  Patch<uint64_t>(image, ElfSegmentField(1, offsetof(Elf64_Phdr, p_memsz)), 99);
  CheckInvalid(Refusal(image), {"segment 1", "100 bytes", "99 bytes"});
}

TEST_CASE("An ELF segment that is not in the file is refused") {
  auto image = GoodElf();
  const uint64_t offset =
      GENERATE(uint64_t{8469}, uint64_t{100'000}, UINT64_MAX, UINT64_MAX - 99);
  Patch<uint64_t>(image, ElfSegmentField(1, offsetof(Elf64_Phdr, p_offset)),
                  offset);
  CheckInvalid(Refusal(image), {"segment 1", "truncated"});
}

TEST_CASE("Overlapping ELF segments are refused") {
  auto image = GoodElf();
  const uint64_t paddr = GENERATE(kText + 0, kText + 8191, kText - 65535);
  Patch<uint64_t>(image, ElfSegmentField(1, offsetof(Elf64_Phdr, p_paddr)),
                  paddr);
  CheckInvalid(Refusal(image),
               {"segment 1", "overlaps", fmt::format("{:#x}", paddr)});
}

TEST_CASE("An ELF entry outside of what was loaded is refused") {
  auto image = GoodElf();
  const uint64_t entry =
      GENERATE(uint64_t{0}, kText - 1, kText + 8192, kData + 100, UINT64_MAX);
  Patch<uint64_t>(image, offsetof(Elf64_Ehdr, e_entry), entry);
  CheckInvalid(Refusal(image), {fmt::format("entry at {:#x}", entry)});
}

TEST_CASE("A bzImage is loaded at its preferred address") {
  const auto memory = MakeMemory(kMemory);
  auto image = GoodBzImage();
  const auto kernel = LoadBytes(*memory, image);
  INFO(kernel.status().ToString());
  REQUIRE(kernel.ok());
  CHECK(kernel->format == KernelFormat::kBzImage);
  CHECK(kernel->entry == Gpa{0x20'0200});
  CHECK(kernel->start == Gpa{0x20'0000});
  CHECK(kernel->end == Gpa{0x30'0000});
  CHECK(kernel->initramfs_limit == 0x8000'0000);
  CHECK(kernel->setup_header ==
        std::vector<uint8_t>(image.begin() + 0x1f1,
                             image.begin() + testing::kBzHeaderEnd));
  CHECK(ReadMemory(*memory, 0x20'0000, 5000) == Pattern(5000, 3));
}

TEST_CASE("What follows a bzImage's code, such as a signature, is not loaded") {
  const auto memory = MakeMemory(kMemory);
  auto image = GoodBzImage();
  image.resize(image.size() + 1000, 0xee);
  REQUIRE(LoadBytes(*memory, image).ok());
  CHECK(ReadMemory(*memory, 0x20'0000 + 5008, 992) ==
        std::vector<uint8_t>(992));
}

TEST_CASE("A bzImage without the last bytes of a paragraph is whole") {
  const auto memory = MakeMemory(kMemory);
  auto image = GoodBzImage();
  image.resize(image.size() - 15);
  CHECK(LoadBytes(*memory, image).ok());
  image.resize(image.size() - 1);
  CheckInvalid(Refusal(image), {"truncated", std::to_string(image.size()),
                                std::to_string(image.size() + 1)});
}

TEST_CASE("A bzImage that counts 0 setup sectors has 4") {
  const auto memory = MakeMemory(kMemory);
  auto image = GoodBzImage();
  Patch<uint8_t>(image, testing::kBzSetupSects, 0);
  image.insert(image.begin() + testing::kBzPayload, 1536, 0xdd);
  REQUIRE(LoadBytes(*memory, image).ok());
  CHECK(ReadMemory(*memory, 0x20'0000, 5000) == Pattern(5000, 3));
}

TEST_CASE("A relocatable bzImage is loaded on its alignment above 1 MiB") {
  const auto memory = MakeMemory(kMemory);
  auto image = GoodBzImage();
  const auto [preferred, start] = GENERATE(table<uint64_t, uint64_t>(
      {{0, 0x20'0000}, {0x10'0000, 0x20'0000}, {0x20'0001, 0x40'0000}}));
  Patch<uint64_t>(image, testing::kBzPrefAddress, preferred);
  const auto kernel = LoadBytes(*memory, image);
  REQUIRE(kernel.ok());
  CHECK(kernel->start == Gpa{start});
}

TEST_CASE("A bzImage that is not relocatable goes to its own address only") {
  const auto memory = MakeMemory(kMemory);
  auto image = GoodBzImage();
  Patch<uint8_t>(image, testing::kBzRelocatable, 0);
  Patch<uint64_t>(image, testing::kBzPrefAddress, 0x10'1000);
  const auto kernel = LoadBytes(*memory, image);
  REQUIRE(kernel.ok());
  CHECK(kernel->start == Gpa{0x10'1000});
  Patch<uint64_t>(image, testing::kBzPrefAddress, 0xf'f000);
  CheckInvalid(Refusal(image), {"0xff000", "0x100000"});
}

TEST_CASE("A bzImage that cannot start in 64-bit mode is refused") {
  auto image = GoodBzImage();
  SECTION("no boot flag") {
    Patch<uint16_t>(image, testing::kBzBootFlag, 0);
    CheckInvalid(Refusal(image), {"boot flag 0x0", "0xaa55"});
  }
  SECTION("an old protocol") {
    Patch<uint16_t>(image, testing::kBzVersion, 0x020b);
    CheckInvalid(Refusal(image), {"boot protocol 0x20b", "0x20c"});
  }
  SECTION("a 32-bit kernel") {
    Patch<uint16_t>(image, testing::kBzXloadflags, 2);
    CheckInvalid(Refusal(image), {"64-bit entry", "xloadflags 0x2"});
  }
  SECTION("a zImage") {
    Patch<uint8_t>(image, testing::kBzLoadflags, 0);
    CheckInvalid(Refusal(image), {"loadflags 0x0"});
  }
}

TEST_CASE("A bzImage whose setup header has an impossible length is refused") {
  auto image = GoodBzImage();
  const int jump = GENERATE(0, 0x65, 0x8f, 0xff);
  Patch<uint8_t>(image, testing::kBzJumpOffset, static_cast<uint8_t>(jump));
  CheckInvalid(Refusal(image),
               {fmt::format("{:#x}", 0x202 + jump), "0x268", "0x290"});
}

TEST_CASE("A bzImage cut at any place is refused") {
  const auto image = GoodBzImage();
  const size_t size = GENERATE(size_t{0x206}, size_t{0x240}, size_t{0x26b},
                               size_t{0x26c}, size_t{1024}, size_t{4096});
  CAPTURE(size);
  CheckInvalid(
      Refusal({image.begin(), image.begin() + static_cast<ptrdiff_t>(size)}),
      {"truncated", std::to_string(size)});
}

TEST_CASE("A bzImage without code behind the entry point is refused") {
  auto image = GoodBzImage();
  const uint32_t paragraphs = GENERATE(0u, 0x20u);
  Patch<uint32_t>(image, testing::kBzSyssize, paragraphs);
  CheckInvalid(Refusal(image),
               {fmt::format("{} bytes", paragraphs * 16), "512"});
}

TEST_CASE("A bzImage that wants more memory than the guest has is refused") {
  auto image = GoodBzImage();
  SECTION("to unpack itself") {
    Patch<uint32_t>(image, testing::kBzInitSize, kMemory);
    CheckInvalid(Refusal(image),
                 {std::to_string(kMemory), "0x200000", "0x1000000"});
  }
  SECTION("at its preferred address") {
    Patch<uint64_t>(image, testing::kBzPrefAddress, kMemory);
    CheckInvalid(Refusal(image), {"0x1000000"});
  }
  SECTION("at an address that wraps when it is aligned") {
    Patch<uint64_t>(image, testing::kBzPrefAddress, UINT64_MAX);
    CheckInvalid(Refusal(image), {"0xffffffffffffffff", "0x1000000"});
  }
  SECTION("at an address that wraps with its size") {
    Patch<uint8_t>(image, testing::kBzRelocatable, 0);
    Patch<uint64_t>(image, testing::kBzPrefAddress, UINT64_MAX - 4095);
    CheckInvalid(Refusal(image), {"0x1000000"});
  }
}

TEST_CASE("A bzImage with a strange alignment is refused") {
  auto image = GoodBzImage();
  const uint32_t alignment = GENERATE(0u, 3u, 0x30'0000u);
  Patch<uint32_t>(image, testing::kBzKernelAlignment, alignment);
  CheckInvalid(Refusal(image),
               {fmt::format("{:#x}", alignment), "power of two"});
}

TEST_CASE("A kernel descriptor that is no regular file is refused") {
  int fds[2] = {-1, -1};
  REQUIRE(::pipe(fds) == 0);
  const base::UniqueFd in(fds[0]);
  const base::UniqueFd out(fds[1]);
  CheckInvalid(ImageSource::FromFd(in.get(), "kernel").status(),
               {"kernel", "regular file"});
  CHECK_FALSE(ImageSource::FromFd(-1, "kernel").ok());
}

TEST_CASE("A file that shrinks while it is read is refused") {
  const auto fd = MakeFile(GoodElf());
  const auto file = ImageSource::FromFd(fd.get(), "kernel");
  REQUIRE(file.ok());
  REQUIRE(::ftruncate(fd.get(), 4000) == 0);
  const auto memory = MakeMemory(kMemory);
  CheckInvalid(LoadKernel(*memory, *file).status(), {"ends at 4000"});
}

}  // namespace
}  // namespace catnap::arch
