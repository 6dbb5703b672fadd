#include "arch/x86_64/acpi.h"

#include <string>

#include "arch/x86_64/layout.h"
#include "base/byte_order.h"
#include "support/acpi_parser.h"
#include "unit/arch/arch_test_support.h"

namespace catnap::arch {
namespace {

using testing::AmlNamespace;
using testing::ParsedTable;

AcpiConfig MakeConfig(int vcpus, size_t devices) {
  AcpiConfig config{.vcpus = vcpus, .devices = {}};
  for (size_t i = 0; i < devices; ++i) {
    config.devices.push_back(
        {.gpa = kRegisterPages + i * kPageSize,
         .gsi = kFirstDeviceGsi + static_cast<uint32_t>(i)});
  }
  return config;
}

std::vector<uint8_t> Build(const AcpiConfig& config) {
  auto image = BuildAcpi(config);
  REQUIRE(image.ok());
  return *std::move(image);
}

std::vector<ParsedTable> Parse(const std::vector<uint8_t>& image) {
  auto tables = testing::ParseAcpi(image, kAcpiStart);
  INFO(tables.status().ToString());
  REQUIRE(tables.ok());
  return *std::move(tables);
}

AmlNamespace Names(const std::vector<uint8_t>& image) {
  auto names = testing::ParseDsdt(testing::FindTable(Parse(image), "DSDT"));
  INFO(names.status().ToString());
  REQUIRE(names.ok());
  return *std::move(names);
}

// A one-byte I/O port as a generic address structure.
uint64_t PortOf(std::span<const uint8_t> address) {
  CHECK(address[0] == 1);  // I/O space
  CHECK(address[1] == 8);  // bits
  CHECK(address[2] == 0);  // bit offset
  CHECK(address[3] == 1);  // byte access
  return base::LoadLe<uint64_t>(&address[4]);
}

std::vector<uint8_t> AmlString(const std::string& text) {
  const std::string encoded = '\x0d' + text + '\0';
  return {encoded.begin(), encoded.end()};
}

TEST_CASE("ACPI tables of every size have right lengths and checksums") {
  const int vcpus = GENERATE(1, 2, 31, 32);
  const size_t devices =
      GENERATE(size_t{0}, size_t{1}, size_t{2}, size_t{17}, size_t{18});
  CAPTURE(vcpus, devices);
  const auto image = Build(MakeConfig(vcpus, devices));
  const auto tables = Parse(image);
  CHECK(tables.size() == 5);
  CHECK(image.size() <= kAcpiEnd - kAcpiStart);
}

TEST_CASE("FADT describes a hardware-reduced machine with its registers") {
  const auto image = Build(MakeConfig(1, 0));
  const auto fadt = testing::FindTable(Parse(image), "FACP");
  REQUIRE(fadt.size() == 276);
  CHECK(fadt[8] == 6);
  CHECK(base::LoadLe<uint32_t>(&fadt[36]) == 0);  // No FACS.
  const auto boot = base::LoadLe<uint16_t>(&fadt[109]);
  CHECK((boot & (1u << 0)) == 0);  // No legacy devices,
  CHECK((boot & (1u << 1)) == 0);  // no 8042,
  CHECK((boot & (1u << 2)) != 0);  // no VGA,
  CHECK((boot & (1u << 5)) != 0);  // no CMOS RTC.
  const auto flags = base::LoadLe<uint32_t>(&fadt[112]);
  CHECK((flags & (1u << 10)) != 0);  // RESET_REG_SUP
  CHECK((flags & (1u << 20)) != 0);  // HW_REDUCED_ACPI
  CHECK(PortOf(fadt.subspan(116)) == kResetPort);
  CHECK(fadt[128] == kResetValue);
  CHECK(PortOf(fadt.subspan(244)) == kSleepControlPort);
  CHECK(PortOf(fadt.subspan(256)) == kSleepStatusPort);
}

TEST_CASE("MADT lists a local APIC for each vCPU, and one IOAPIC") {
  const int vcpus = GENERATE(1, 3, 32);
  const auto image = Build(MakeConfig(vcpus, 0));
  const auto madt = testing::FindTable(Parse(image), "APIC");
  REQUIRE(madt.size() == 44 + 8 * static_cast<size_t>(vcpus) + 12 + 6);
  CHECK(base::LoadLe<uint32_t>(&madt[36]) == kLocalApic);
  CHECK(base::LoadLe<uint32_t>(&madt[40]) == 0);  // No PCAT_COMPAT.
  size_t at = 44;
  for (int i = 0; i < vcpus; ++i, at += 8) {
    CHECK(madt[at] == 0);
    CHECK(madt[at + 1] == 8);
    CHECK(madt[at + 2] == i);
    CHECK(madt[at + 3] == i);
    CHECK(base::LoadLe<uint32_t>(&madt[at + 4]) == 1);
  }
  CHECK(madt[at] == 1);
  CHECK(base::LoadLe<uint32_t>(&madt[at + 4]) == kIoApic);
  CHECK(base::LoadLe<uint32_t>(&madt[at + 8]) == 0);
  at += 12;
  CHECK(madt[at] == 4);
  CHECK(madt[at + 2] == 0xff);  // All processors:
  CHECK(madt[at + 5] == 1);     // NMI at LINT1.
}

TEST_CASE("DSDT has each virtio device with its page and its interrupt") {
  AcpiConfig config = MakeConfig(1, 3);
  config.devices[1] = {.gpa = 0xd123'4000, .gsi = 23};
  const auto names = Names(Build(config));
  REQUIRE(names.count("_SB_.V001._CRS") == 1);
  CHECK(names.at("_SB_.V001._HID") == AmlString("LNRO0005"));
  const std::vector<uint8_t> resources = {
      0x11, 0x1a, 0x0a, 0x17,                          // Buffer of 23 bytes
      0x86, 0x09, 0x00, 0x01, 0x00, 0x40, 0x23, 0xd1,  // at 0xd1234000,
      0x00, 0x10, 0x00, 0x00,                          // of 4096 bytes;
      0x89, 0x06, 0x00, 0x03, 0x01, 0x17, 0x00, 0x00, 0x00,  // GSI 23, edge
      0x79, 0x00};
  CHECK(names.at("_SB_.V001._CRS") == resources);
  CHECK(names.count("_SB_.V002") == 1);
  CHECK(names.count("_SB_.V003") == 0);
}

TEST_CASE("DSDT has COM1, generation id, event device and soft-off") {
  const auto names = Names(Build(MakeConfig(1, 0)));
  // "PNP0501" compressed: the integer 0x0105d041.
  CHECK(names.at("_SB_.COM1._HID") ==
        std::vector<uint8_t>{0x0c, 0x41, 0xd0, 0x05, 0x01});
  CHECK(names.at("_SB_.VGEN._CID") == AmlString("VM_Gen_Counter"));
  CHECK(names.at("_SB_.VGEN.ADDR") == std::vector<uint8_t>{0x12, 0x08, 0x02,
                                                           0x0c, 0x00, 0xf0,
                                                           0x0f, 0x00, 0x00});
  CHECK(names.at("_SB_.GED_._HID") == AmlString("ACPI0013"));
  CHECK(names.at("_SB_.GED_.EVTR") ==
        std::vector<uint8_t>{0x0b, kEventPort & 0xff, kEventPort >> 8});
  CHECK(names.count("_SB_.GED_._EVT") == 1);
  CHECK(names.at("_S5_") ==
        std::vector<uint8_t>{0x12, 0x07, 0x04, 0x0a, kSleepTypeS5, 0, 0, 0});
}

TEST_CASE("ACPI refuses a number of vCPUs that the machine cannot have") {
  const int vcpus = GENERATE(-1, 0, 33, 256);
  CheckInvalid(BuildAcpi(MakeConfig(vcpus, 0)).status(),
               {"vcpus is " + std::to_string(vcpus), "1 to 32"});
}

TEST_CASE("ACPI refuses more devices than there are interrupts") {
  CheckInvalid(BuildAcpi(MakeConfig(1, kMaxDevices + 1)).status(),
               {"19 virtio devices", "at most 18"});
}

TEST_CASE("ACPI refuses an interrupt that no device may have") {
  const uint32_t gsi = GENERATE(0u, kCom1Gsi, kEventGsi, kIoApicPins, ~0u);
  AcpiConfig config = MakeConfig(1, 2);
  config.devices[1].gsi = gsi;
  CheckInvalid(BuildAcpi(config).status(),
               {"device 1", "gsi is " + std::to_string(gsi), "6 to 23"});
}

TEST_CASE("ACPI refuses a register page outside of the hole or not aligned") {
  const uint64_t gpa =
      GENERATE(uint64_t{0}, kRegisterPages - kPageSize, kRegisterPages + 1,
               kIoApic, kHighRamStart, ~uint64_t{0});
  AcpiConfig config = MakeConfig(1, 1);
  config.devices[0].gpa = gpa;
  CheckInvalid(
      BuildAcpi(config).status(),
      {"device 0", fmt::format("{:#x}", gpa), "0xd0000000", "0xfec00000"});
}

TEST_CASE("ACPI refuses two devices with one interrupt") {
  AcpiConfig config = MakeConfig(1, 3);
  config.devices[2].gsi = config.devices[0].gsi;
  CheckInvalid(BuildAcpi(config).status(), {"device 2", "gsi 6", "device 0"});
}

TEST_CASE("ACPI refuses two devices with one register page") {
  AcpiConfig config = MakeConfig(1, 3);
  config.devices[2].gpa = config.devices[1].gpa;
  CheckInvalid(BuildAcpi(config).status(),
               {"device 2", "0xd0001000", "device 1"});
}

TEST_CASE("WriteAcpi puts the tables into their area and nothing behind it") {
  const auto memory = MakeMemory(2 << 20);
  const AcpiConfig config = MakeConfig(kMaxVcpus, kMaxDevices);
  REQUIRE(WriteAcpi(*memory, config).ok());
  const auto image = Build(config);
  CHECK(ReadMemory(*memory, kAcpiStart, image.size()) == image);
  CHECK(ReadMemory(*memory, kVmGenId, kPageSize) ==
        std::vector<uint8_t>(kPageSize));
}

TEST_CASE("WriteAcpi wants RAM where the tables go") {
  const auto memory = MakeMemory(kAcpiStart);
  CHECK(WriteAcpi(*memory, MakeConfig(1, 0)).code() ==
        absl::StatusCode::kOutOfRange);
}

}  // namespace
}  // namespace catnap::arch
