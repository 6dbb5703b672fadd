#ifndef CATNAP_LIB_STATE_SECTION_H_
#define CATNAP_LIB_STATE_SECTION_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace catnap::state {

// What a section of a saved machine describes.
enum class SectionId : uint32_t {
  kMachine = 1,  // What was built: memory, vCPUs, devices.
  kIrqchip = 2,
  kClock = 3,
  kVcpu = 4,  // One for each; the instance is the index.
  kSerial = 5,
  kVmGenId = 6,
  kHostCpu = 7,      // What the guest relies on of the host's CPU.
  kDevice = 8,       // A virtio device; the instance is its page.
  kEventDevice = 9,  // ACPI events that the guest was not told of yet.
  kDisk = 10,        // Which disk was frozen with the machine.
};

// One section of a file of saved state: where it is, and what its bytes are.
struct SectionHeader {
  SectionId id{};
  uint32_t instance = 0;  // Tells sections of one id apart.
  uint16_t version = 0;   // Of the fields' meaning; new fields do not count.
  // A reader that does not know the section must refuse the file.
  bool critical = false;
  uint64_t offset = 0;  // From the start of the file, in bytes.
  uint64_t length = 0;  // In bytes.
  uint32_t crc32c = 0;  // Of the section's bytes.

  friend bool operator==(const SectionHeader&, const SectionHeader&) = default;
};

inline constexpr size_t kSectionHeaderBytes = 32;
inline constexpr size_t kMaxSections = 1024;
inline constexpr uint64_t kMaxSectionBytes = uint64_t{64} << 20;
inline constexpr uint16_t kSectionFlagCritical = 1;

static_assert(static_cast<uint32_t>(SectionId::kMachine) == 1 &&
                  static_cast<uint32_t>(SectionId::kIrqchip) == 2 &&
                  static_cast<uint32_t>(SectionId::kClock) == 3 &&
                  static_cast<uint32_t>(SectionId::kVcpu) == 4 &&
                  static_cast<uint32_t>(SectionId::kSerial) == 5 &&
                  static_cast<uint32_t>(SectionId::kVmGenId) == 6 &&
                  static_cast<uint32_t>(SectionId::kHostCpu) == 7 &&
                  static_cast<uint32_t>(SectionId::kDevice) == 8 &&
                  static_cast<uint32_t>(SectionId::kEventDevice) == 9 &&
                  static_cast<uint32_t>(SectionId::kDisk) == 10,
              "section ids are on disk: read lib/state/FORMAT.md first");
static_assert(kSectionHeaderBytes == 32 && kSectionFlagCritical == 1,
              "section headers are on disk: read lib/state/FORMAT.md first");

// "vcpu 3", for messages; "section 77 instance 0" for an unknown id.
std::string SectionName(SectionId id, uint32_t instance);

// Writes the header's bytes, FORMAT.md's layout.
void EncodeSectionHeader(const SectionHeader& header,
                         std::span<uint8_t, kSectionHeaderBytes> into);

// Reads a whole section table, from hostile bytes. On success the sections lie
// in [first_byte, file_bytes), in the order of their offsets, do not overlap,
// are at most kMaxSectionBytes each, and (id, instance) is unique; what the
// sections hold is not looked at.
// Errors: DATA_LOSS, or UNIMPLEMENTED for a flag of a newer writer.
absl::StatusOr<std::vector<SectionHeader>> DecodeSectionTable(
    std::span<const uint8_t> table, uint64_t first_byte, uint64_t file_bytes);

// What a reader knows: an id and the newest version of it.
struct KnownSection {
  SectionId id;
  uint16_t version;
};

// Whether to read the section; false: skip it.
// Errors: UNIMPLEMENTED, the id is unknown or its version too new, and the
// section is critical.
absl::StatusOr<bool> ShouldReadSection(const SectionHeader& header,
                                       std::span<const KnownSection> known);

// Compares a section's bytes with its header. Errors: DATA_LOSS.
absl::Status CheckSection(const SectionHeader& header,
                          std::span<const uint8_t> bytes);

}  // namespace catnap::state

#endif  // CATNAP_LIB_STATE_SECTION_H_
