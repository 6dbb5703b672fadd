#include "arch/x86_64/acpi.h"

#include <array>
#include <numeric>
#include <span>
#include <string_view>

#include "arch/x86_64/aml.h"
#include "arch/x86_64/layout.h"
#include "base/byte_order.h"
#include "base/checked.h"
#include "base/status.h"

// Section numbers are those of ACPI 6.4.
namespace catnap::arch {
namespace {

using aml::Bytes;

constexpr std::string_view kOemId = "CATNAP";
constexpr std::string_view kOemTableId = "CATNAPVM";
constexpr std::string_view kCreatorId = "CTNP";
constexpr uint32_t kOurRevision = 1;

constexpr size_t kRsdpBytes = 36;
constexpr size_t kRsdpV1Bytes = 20;
constexpr size_t kTableAlignment = 64;

// FADT (5.2.9): offsets, and the flags that we set.
constexpr size_t kFadtBytes = 276;
constexpr size_t kFadtDsdt = 40;
constexpr size_t kFadtBootArch = 109;
constexpr size_t kFadtFlags = 112;
constexpr size_t kFadtResetReg = 116;
constexpr size_t kFadtResetValue = 128;
constexpr size_t kFadtMinorVersion = 131;
constexpr size_t kFadtXDsdt = 140;
constexpr size_t kFadtSleepControl = 244;
constexpr size_t kFadtSleepStatus = 256;
constexpr size_t kFadtHypervisor = 268;
constexpr uint16_t kBootVgaNotPresent = 1u << 2;
constexpr uint16_t kBootNoCmosRtc = 1u << 5;
constexpr uint32_t kFlagWbinvd = 1u << 0;
constexpr uint32_t kFlagProcC1 = 1u << 2;
// These three say that a button or the RTC is not a fixed feature.
constexpr uint32_t kFlagPowerButton = 1u << 4;
constexpr uint32_t kFlagSleepButton = 1u << 5;
constexpr uint32_t kFlagFixedRtc = 1u << 6;
constexpr uint32_t kFlagResetReg = 1u << 10;
constexpr uint32_t kFlagHeadless = 1u << 12;
constexpr uint32_t kFlagHwReduced = 1u << 20;

// MADT (5.2.12).
constexpr uint8_t kMadtLocalApic = 0;
constexpr uint8_t kMadtIoApic = 1;
constexpr uint8_t kMadtLocalApicNmi = 4;
constexpr uint32_t kLocalApicEnabled = 1;
constexpr uint8_t kAllProcessors = 0xff;
// KVM's IOAPIC starts with id 0 in its register, and the guest compares.
constexpr uint8_t kIoApicId = 0;

constexpr uint64_t kNotifyGenerationChanged = 0x80;

static_assert(kMaxVcpus < kAllProcessors);
static_assert(kIoApic <= UINT32_MAX && kLocalApic <= UINT32_MAX);

template <std::unsigned_integral T>
void Put(Bytes& table, T value) {
  const size_t at = table.size();
  table.resize(at + sizeof(T));
  base::StoreLe(&table[at], value);
}

template <std::unsigned_integral T>
void PutAt(Bytes& table, size_t at, T value) {
  base::StoreLe(&table[at], value);
}

void PutText(Bytes& table, std::string_view text) {
  table.insert(table.end(), text.begin(), text.end());
}

// The value that makes all of `bytes` sum up to 0.
uint8_t Checksum(std::span<const uint8_t> bytes) {
  return static_cast<uint8_t>(-std::accumulate(bytes.begin(), bytes.end(), 0u));
}

// A table's header (5.2.6), not finished: length and checksum come last.
Bytes BeginTable(std::string_view signature, uint8_t revision) {
  Bytes table;
  PutText(table, signature);
  Put<uint32_t>(table, 0);
  table.push_back(revision);
  table.push_back(0);
  PutText(table, kOemId);
  PutText(table, kOemTableId);
  Put<uint32_t>(table, kOurRevision);
  PutText(table, kCreatorId);
  Put<uint32_t>(table, kOurRevision);
  return table;
}

Bytes FinishTable(Bytes table) {
  PutAt<uint32_t>(table, 4, static_cast<uint32_t>(table.size()));
  table[9] = Checksum(table);
  return table;
}

// A generic address structure (5.2.3.2) for a one-byte register at a port.
void PutPortAt(Bytes& table, size_t at, uint16_t port) {
  static constexpr uint8_t kSystemIo = 1;
  static constexpr uint8_t kByteAccess = 1;
  table[at] = kSystemIo;
  table[at + 1] = 8;  // Bits.
  table[at + 2] = 0;  // Bit offset.
  table[at + 3] = kByteAccess;
  PutAt<uint64_t>(table, at + 4, port);
}

Bytes BuildFadt(uint64_t dsdt) {
  Bytes table = BeginTable("FACP", /*revision=*/6);
  table.resize(kFadtBytes);
  PutAt<uint32_t>(table, kFadtDsdt, static_cast<uint32_t>(dsdt));
  PutAt<uint16_t>(table, kFadtBootArch, kBootVgaNotPresent | kBootNoCmosRtc);
  PutAt<uint32_t>(table, kFadtFlags,
                  kFlagWbinvd | kFlagProcC1 | kFlagPowerButton |
                      kFlagSleepButton | kFlagFixedRtc | kFlagResetReg |
                      kFlagHeadless | kFlagHwReduced);
  PutPortAt(table, kFadtResetReg, kResetPort);
  table[kFadtResetValue] = kResetValue;
  table[kFadtMinorVersion] = 4;
  PutAt<uint64_t>(table, kFadtXDsdt, dsdt);
  PutPortAt(table, kFadtSleepControl, kSleepControlPort);
  PutPortAt(table, kFadtSleepStatus, kSleepStatusPort);
  static constexpr std::string_view kHypervisor = "CATNAP";
  for (size_t i = 0; i < kHypervisor.size(); ++i) {
    table[kFadtHypervisor + i] = static_cast<uint8_t>(kHypervisor[i]);
  }
  return FinishTable(std::move(table));
}

Bytes BuildMadt(int vcpus) {
  Bytes table = BeginTable("APIC", /*revision=*/5);
  Put<uint32_t>(table, kLocalApic);
  Put<uint32_t>(table, 0);  // Flags: not PCAT_COMPAT, there is no 8259.
  for (int i = 0; i < vcpus; ++i) {
    const auto id = static_cast<uint8_t>(i);
    table.insert(table.end(), {kMadtLocalApic, 8, /*uid=*/id, /*apic=*/id});
    Put<uint32_t>(table, kLocalApicEnabled);
  }
  table.insert(table.end(), {kMadtIoApic, 12, kIoApicId, 0});
  Put<uint32_t>(table, kIoApic);
  Put<uint32_t>(table, 0);  // Its pins are the GSIs from 0.
  table.insert(table.end(), {kMadtLocalApicNmi, 6, kAllProcessors});
  Put<uint16_t>(table, 0);  // Polarity and trigger as the bus has them.
  table.push_back(1);       // LINT1
  return FinishTable(std::move(table));
}

Bytes BuildXsdt(std::initializer_list<uint64_t> tables) {
  Bytes table = BeginTable("XSDT", /*revision=*/1);
  for (const uint64_t address : tables) Put<uint64_t>(table, address);
  return FinishTable(std::move(table));
}

// RSDP (5.2.5.3), the only table with another header and two checksums.
Bytes BuildRsdp(uint64_t xsdt) {
  Bytes table;
  PutText(table, "RSD PTR ");
  table.push_back(0);
  PutText(table, kOemId);
  table.push_back(2);       // Revision
  Put<uint32_t>(table, 0);  // No RSDT.
  Put<uint32_t>(table, kRsdpBytes);
  Put<uint64_t>(table, xsdt);
  Put<uint32_t>(table, 0);
  table[8] = Checksum(std::span(table).first(kRsdpV1Bytes));
  table[32] = Checksum(table);
  return table;
}

Bytes Com1() {
  return aml::Device("COM1",
                     {aml::Name("_HID", aml::EisaId("PNP0501")),
                      aml::Name("_UID", aml::Integer(0)),
                      aml::Name("_CRS", aml::ResourceTemplate(
                                            {aml::IoPorts(kCom1Port, 8),
                                             aml::EdgeInterrupt(kCom1Gsi)}))});
}

// The VM generation id device of Microsoft's specification. Guests find it by
// the _CID; Linux looks for VM_GEN_COUNTER, and ACPICA gives it ids in
// capitals.
Bytes VmGenerationId() {
  return aml::Device(
      "VGEN",
      {aml::Name("_HID", aml::String("CATN0001")),
       aml::Name("_CID", aml::String("VM_Gen_Counter")),
       aml::Name("_DDN", aml::String("VM_Gen_Counter")),
       aml::Name("_UID", aml::Integer(0)),
       aml::Name("ADDR", aml::Package({aml::Integer(kVmGenId & UINT32_MAX),
                                       aml::Integer(kVmGenId >> 32)}))});
}

// The generic event device (5.6.9): its interrupt runs _EVT, which takes the
// pending events and passes them on. Behind VGEN, so that the name is known.
Bytes GenericEventDevice() {
  const Bytes event = aml::Local(0);
  return aml::Device(
      "GED",
      {aml::Name("_HID", aml::String("ACPI0013")),
       aml::Name("_UID", aml::Integer(0)),
       aml::Name("_CRS",
                 aml::ResourceTemplate({aml::EdgeInterrupt(kEventGsi)})),
       aml::PortRegister32("EVTR", "EVTS", kEventPort),
       aml::SerializedMethod(
           "_EVT", 1,
           {aml::If(aml::Equal(aml::Argument(0), aml::Integer(kEventGsi)),
                    {aml::Store(aml::NamePath("EVTS"), event),
                     aml::If(aml::BitAnd(event, aml::Integer(kEventVmGenId)),
                             {aml::Notify(aml::NamePath("VGEN"),
                                          kNotifyGenerationChanged)})})})});
}

Bytes VirtioMmio(size_t index, const AcpiDevice& device) {
  return aml::Device(
      fmt::format("V{:03X}", index),
      {aml::Name("_HID", aml::String("LNRO0005")),
       aml::Name("_UID", aml::Integer(index)),
       aml::Name("_CRS",
                 aml::ResourceTemplate(
                     {aml::Memory32Fixed(static_cast<uint32_t>(device.gpa),
                                         static_cast<uint32_t>(kPageSize)),
                      aml::EdgeInterrupt(device.gsi)}))});
}

Bytes BuildDsdt(const std::vector<AcpiDevice>& devices) {
  // Revision 2 and up: integers have 64 bits.
  Bytes table = BeginTable("DSDT", /*revision=*/2);
  Bytes virtio;
  for (size_t i = 0; i < devices.size(); ++i) {
    const Bytes device = VirtioMmio(i, devices[i]);
    virtio.insert(virtio.end(), device.begin(), device.end());
  }
  const Bytes body = aml::Join(
      {aml::Scope("\\_SB",
                  {Com1(), VmGenerationId(), GenericEventDevice(), virtio}),
       aml::Name("\\_S5",
                 aml::Package({aml::Integer(kSleepTypeS5), aml::Integer(0),
                               aml::Integer(0), aml::Integer(0)}))});
  table.insert(table.end(), body.begin(), body.end());
  return FinishTable(std::move(table));
}

absl::Status CheckDevice(const std::vector<AcpiDevice>& devices, size_t index) {
  const AcpiDevice& device = devices[index];
  if (device.gpa < kRegisterPages || device.gpa >= kIoApic ||
      !base::IsAligned(device.gpa, kPageSize)) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "device {}: register page at gpa {:#x}, must be a multiple of "
                 "{} in [{:#x}, {:#x})",
                 index, device.gpa, kPageSize, kRegisterPages, kIoApic);
  }
  if (device.gsi < kFirstDeviceGsi || device.gsi >= kIoApicPins) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "device {}: gsi is {}, must be {} to {}", index, device.gsi,
                 kFirstDeviceGsi, kIoApicPins - 1);
  }
  for (size_t other = 0; other < index; ++other) {
    if (devices[other].gsi == device.gsi) {
      return Error(absl::StatusCode::kInvalidArgument,
                   "device {}: gsi {} is device {}'s", index, device.gsi,
                   other);
    }
    if (devices[other].gpa == device.gpa) {
      return Error(absl::StatusCode::kInvalidArgument,
                   "device {}: register page at gpa {:#x} is device {}'s",
                   index, device.gpa, other);
    }
  }
  return absl::OkStatus();
}

