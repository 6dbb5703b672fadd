#ifndef CATNAP_LIB_ARCH_X86_64_ACPI_H_
#define CATNAP_LIB_ARCH_X86_64_ACPI_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "memory/guest_memory.h"

namespace catnap::arch {

// One virtio-mmio device.
struct AcpiDevice {
  uint64_t gpa = 0;  // Its 4 KiB register page, in [kRegisterPages, kIoApic).
  uint32_t gsi = 0;  // Its interrupt, in [kFirstDeviceGsi, kIoApicPins).
};

struct AcpiConfig {
  int vcpus = 1;  // kMinVcpus-kMaxVcpus; the APIC id is the index.
  // At most kMaxDevices; no two share a page or an interrupt.
  std::vector<AcpiDevice> devices;
};

// The machine's ACPI tables, to be put at kAcpiStart: RSDP, DSDT, FADT, MADT,
// XSDT. They describe a hardware-reduced machine without 8042, VGA, RTC, PIC
// and SCI: a local APIC for each vCPU, one IOAPIC, COM1, the virtio-mmio
// devices, a generic event device that tells of a new VM generation id at
// kVmGenId, soft-off by SLEEP_CONTROL and reset by RESET_REG (layout.h).
//
// Errors: INVALID_ARGUMENT (what in `config` is out of its range or used
// twice). Thread-safe.
absl::StatusOr<std::vector<uint8_t>> BuildAcpi(const AcpiConfig& config);

// Builds the tables and writes them to [kAcpiStart, kAcpiEnd); the RSDP is at
// kAcpiStart.
// Errors: as BuildAcpi(); OUT_OF_RANGE when `memory` has no RAM there.
absl::Status WriteAcpi(memory::GuestMemory& memory, const AcpiConfig& config);

}  // namespace catnap::arch

#endif  // CATNAP_LIB_ARCH_X86_64_ACPI_H_
