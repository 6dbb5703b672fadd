#ifndef CATNAP_LIB_ARCH_X86_64_LAYOUT_H_
#define CATNAP_LIB_ARCH_X86_64_LAYOUT_H_

#include <cstdint>

// The guest's physical address space, its I/O ports and its interrupt lines.
// lib/README.md draws the same map.
namespace catnap::arch {

inline constexpr uint64_t kPageSize = 4096;

// --- RAM ------------------------------------------------------------------
// RAM is [0, kLowRamEnd) and, when there is more, goes on at kHighRamStart.
inline constexpr uint64_t kLowRamEnd = 0xc000'0000;       // 3 GiB
inline constexpr uint64_t kHighRamStart = 0x1'0000'0000;  // 4 GiB

// Below 640 KiB: what the boot protocol wants, all of it read before the
// kernel makes its own.
inline constexpr uint64_t kBootGdt = 0x500;
inline constexpr uint64_t kZeroPage = 0x7000;    // struct boot_params, 4 KiB
inline constexpr uint64_t kPageTables = 0x9000;  // PML4, PDPT, one PD: 12 KiB
inline constexpr uint64_t kCommandLine = 0x20000;
inline constexpr uint64_t kLowMemoryEnd = 0x9'fc00;

// The boot page tables map [0, 1 GiB) one to one; kernel and initial state
// must lie in there.
inline constexpr uint64_t kBootMappedEnd = 0x4000'0000;

// ACPI tables: RSDP first, the others behind it. Reserved in the e820 map.
inline constexpr uint64_t kAcpiStart = 0xe'0000;
inline constexpr uint64_t kAcpiEnd = 0xf'f000;
// The last page under 1 MiB holds the 16-byte VM generation id, reserved too,
// and at its end code: where a PC has the first instruction after a reset.
inline constexpr uint64_t kVmGenId = 0xf'f000;
inline constexpr uint64_t kResetVector = 0xf'fff0;
inline constexpr uint64_t kHighMemoryStart = 0x10'0000;  // 1 MiB

// --- MMIO hole, 3 GiB to 4 GiB ---------------------------------------------
// virtio-mmio register pages, one 4 KiB page for each device: the read-only
// slot.
inline constexpr uint64_t kRegisterPages = 0xd000'0000;
inline constexpr uint64_t kIoApic = 0xfec0'0000;
inline constexpr uint64_t kLocalApic = 0xfee0'0000;
// Three pages and one that KVM on Intel needs for real mode, out of the way.
inline constexpr uint64_t kTss = 0xfeff'd000;
inline constexpr uint64_t kIdentityMap = 0xfeff'c000;

// --- I/O ports ---------------------------------------------------------------
inline constexpr uint16_t kCom1Port = 0x3f8;  // 8 ports
inline constexpr uint16_t kSleepControlPort = 0x600;
inline constexpr uint16_t kSleepStatusPort = 0x601;
inline constexpr uint16_t kResetPort = 0x602;
inline constexpr uint8_t kResetValue = 0x01;
// 32 bits: which events are pending for the generic event device (GED);
// reading clears them.
inline constexpr uint16_t kEventPort = 0x604;
inline constexpr uint32_t kEventVmGenId = 1u << 0;
// SLP_TYPx of _S5 in our DSDT, and the enable bit of SLEEP_CONTROL
// (ACPI 6.4, 4.8.3.7).
inline constexpr uint8_t kSleepTypeS5 = 5;
inline constexpr uint8_t kSleepEnable = 1u << 5;

// --- Interrupt lines (IOAPIC pins, edge)
// --------------------------------------
inline constexpr uint32_t kIoApicPins = 24;
inline constexpr uint32_t kCom1Gsi = 4;
inline constexpr uint32_t kEventGsi = 5;
inline constexpr uint32_t kFirstDeviceGsi = 6;
inline constexpr int kMaxDevices = kIoApicPins - kFirstDeviceGsi;  // 18

// --- Limits
// -------------------------------------------------------------------
inline constexpr int kMinVcpus = 1;
inline constexpr int kMaxVcpus = 32;
inline constexpr uint64_t kMinMemoryBytes = 64ull << 20;
inline constexpr uint64_t kMaxMemoryBytes = 64ull << 30;

}  // namespace catnap::arch

#endif  // CATNAP_LIB_ARCH_X86_64_LAYOUT_H_