absl::Status CheckConfig(const AcpiConfig& config) {
  if (config.vcpus < kMinVcpus || config.vcpus > kMaxVcpus) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "vcpus is {}, must be {} to {}", config.vcpus, kMinVcpus,
                 kMaxVcpus);
  }
  if (config.devices.size() > size_t{kMaxDevices}) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "{} virtio devices, must be at most {}", config.devices.size(),
                 kMaxDevices);
  }
  for (size_t i = 0; i < config.devices.size(); ++i) {
    CATNAP_RETURN_IF_ERROR(CheckDevice(config.devices, i));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<uint8_t>> BuildAcpi(const AcpiConfig& config) {
  CATNAP_RETURN_IF_ERROR(CheckConfig(config));
  // Room for the RSDP, which comes first and is built last: each table needs
  // the address of what it points to.
  static_assert(kRsdpBytes <= kTableAlignment);
  Bytes out(kTableAlignment);
  const auto add = [&out](const Bytes& table) -> uint64_t {
    const uint64_t address = kAcpiStart + out.size();
    out.insert(out.end(), table.begin(), table.end());
    const size_t used = out.size() % kTableAlignment;
    if (used != 0) out.resize(out.size() + kTableAlignment - used);
    return address;
  };
  const uint64_t dsdt = add(BuildDsdt(config.devices));
  const uint64_t fadt = add(BuildFadt(dsdt));
  const uint64_t madt = add(BuildMadt(config.vcpus));
  const Bytes rsdp = BuildRsdp(add(BuildXsdt({fadt, madt})));
  std::copy(rsdp.begin(), rsdp.end(), out.begin());
  if (out.size() > kAcpiEnd - kAcpiStart) {
    return Error(absl::StatusCode::kInternal,
                 "ACPI tables take {} bytes, room is for {}", out.size(),
                 kAcpiEnd - kAcpiStart);
  }
  return out;
}

absl::Status WriteAcpi(memory::GuestMemory& memory, const AcpiConfig& config) {
  CATNAP_ASSIGN_OR_RETURN(const std::vector<uint8_t> tables, BuildAcpi(config));
  return memory.Write(memory::Gpa{kAcpiStart}, tables);
}

}  // namespace catnap::arch
