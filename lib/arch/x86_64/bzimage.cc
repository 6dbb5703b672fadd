#include <asm/bootparam.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstring>

#include "arch/x86_64/kernel_loader_internal.h"
#include "base/checked.h"
#include "base/status.h"

// The kernel's Documentation/x86/boot.rst describes the setup header and what
// a boot loader may do with it.
namespace catnap::arch::internal {
namespace {

constexpr size_t kSetupHeader = offsetof(boot_params, hdr);
constexpr size_t kSetupHeaderEnd = offsetof(boot_params, edd_mbr_sig_buffer);
static_assert(kSetupHeader == 0x1f1 && kSetupHeaderEnd == 0x290);

constexpr uint16_t kBootFlag = 0xaa55;
// The first protocol with xloadflags; its header ends behind handover_offset.
constexpr uint16_t kLeastVersion = 0x020c;
constexpr size_t kLeastHeaderEnd =
    kSetupHeader + offsetof(setup_header, handover_offset) + 4;
constexpr uint64_t kSectorBytes = 512;
constexpr uint64_t kParagraphBytes = 16;
constexpr uint64_t kEntry64 = 0x200;

// The fields of setup_header that the loader goes by; there they are packed,
// and nothing may hold a reference to one.
struct Header {
  uint16_t boot_flag = 0;
  uint16_t version = 0;
  uint16_t xloadflags = 0;
  uint8_t loadflags = 0;
  uint8_t setup_sects = 0;
  bool relocatable = false;
  uint32_t syssize = 0;
  uint32_t alignment = 0;
  uint32_t command_line_size = 0;
  uint32_t initramfs_last = 0;
  uint32_t init_size = 0;
  uint64_t preferred_address = 0;
};

struct Plan {
  Header header;
  std::vector<uint8_t> header_bytes;
  uint64_t payload_offset = 0;  // In the file.
  uint64_t payload_size = 0;
  uint64_t load_address = 0;
  uint64_t size_in_memory = 0;
};

absl::Status ReadHeader(const ImageSource& file, Plan& plan) {
  // The offset in the jump instruction at 0x200 says where the header ends.
  uint8_t jump = 0;
  CATNAP_RETURN_IF_ERROR(file.ReadAt(0x201, {&jump, 1}));
  const size_t end = 0x202 + size_t{jump};
  if (end < kLeastHeaderEnd || end > kSetupHeaderEnd) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "{} has a setup header that ends at {:#x}, must be {:#x} to "
                 "{:#x}",
                 file.name(), end, kLeastHeaderEnd, kSetupHeaderEnd);
  }
  plan.header_bytes.resize(end - kSetupHeader);
  CATNAP_RETURN_IF_ERROR(file.ReadAt(kSetupHeader, plan.header_bytes));
  setup_header raw{};
  std::memcpy(&raw, plan.header_bytes.data(),
              std::min(sizeof(raw), plan.header_bytes.size()));
  plan.header = {.boot_flag = raw.boot_flag,
                 .version = raw.version,
                 .xloadflags = raw.xloadflags,
                 .loadflags = raw.loadflags,
                 .setup_sects = raw.setup_sects,
                 .relocatable = raw.relocatable_kernel != 0,
                 .syssize = raw.syssize,
                 .alignment = raw.kernel_alignment,
                 .command_line_size = raw.cmdline_size,
                 .initramfs_last = raw.initrd_addr_max,
                 .init_size = raw.init_size,
                 .preferred_address = raw.pref_address};
  return absl::OkStatus();
}

absl::Status CheckHeader(const ImageSource& file, const Header& header) {
  if (header.boot_flag != kBootFlag) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "{} has boot flag {:#x}, must be {:#x}", file.name(),
                 header.boot_flag, kBootFlag);
  }
  if (header.version < kLeastVersion) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "{} has boot protocol {:#x}, must be at least {:#x}",
                 file.name(), header.version, kLeastVersion);
  }
  if ((header.xloadflags & XLF_KERNEL_64) == 0 ||
      (header.loadflags & LOADED_HIGH) == 0) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "{} is a bzImage without a 64-bit entry point: loadflags "
                 "{:#x}, xloadflags {:#x}, both must have bit 0",
                 file.name(), header.loadflags, header.xloadflags);
  }
  return absl::OkStatus();
}

