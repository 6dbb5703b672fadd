#include "arch/x86_64/boot.h"

#include <algorithm>
#include <array>
#include <optional>
#include <span>

#include "arch/x86_64/boot_params.h"
#include "arch/x86_64/layout.h"
#include "base/byte_order.h"
#include "base/checked.h"
#include "base/status.h"

namespace catnap::arch {
namespace {

// Segment descriptors (Intel SDM vol. 3A, 3.4.5): present, accessed, flat.
constexpr uint64_t kCode64Descriptor = 0x00af'9b00'0000'ffff;
constexpr uint64_t kDataDescriptor = 0x00cf'9300'0000'ffff;
constexpr uint16_t kCodeSelector = 0x10;  // __BOOT_CS
constexpr uint16_t kDataSelector = 0x18;  // __BOOT_DS

// Page table entries (Intel SDM vol. 3A, 4.5).
constexpr uint64_t kPresentWritable = 0x3;
constexpr uint64_t kLargePage = 0x80;
constexpr uint64_t kLargePageBytes = 2 << 20;
constexpr size_t kEntries = 512;

static_assert(kBootMappedEnd == kEntries * kLargePageBytes,
              "one page directory maps what the boot protocol needs");
static_assert(kPageTables + 3 * kPageSize <= kCommandLine);
static_assert(kZeroPage + kPageSize <= kPageTables);

// The room for a command line, whatever length the kernel's file claims.
constexpr uint64_t kCommandLineRoom = 64 << 10;
static_assert(kCommandLine + kCommandLineRoom <= kLowMemoryEnd);

template <size_t kCount>
absl::Status WriteWords(memory::GuestMemory& memory, uint64_t at,
                        const std::array<uint64_t, kCount>& words) {
  return memory.Write(
      memory::Gpa{at},
      {reinterpret_cast<const uint8_t*>(words.data()), sizeof(words)});
}

// The highest page-aligned start of `size` bytes in [low, high).
std::optional<uint64_t> HighestFit(uint64_t low, uint64_t high, uint64_t size) {
  if (high < low || size > high - low) return std::nullopt;
  const uint64_t start = base::AlignDown(high - size, kPageSize);
  if (start < low) return std::nullopt;
  return start;
}

}  // namespace

absl::Status WriteCommandLine(memory::GuestMemory& memory,
                              const LoadedKernel& kernel,
                              const std::string& command_line) {
  const uint64_t limit =
      std::min<uint64_t>(kernel.max_command_line, kCommandLineRoom - 1);
  if (command_line.size() > limit) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "command line has {} bytes, must be at most {}",
                 command_line.size(), limit);
  }
  const size_t nul = command_line.find('\0');
  if (nul != std::string::npos) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "command line has a NUL byte at offset {} of {}", nul,
                 command_line.size());
  }
  return memory.Write(memory::Gpa{kCommandLine},
                      {reinterpret_cast<const uint8_t*>(command_line.c_str()),
                       command_line.size() + 1});
}

absl::StatusOr<memory::Gpa> LoadInitramfs(memory::GuestMemory& memory,
                                          const LoadedKernel& kernel,
                                          const ImageSource& file) {
  if (file.size() == 0) {
    return Error(absl::StatusCode::kInvalidArgument, "{} is empty",
                 file.name());
  }
  // LoadKernel() saw that the kernel lies in the first region.
  const uint64_t limit =
      std::min(memory.regions().front().size, kernel.initramfs_limit);
  std::optional<uint64_t> start =
      HighestFit(kernel.end.value, limit, file.size());
  if (!start.has_value()) {
    start = HighestFit(kHighMemoryStart, std::min(kernel.start.value, limit),
                       file.size());
  }
  if (!start.has_value()) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "{} does not fit: it has {} bytes; [{:#x}, {:#x}) is free "
                 "behind the kernel, [{:#x}, {:#x}) before it (the guest has "
                 "{} bytes of memory)",
                 file.name(), file.size(), kernel.end.value,
                 std::max(kernel.end.value, limit), kHighMemoryStart,
                 kernel.start.value, memory.size());
  }
  CATNAP_ASSIGN_OR_RETURN(const std::span<uint8_t> into,
                          memory.Slice(memory::Gpa{*start}, file.size()));
  CATNAP_RETURN_IF_ERROR(file.ReadAt(0, into));
  return memory::Gpa{*start};
}

