#include <algorithm>
#include <cstdint>
#include <vector>

#include "arch/x86_64/acpi.h"
#include "arch/x86_64/layout.h"
#include "base/status.h"
#include "fuzz/fuzz_input.h"
#include "fuzz/fuzz_target.h"
#include "support/acpi_parser.h"

// Any configuration: refused exactly when it breaks a rule of acpi.h, and
// otherwise tables that a guest can walk, with every device in them.

namespace catnap::arch {
namespace {

AcpiDevice MakeDevice(fuzz::FuzzInput* input) {
  // Mostly near what is right, sometimes anything.
  if (input->Between<uint8_t>(0, 15) == 0) {
    return {.gpa = input->Integer<uint64_t>(),
            .gsi = input->Integer<uint32_t>()};
  }
  return {.gpa = kRegisterPages + input->Integer<uint8_t>() * kPageSize,
          .gsi = kFirstDeviceGsi +
                 input->Between<uint8_t>(0, kIoApicPins - kFirstDeviceGsi)};
}

AcpiConfig MakeConfig(fuzz::FuzzInput* input) {
  AcpiConfig config;
  config.vcpus = input->Integer<uint8_t>();
  const auto devices = input->Between<uint8_t>(0, kMaxDevices + 2);
  for (int i = 0; i < devices; ++i) config.devices.push_back(MakeDevice(input));
  return config;
}

bool IsGood(const AcpiDevice& device) {
  return device.gpa >= kRegisterPages && device.gpa < kIoApic &&
         device.gpa % kPageSize == 0 && device.gsi >= kFirstDeviceGsi &&
         device.gsi < kIoApicPins;
}

bool IsGood(const AcpiConfig& config) {
  const auto& devices = config.devices;
  if (config.vcpus < 1 || config.vcpus > 32 || devices.size() > kMaxDevices) {
    return false;
  }
  for (size_t i = 0; i < devices.size(); ++i) {
    if (!IsGood(devices[i])) return false;
    for (size_t j = 0; j < i; ++j) {
      if (devices[i].gpa == devices[j].gpa) return false;
      if (devices[i].gsi == devices[j].gsi) return false;
    }
  }
  return true;
}

// Whether `bytes` holds `value`, little-endian.
bool Holds(const std::vector<uint8_t>& bytes, uint32_t value) {
  const auto* raw = reinterpret_cast<const uint8_t*>(&value);
  return std::search(bytes.begin(), bytes.end(), raw, raw + sizeof(value)) !=
         bytes.end();
}

void Check(const AcpiConfig& config) {
  const auto image = BuildAcpi(config);
  FUZZ_CHECK(image.ok() == IsGood(config));
  if (!image.ok()) {
    FUZZ_CHECK(image.status().code() == absl::StatusCode::kInvalidArgument);
    return;
  }
  FUZZ_CHECK(image->size() <= kAcpiEnd - kAcpiStart);
  const auto tables = testing::ParseAcpi(*image, kAcpiStart);
  FUZZ_CHECK(tables.ok());
  const auto names = testing::ParseDsdt(testing::FindTable(*tables, "DSDT"));
  FUZZ_CHECK(names.ok());
  for (size_t i = 0; i < config.devices.size(); ++i) {
    const auto resources = names->find(fmt::format("_SB_.V{:03X}._CRS", i));
    FUZZ_CHECK(resources != names->end());
    FUZZ_CHECK(
        Holds(resources->second, static_cast<uint32_t>(config.devices[i].gpa)));
    FUZZ_CHECK(Holds(resources->second, config.devices[i].gsi));
  }
  const auto madt = testing::FindTable(*tables, "APIC");
  FUZZ_CHECK(madt.size() == 62 + 8 * static_cast<size_t>(config.vcpus));
}

}  // namespace
}  // namespace catnap::arch

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  catnap::fuzz::FuzzInput input(data, size);
  catnap::arch::Check(catnap::arch::MakeConfig(&input));
  return 0;
}
