#include <cstdint>
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "arch/x86_64/acpi.h"
#include "arch/x86_64/layout.h"
#include "support/acpi_parser.h"

// Writes the tables of one machine to FOLDER/<signature>.aml, for iasl.

namespace {

catnap::arch::AcpiConfig Config(int vcpus, int devices) {
  catnap::arch::AcpiConfig config{.vcpus = vcpus, .devices = {}};
  for (int i = 0; i < devices; ++i) {
    const auto index = static_cast<uint32_t>(i);
    config.devices.push_back(
        {.gpa = catnap::arch::kRegisterPages + index * catnap::arch::kPageSize,
         .gsi = catnap::arch::kFirstDeviceGsi + index});
  }
  return config;
}

bool Write(const std::string& path, std::span<const uint8_t> bytes) {
  std::ofstream out(path, std::ios::binary);
  out.write(reinterpret_cast<const char*>(bytes.data()),
            static_cast<std::streamsize>(bytes.size()));
  out.flush();
  return out.good();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: %s VCPUS DEVICES FOLDER\n", argv[0]);
    return 2;
  }
  const auto image =
      catnap::arch::BuildAcpi(Config(std::stoi(argv[1]), std::stoi(argv[2])));
  if (!image.ok()) {
    std::fprintf(stderr, "%s\n", image.status().ToString().c_str());
    return 1;
  }
  const auto tables =
      catnap::testing::ParseAcpi(*image, catnap::arch::kAcpiStart);
  if (!tables.ok()) {
    std::fprintf(stderr, "%s\n", tables.status().ToString().c_str());
    return 1;
  }
  for (const auto& table : *tables) {
    const std::string path =
        std::string(argv[3]) + "/" + table.signature + ".aml";
    if (!Write(path, table.bytes)) {
      std::fprintf(stderr, "cannot write %s\n", path.c_str());
      return 1;
    }
  }
  return 0;
}
