#include "arch/x86_64/boot_params.h"

#include <asm/bootparam.h>

#include <algorithm>
#include <cstddef>

#include "arch/x86_64/layout.h"
#include "base/status.h"

// The kernel's Documentation/x86/boot.rst and zero-page.rst.
namespace catnap::arch {
namespace {

static_assert(sizeof(boot_params) == kPageSize);
static_assert(sizeof(boot_e820_entry) == 20);
static_assert(offsetof(boot_params, acpi_rsdp_addr) == 0x70 &&
              offsetof(boot_params, e820_entries) == 0x1e8 &&
              offsetof(boot_params, hdr) == 0x1f1 &&
              offsetof(boot_params, e820_table) == 0x2d0);

constexpr uint16_t kBootFlag = 0xaa55;
constexpr uint32_t kHdrsMagic = 0x5372'6448;  // "HdrS"
constexpr uint16_t kProtocolVersion = 0x020f;
constexpr uint8_t kUndefinedLoader = 0xff;

constexpr uint64_t kVideoMemory = 0xa'0000;
static_assert(kLowMemoryEnd < kVideoMemory && kVideoMemory < kAcpiStart &&
              kAcpiEnd == kVmGenId && kVmGenId + kPageSize == kHighMemoryStart);

}  // namespace

absl::StatusOr<std::vector<E820Entry>> BuildE820(
    const std::vector<memory::Region>& regions) {
  if (regions.empty() || regions[0].start.value != 0 ||
      regions[0].size <= kHighMemoryStart) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "guest memory starts with {} bytes at gpa {:#x}, must be more "
                 "than {} at 0",
                 regions.empty() ? 0 : regions[0].size,
                 regions.empty() ? 0 : regions[0].start.value,
                 kHighMemoryStart);
  }
  std::vector<E820Entry> map = {
      {0, kLowMemoryEnd, E820Type::kRam},
      {kLowMemoryEnd, kAcpiStart - kLowMemoryEnd, E820Type::kReserved},
      {kAcpiStart, kAcpiEnd - kAcpiStart, E820Type::kAcpi},
      {kVmGenId, kHighMemoryStart - kVmGenId, E820Type::kReserved},
      {kHighMemoryStart, regions[0].size - kHighMemoryStart, E820Type::kRam}};
  for (size_t i = 1; i < regions.size(); ++i) {
    map.push_back({regions[i].start.value, regions[i].size, E820Type::kRam});
  }
  if (map.size() > E820_MAX_ENTRIES_ZEROPAGE) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "guest memory has {} regions, must be at most {}",
                 regions.size(),
                 E820_MAX_ENTRIES_ZEROPAGE - (map.size() - regions.size()));
  }
  return map;
}

absl::StatusOr<std::vector<uint8_t>> BuildZeroPage(
    const LoadedKernel& kernel, const BootParams& params,
    const std::vector<memory::Region>& regions) {
  CATNAP_ASSIGN_OR_RETURN(const std::vector<E820Entry> map, BuildE820(regions));
  boot_params page{};
  // A bzImage brings its header; a vmlinux only wants to see that there is one.
  auto* const bytes = reinterpret_cast<uint8_t*>(&page);
  static constexpr size_t kHeaderRoom =
      offsetof(boot_params, edd_mbr_sig_buffer) - offsetof(boot_params, hdr);
  std::copy_n(kernel.setup_header.begin(),
              std::min(kernel.setup_header.size(), kHeaderRoom),
              bytes + offsetof(boot_params, hdr));
  if (kernel.format == KernelFormat::kElf) {
    page.hdr.boot_flag = kBootFlag;
    page.hdr.header = kHdrsMagic;
    page.hdr.version = kProtocolVersion;
    page.hdr.loadflags = LOADED_HIGH;
    page.hdr.cmdline_size = kernel.max_command_line;
  }
  page.hdr.type_of_loader = kUndefinedLoader;
  page.hdr.code32_start = static_cast<uint32_t>(kernel.start.value);
  page.hdr.cmd_line_ptr = params.command_line;
  page.hdr.ramdisk_image = params.initramfs_size == 0 ? 0 : params.initramfs;
  page.hdr.ramdisk_size = params.initramfs_size;
  page.hdr.setup_data = 0;  // The loader's to fill, whatever the file says.
  page.acpi_rsdp_addr = kAcpiStart;
  page.e820_entries = static_cast<uint8_t>(map.size());
  for (size_t i = 0; i < map.size(); ++i) {
    page.e820_table[i] = {.addr = map[i].start,
                          .size = map[i].size,
                          .type = static_cast<uint32_t>(map[i].type)};
  }
  return std::vector<uint8_t>(bytes, bytes + sizeof(page));
}

}  // namespace catnap::arch