// Where in the file the part for protected mode is. A signature may follow it.
absl::Status FindPayload(const ImageSource& file, Plan& plan) {
  // 0 stands for 4, as in the first kernels.
  const uint64_t sectors =
      plan.header.setup_sects == 0 ? 4 : plan.header.setup_sects;
  plan.payload_offset = (sectors + 1) * kSectorBytes;
  const uint64_t size = uint64_t{plan.header.syssize} * kParagraphBytes;
  if (size <= kEntry64) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "{} has {} bytes of 64-bit code, must be more than {}",
                 file.name(), size, kEntry64);
  }
  const uint64_t in_file =
      file.size() - std::min(file.size(), plan.payload_offset);
  // The size is counted in paragraphs, and the last may be cut short.
  if (size - std::min(size, in_file) >= kParagraphBytes) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "{} is truncated: it has {} bytes, must have at least {}",
                 file.name(), file.size(),
                 plan.payload_offset + size - kParagraphBytes + 1);
  }
  plan.payload_size = std::min(size, in_file);
  return absl::OkStatus();
}

absl::Status ChooseAddress(const memory::GuestMemory& memory,
                           const ImageSource& file, Plan& plan) {
  plan.load_address = plan.header.preferred_address;
  // A relocatable kernel runs at no less than its preferred address wherever
  // it is loaded, so a lower place would save nothing.
  if (plan.header.relocatable) {
    const uint64_t alignment = plan.header.alignment;
    if (!std::has_single_bit(alignment)) {
      return Error(absl::StatusCode::kInvalidArgument,
                   "{} has kernel alignment {:#x}, must be a power of two",
                   file.name(), alignment);
    }
    const auto aligned = base::AlignUp<uint64_t>(
        std::max(plan.load_address, kHighMemoryStart), alignment);
    if (!aligned.has_value()) {
      return Error(absl::StatusCode::kInvalidArgument,
                   "{} prefers address {:#x} with alignment {:#x}, must end "
                   "at or below {:#x}",
                   file.name(), plan.load_address, alignment,
                   KernelLimit(memory));
    }
    plan.load_address = *aligned;
  }
  plan.size_in_memory =
      std::max<uint64_t>(plan.header.init_size, plan.payload_size);
  return CheckPlace(memory, file.name(), plan.load_address,
                    plan.size_in_memory);
}

}  // namespace

absl::StatusOr<LoadedKernel> LoadBzImage(memory::GuestMemory& memory,
                                         const ImageSource& file) {
  Plan plan;
  CATNAP_RETURN_IF_ERROR(ReadHeader(file, plan));
  CATNAP_RETURN_IF_ERROR(CheckHeader(file, plan.header));
  CATNAP_RETURN_IF_ERROR(FindPayload(file, plan));
  CATNAP_RETURN_IF_ERROR(ChooseAddress(memory, file, plan));
  CATNAP_ASSIGN_OR_RETURN(
      const std::span<uint8_t> into,
      memory.Slice(memory::Gpa{plan.load_address}, plan.payload_size));
  CATNAP_RETURN_IF_ERROR(file.ReadAt(plan.payload_offset, into));
  return LoadedKernel{.format = KernelFormat::kBzImage,
                      .entry = {plan.load_address + kEntry64},
                      .start = {plan.load_address},
                      .end = {plan.load_address + plan.size_in_memory},
                      .max_command_line = plan.header.command_line_size,
                      // The header names the last byte that may be used.
                      .initramfs_limit = std::min(
                          uint64_t{plan.header.initramfs_last} + 1, kLowRamEnd),
                      .setup_header = std::move(plan.header_bytes)};
}

}  // namespace catnap::arch::internal
