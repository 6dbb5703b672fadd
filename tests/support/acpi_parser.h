#ifndef CATNAP_TESTS_SUPPORT_ACPI_PARSER_H_
#define CATNAP_TESTS_SUPPORT_ACPI_PARSER_H_

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace catnap::testing {

struct ParsedTable {
  std::string signature;
  uint64_t address = 0;
  std::span<const uint8_t> bytes;  // With the header.
};

// Finds the tables as a guest does: RSDP at `base`, XSDT, what it lists, and
// the DSDT that the FADT names. Checks signatures, lengths and checksums, that
// every table lies in `image` and that no two overlap.
// `image` is what lies at `base` and must outlive the result.
absl::StatusOr<std::vector<ParsedTable>> ParseAcpi(
    std::span<const uint8_t> image, uint64_t base);

// The table of that signature; empty when there is none.
std::span<const uint8_t> FindTable(const std::vector<ParsedTable>& tables,
                                   const std::string& signature);

// The values of named objects, by path ("_SB_.COM1._HID"): the encoded bytes.
// A method's or device's own entry holds all of its body.
using AmlNamespace = std::map<std::string, std::vector<uint8_t>>;

// Walks the definition block of a DSDT: every term must be one that our
// generator emits, and every length must end where its parent's allows.
absl::StatusOr<AmlNamespace> ParseDsdt(std::span<const uint8_t> dsdt);

}  // namespace catnap::testing

#endif  // CATNAP_TESTS_SUPPORT_ACPI_PARSER_H_