absl::Status WriteResetCode(memory::GuestMemory& memory) {
  static constexpr std::array<uint8_t, 10> kCode = {
      0xfa,  // cli
      0xba,
      kResetPort & 0xff,
      kResetPort >> 8,  // mov dx, kResetPort
      0xb0,
      kResetValue,  // mov al, kResetValue
      0xee,         // out dx, al
      0xf4,         // hlt
      0xeb,
      0xfd};  // jmp to the hlt
  // jmp to the hlt
  static_assert(kResetVector + kCode.size() <= kHighMemoryStart);
  return memory.Write(memory::Gpa{kResetVector}, kCode);
}

absl::StatusOr<InitialState> WriteInitialState(memory::GuestMemory& memory,
                                               const LoadedKernel& kernel) {
  std::array<uint64_t, 4> gdt{};
  gdt[kCodeSelector / sizeof(uint64_t)] = kCode64Descriptor;
  gdt[kDataSelector / sizeof(uint64_t)] = kDataDescriptor;
  CATNAP_RETURN_IF_ERROR(WriteWords(memory, kBootGdt, gdt));

  const uint64_t pdpt = kPageTables + kPageSize;
  const uint64_t directory = pdpt + kPageSize;
  std::array<uint64_t, kEntries> table{};
  table[0] = pdpt | kPresentWritable;
  CATNAP_RETURN_IF_ERROR(WriteWords(memory, kPageTables, table));
  table[0] = directory | kPresentWritable;
  CATNAP_RETURN_IF_ERROR(WriteWords(memory, pdpt, table));
  for (size_t i = 0; i < kEntries; ++i) {
    table[i] = i * kLargePageBytes | kPresentWritable | kLargePage;
  }
  CATNAP_RETURN_IF_ERROR(WriteWords(memory, directory, table));

  return InitialState{.rip = kernel.entry.value,
                      .rsi = kZeroPage,
                      .rsp = 0,
                      .cr3 = kPageTables,
                      .gdt_base = kBootGdt,
                      .gdt_limit = sizeof(gdt) - 1,
                      .code_selector = kCodeSelector,
                      .data_selector = kDataSelector};
}

absl::StatusOr<InitialState> LoadLinux(memory::GuestMemory& memory,
                                       const LinuxBoot& boot) {
  CATNAP_ASSIGN_OR_RETURN(const ImageSource kernel_file,
                          ImageSource::FromFd(boot.kernel_fd, "kernel"));
  CATNAP_ASSIGN_OR_RETURN(const LoadedKernel kernel,
                          LoadKernel(memory, kernel_file));
  BootParams params;
  CATNAP_RETURN_IF_ERROR(WriteCommandLine(memory, kernel, boot.command_line));
  params.command_line = kCommandLine;
  if (boot.initramfs_fd != -1) {
    CATNAP_ASSIGN_OR_RETURN(
        const ImageSource file,
        ImageSource::FromFd(boot.initramfs_fd, "initramfs"));
    CATNAP_ASSIGN_OR_RETURN(const memory::Gpa start,
                            LoadInitramfs(memory, kernel, file));
    // Both below 4 GiB: LoadInitramfs() keeps to kLowRamEnd.
    params.initramfs = static_cast<uint32_t>(start.value);
    params.initramfs_size = static_cast<uint32_t>(file.size());
  }
  CATNAP_RETURN_IF_ERROR(WriteAcpi(memory, boot.acpi));
  CATNAP_RETURN_IF_ERROR(WriteResetCode(memory));
  CATNAP_ASSIGN_OR_RETURN(const std::vector<uint8_t> zero_page,
                          BuildZeroPage(kernel, params, memory.regions()));
  CATNAP_RETURN_IF_ERROR(memory.Write(memory::Gpa{kZeroPage}, zero_page));
  return WriteInitialState(memory, kernel);
}

}  // namespace catnap::arch
