#include "arch/x86_64/boot.h"

#include <algorithm>

#include "arch/x86_64/boot_params.h"
#include "arch/x86_64/layout.h"
#include "base/byte_order.h"
#include "support/kernel_images.h"
#include "unit/arch/arch_test_support.h"

namespace catnap::arch {
namespace {

using memory::Gpa;
using testing::Pattern;

constexpr uint64_t kMemory = 16 << 20;
constexpr uint64_t kText = 0x20'0000;

// Offsets in struct boot_params (Documentation/x86/zero-page.rst).
constexpr size_t kRsdpAddress = 0x070;
constexpr size_t kE820Entries = 0x1e8;
constexpr size_t kSentinel = 0x1ef;
constexpr size_t kBootFlag = 0x1fe;
constexpr size_t kMagic = 0x202;
constexpr size_t kLoaderType = 0x210;
constexpr size_t kRamdiskImage = 0x218;
constexpr size_t kRamdiskSize = 0x21c;
constexpr size_t kCommandLinePointer = 0x228;
constexpr size_t kE820Table = 0x2d0;
constexpr size_t kE820EntryBytes = 20;

template <typename T>
T FieldOf(const std::vector<uint8_t>& page, size_t offset) {
  return base::LoadLe<T>(&page.at(offset));
}

std::vector<uint8_t> SmallElf() {
  return testing::MakeElf(kText, {{kText, Pattern(4096, 1), 8192}});
}

LoadedKernel KernelAt(uint64_t start, uint64_t end) {
  LoadedKernel kernel;
  kernel.entry = kernel.start = Gpa{start};
  kernel.end = Gpa{end};
  return kernel;
}

std::string CommandLineIn(const memory::GuestMemory& memory, size_t size) {
  const auto bytes = ReadMemory(memory, kCommandLine, size);
  return {bytes.begin(), bytes.end()};
}

TEST_CASE("The memory map keeps tables and generation id out of RAM") {
  const auto map = BuildE820({{Gpa{0}, kMemory, 0}});
  REQUIRE(map.ok());
  CHECK(*map == std::vector<E820Entry>{
                    {0, 0x9'fc00, E820Type::kRam},
                    {0x9'fc00, 0x4'0400, E820Type::kReserved},
                    {0xe'0000, 0x1'f000, E820Type::kAcpi},
                    {0xf'f000, 0x1000, E820Type::kReserved},
                    {0x10'0000, kMemory - 0x10'0000, E820Type::kRam}});
}

TEST_CASE("The memory map goes on above 4 GiB") {
  const auto map = BuildE820(
      {{Gpa{0}, kLowRamEnd, 0}, {Gpa{kHighRamStart}, 1 << 30, kLowRamEnd}});
  REQUIRE(map.ok());
  REQUIRE(map->size() == 6);
  CHECK((*map)[4] == E820Entry{kHighMemoryStart, kLowRamEnd - kHighMemoryStart,
                               E820Type::kRam});
  CHECK((*map)[5] == E820Entry{kHighRamStart, 1 << 30, E820Type::kRam});
}

TEST_CASE("The memory map refuses RAM that a guest cannot boot in") {
  CheckInvalid(BuildE820({}).status(), {"0 bytes"});
  CheckInvalid(BuildE820({{Gpa{0}, kHighMemoryStart, 0}}).status(),
               {"1048576"});
  CheckInvalid(BuildE820({{Gpa{4096}, kMemory, 0}}).status(), {"0x1000"});
  std::vector<memory::Region> regions;
  for (uint64_t i = 0; i < 125; ++i) {
    regions.push_back({Gpa{2 * i * kMemory}, kMemory, i * kMemory});
  }
  CheckInvalid(BuildE820(regions).status(), {"125 regions", "at most 124"});
  regions.pop_back();
  CHECK(BuildE820(regions).ok());
}

TEST_CASE("A command line of the longest length is taken, not one byte more") {
  const auto memory = MakeMemory(kMemory);
  LoadedKernel kernel;
  const uint32_t limit = GENERATE(2047u, 255u);
  kernel.max_command_line = limit;
  const std::string longest(limit, 'x');
  REQUIRE(WriteCommandLine(*memory, kernel, longest).ok());
  CHECK(CommandLineIn(*memory, limit + 1) == longest + '\0');
  CheckInvalid(WriteCommandLine(*memory, kernel, longest + "x"),
               {std::to_string(limit + 1), std::to_string(limit)});
}

TEST_CASE("A command line has its limit whatever length a kernel claims") {
  const auto memory = MakeMemory(kMemory);
  LoadedKernel kernel;
  kernel.max_command_line = UINT32_MAX;
  CHECK(WriteCommandLine(*memory, kernel, std::string(65535, 'x')).ok());
  CheckInvalid(WriteCommandLine(*memory, kernel, std::string(65536, 'x')),
               {"65536", "65535"});
}

TEST_CASE("A command line with a NUL byte is refused") {
  const auto memory = MakeMemory(kMemory);
  CheckInvalid(WriteCommandLine(*memory, {}, std::string("quiet\0rw", 8)),
               {"NUL", "offset 5"});
}

TEST_CASE("The initramfs lies as high as it may, on a page boundary") {
  const auto memory = MakeMemory(kMemory);
  const auto bytes = Pattern(10'000, 5);
  LoadedKernel kernel = KernelAt(kText, kText + 8192);
  const auto [limit, start] = GENERATE(table<uint64_t, uint64_t>(
      {{kLowRamEnd, kMemory - 12288},           // the guest's memory ends
       {0x80'0000, 0x80'0000 - 12288},          // the kernel's limit
       {0x80'0001, 0x80'0000 - 12288 + 4096}})  // which need not be aligned
  );
  kernel.initramfs_limit = limit;
  const auto at = LoadInitramfs(*memory, kernel,
                                ImageSource::FromBytes(bytes, "initramfs"));
  REQUIRE(at.ok());
  CHECK(at->value % kPageSize == 0);
  CHECK(at->value + bytes.size() <= limit);
  CHECK(ReadMemory(*memory, at->value, bytes.size()) == bytes);
}

TEST_CASE("The initramfs goes before a kernel that leaves no room behind it") {
  const auto memory = MakeMemory(kMemory);
  const auto bytes = Pattern(10'000, 5);
  const auto at = LoadInitramfs(*memory, KernelAt(kMemory - 8192, kMemory),
                                ImageSource::FromBytes(bytes, "initramfs"));
  REQUIRE(at.ok());
  CHECK(*at == Gpa{kMemory - 8192 - 12288});
}

TEST_CASE("An initramfs that fills the room exactly is taken") {
  const auto memory = MakeMemory(kMemory);
  const auto bytes = Pattern(kMemory - 0x30'0000, 5);
  const auto at = LoadInitramfs(*memory, KernelAt(kText, 0x30'0000),
                                ImageSource::FromBytes(bytes, "initramfs"));
  REQUIRE(at.ok());
  CHECK(*at == Gpa{0x30'0000});
}

TEST_CASE("An initramfs that does not fit is refused with the sizes") {
  const auto memory = MakeMemory(kMemory);
  const auto bytes = Pattern(kMemory - 0x30'0000 + 1, 5);
  CheckInvalid(LoadInitramfs(*memory, KernelAt(kText, 0x30'0000),
                             ImageSource::FromBytes(bytes, "initramfs"))
                   .status(),
               {"initramfs does not fit", std::to_string(bytes.size()),
                "[0x300000, 0x1000000)", "[0x100000, 0x200000)",
                std::to_string(kMemory)});
}

TEST_CASE("An empty initramfs is refused") {
  const auto memory = MakeMemory(kMemory);
  CheckInvalid(LoadInitramfs(*memory, KernelAt(kText, 0x30'0000),
                             ImageSource::FromBytes({}, "initramfs"))
                   .status(),
               {"initramfs is empty"});
}

TEST_CASE("The first state has segments and page tables for 64-bit mode") {
  const auto memory = MakeMemory(kMemory);
  const auto state = WriteInitialState(*memory, KernelAt(kText, kText + 8192));
  REQUIRE(state.ok());
  CHECK(state->rip == kText);
  CHECK(state->rsi == kZeroPage);
  CHECK(state->code_selector == 0x10);
  CHECK(state->data_selector == 0x18);
  CHECK(state->gdt_limit == 31);
  const auto gdt = ReadMemory(*memory, state->gdt_base, 32);
  CHECK(FieldOf<uint64_t>(gdt, 0) == 0);
  CHECK(FieldOf<uint64_t>(gdt, 0x10) == 0x00af'9b00'0000'ffff);
  CHECK(FieldOf<uint64_t>(gdt, 0x18) == 0x00cf'9300'0000'ffff);
}

TEST_CASE("The boot page tables map the first GiB one to one") {
  const auto memory = MakeMemory(kMemory);
  const auto state = WriteInitialState(*memory, KernelAt(kText, kText + 8192));
  REQUIRE(state.ok());
  const uint64_t address =
      GENERATE(uint64_t{0}, kZeroPage, kText, kBootMappedEnd - 1);
  // Walks as the processor does.
  uint64_t entry = state->cr3;
  for (const int shift : {39, 30, 21}) {
    const uint64_t index = (address >> shift) & 511;
    const auto next =
        memory->Load<uint64_t>(Gpa{(entry & ~uint64_t{0xfff}) + 8 * index});
    REQUIRE(next.ok());
    entry = *next;
    CHECK((entry & 3) == 3);  // Present, writable.
  }
  CHECK((entry & 0x80) != 0);  // 2 MiB
  CHECK((entry & ~uint64_t{0x1f'ffff}) == (address & ~uint64_t{0x1f'ffff}));
}

TEST_CASE("The reset vector holds code that writes the reset register") {
  const auto memory = MakeMemory(kMemory);
  REQUIRE(WriteResetCode(*memory).ok());
  // cli; mov dx, 0x602; mov al, 1; out dx, al; hlt; jmp -3
  CHECK(ReadMemory(*memory, 0xf'fff0, 16) ==
        std::vector<uint8_t>{0xfa, 0xba, 0x02, 0x06, 0xb0, 0x01, 0xee, 0xf4,
                             0xeb, 0xfd, 0, 0, 0, 0, 0, 0});
  CHECK(ReadMemory(*memory, kVmGenId, 16) == std::vector<uint8_t>(16));
}

TEST_CASE("LoadLinux leaves a vmlinux guest as the boot protocol asks") {
  const auto memory = MakeMemory(kMemory);
  const auto kernel = MakeFile(SmallElf());
  const auto initramfs = MakeFile(Pattern(5000, 7));
  const auto state = LoadLinux(*memory, {.kernel_fd = kernel.get(),
                                         .initramfs_fd = initramfs.get(),
                                         .command_line = "console=ttyS0",
                                         .acpi = {}});
  INFO(state.status().ToString());
  REQUIRE(state.ok());
  CHECK(state->rip == kText);
  const auto page = ReadMemory(*memory, state->rsi, kPageSize);
  CHECK(FieldOf<uint16_t>(page, kBootFlag) == 0xaa55);
  CHECK(FieldOf<uint32_t>(page, kMagic) == 0x5372'6448);
  CHECK(FieldOf<uint8_t>(page, kLoaderType) == 0xff);
  CHECK(FieldOf<uint8_t>(page, kSentinel) == 0);
  CHECK(FieldOf<uint8_t>(page, kE820Entries) == 5);
  const size_t last = kE820Table + 4 * kE820EntryBytes;
  CHECK(FieldOf<uint64_t>(page, last) == kHighMemoryStart);
  CHECK(FieldOf<uint64_t>(page, last + 8) == kMemory - kHighMemoryStart);
  CHECK(FieldOf<uint64_t>(page, kRsdpAddress) == kAcpiStart);
  CHECK(FieldOf<uint32_t>(page, kCommandLinePointer) == kCommandLine);
  CHECK(CommandLineIn(*memory, 14) == std::string("console=ttyS0\0", 14));
  CHECK(FieldOf<uint32_t>(page, kRamdiskSize) == 5000);
  CHECK(ReadMemory(*memory, FieldOf<uint32_t>(page, kRamdiskImage), 5000) ==
        Pattern(5000, 7));
  CHECK(ReadMemory(*memory, kResetVector, 1)[0] == 0xfa);
  const auto rsdp = ReadMemory(*memory, kAcpiStart, 8);
  CHECK(std::string(rsdp.begin(), rsdp.end()) == "RSD PTR ");
}

TEST_CASE("LoadLinux hands a bzImage's setup header on to it") {
  const auto memory = MakeMemory(kMemory);
  auto image = testing::MakeBzImage(Pattern(5000, 3));
  testing::Patch<uint64_t>(image, testing::kBzSetupData, 0x1234);
  const auto kernel = MakeFile(image);
  const auto state = LoadLinux(*memory, {.kernel_fd = kernel.get(),
                                         .initramfs_fd = -1,
                                         .command_line = "",
                                         .acpi = {}});
  INFO(state.status().ToString());
  REQUIRE(state.ok());
  CHECK(state->rip == 0x20'0200);
  const auto page = ReadMemory(*memory, state->rsi, kPageSize);
  CHECK(FieldOf<uint32_t>(page, testing::kBzInitSize) == 0x10'0000);
  CHECK(FieldOf<uint32_t>(page, testing::kBzKernelAlignment) == 0x20'0000);
  CHECK(FieldOf<uint32_t>(page, testing::kBzCmdlineSize) == 2047);
  CHECK(FieldOf<uint8_t>(page, kLoaderType) == 0xff);
  CHECK(FieldOf<uint32_t>(page, kRamdiskSize) == 0);
  // A list of extra data that only a boot loader may make.
  CHECK(FieldOf<uint64_t>(page, testing::kBzSetupData) == 0);
}

TEST_CASE("LoadLinux says which part of the boot is wrong") {
  const auto memory = MakeMemory(kMemory);
  const auto good = MakeFile(SmallElf());
  const auto bad = MakeFile(Pattern(100, 1));
  LinuxBoot boot{.kernel_fd = good.get(),
                 .initramfs_fd = -1,
                 .command_line = "",
                 .acpi = {}};
  SECTION("the kernel") {
    boot.kernel_fd = bad.get();
    CheckInvalid(LoadLinux(*memory, boot).status(), {"kernel is neither"});
  }
  SECTION("the command line") {
    boot.command_line = std::string(2048, 'x');
    CheckInvalid(LoadLinux(*memory, boot).status(), {"2048", "2047"});
  }
  SECTION("the initramfs") {
    const auto empty = MakeFile({});
    boot.initramfs_fd = empty.get();
    CheckInvalid(LoadLinux(*memory, boot).status(), {"initramfs is empty"});
  }
  SECTION("the devices") {
    boot.acpi.vcpus = 33;
    CheckInvalid(LoadLinux(*memory, boot).status(), {"33", "32"});
  }
}

TEST_CASE("LoadLinux wants memory that is mapped") {
  auto memory = memory::GuestMemory::Reserve({{Gpa{0}, kMemory, 0}});
  REQUIRE(memory.ok());
  const auto kernel = MakeFile(SmallElf());
  CHECK(LoadLinux(**memory, {.kernel_fd = kernel.get(),
                             .initramfs_fd = -1,
                             .command_line = "",
                             .acpi = {}})
            .status()
            .code() == absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace catnap::arch
