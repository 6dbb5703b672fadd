#include "state/section.h"

#include <algorithm>
#include <utility>

#include "base/byte_order.h"
#include "base/checked.h"
#include "base/crc32c.h"
#include "base/status.h"

namespace catnap::state {
namespace {

// Where the fields of a header are; all little-endian.
constexpr size_t kIdAt = 0;
constexpr size_t kInstanceAt = 4;
constexpr size_t kVersionAt = 8;
constexpr size_t kFlagsAt = 10;
constexpr size_t kCrcAt = 12;
constexpr size_t kOffsetAt = 16;
constexpr size_t kLengthAt = 24;
static_assert(kLengthAt + sizeof(uint64_t) == kSectionHeaderBytes,
              "section headers are on disk: read lib/state/FORMAT.md first");

std::string NameOf(const SectionHeader& header) {
  return SectionName(header.id, header.instance);
}

absl::StatusOr<SectionHeader> DecodeHeader(const uint8_t* from) {
  SectionHeader header;
  header.id = static_cast<SectionId>(base::LoadLe<uint32_t>(from + kIdAt));
  header.instance = base::LoadLe<uint32_t>(from + kInstanceAt);
  header.version = base::LoadLe<uint16_t>(from + kVersionAt);
  const auto flags = base::LoadLe<uint16_t>(from + kFlagsAt);
  header.critical = (flags & kSectionFlagCritical) != 0;
  header.crc32c = base::LoadLe<uint32_t>(from + kCrcAt);
  header.offset = base::LoadLe<uint64_t>(from + kOffsetAt);
  header.length = base::LoadLe<uint64_t>(from + kLengthAt);
  if ((flags & ~kSectionFlagCritical) != 0) {
    return Error(absl::StatusCode::kUnimplemented,
                 "{} has flags {:#x}, known are {:#x}", NameOf(header), flags,
                 kSectionFlagCritical);
  }
  return header;
}

absl::Status CheckPlace(const SectionHeader& header, uint64_t first_byte,
                        uint64_t file_bytes) {
  if (header.length > kMaxSectionBytes) {
    return Error(absl::StatusCode::kDataLoss,
                 "{} is {} bytes, must be at most {}", NameOf(header),
                 header.length, kMaxSectionBytes);
  }
  if (header.offset < first_byte ||
      !base::InRange(header.offset, header.length, file_bytes)) {
    return Error(absl::StatusCode::kDataLoss,
                 "{} is {} bytes at {}, must lie in {} to {} and behind the "
                 "section before",
                 NameOf(header), header.length, header.offset, first_byte,
                 file_bytes);
  }
  return absl::OkStatus();
}

absl::Status CheckUnique(const std::vector<SectionHeader>& headers) {
  std::vector<std::pair<SectionId, uint32_t>> keys;
  keys.reserve(headers.size());
  for (const SectionHeader& header : headers) {
    keys.emplace_back(header.id, header.instance);
  }
  std::sort(keys.begin(), keys.end());
  const auto twice = std::adjacent_find(keys.begin(), keys.end());
  if (twice == keys.end()) return absl::OkStatus();
  return Error(absl::StatusCode::kDataLoss, "{} is there twice",
               SectionName(twice->first, twice->second));
}

}  // namespace

std::string SectionName(SectionId id, uint32_t instance) {
  switch (id) {
    case SectionId::kMachine:
      return "machine";
    case SectionId::kIrqchip:
      return "irqchip";
    case SectionId::kClock:
      return "clock";
    case SectionId::kVcpu:
      return fmt::format("vcpu {}", instance);
    case SectionId::kSerial:
      return fmt::format("serial {}", instance);
    case SectionId::kVmGenId:
      return "vmgenid";
    case SectionId::kHostCpu:
      return "host cpu";
    case SectionId::kDevice:
      return fmt::format("device {}", instance);
    case SectionId::kEventDevice:
      return "event device";
    case SectionId::kDisk:
      return "disk";
  }
  return fmt::format("section {} instance {}", static_cast<uint32_t>(id),
                     instance);
}

void EncodeSectionHeader(const SectionHeader& header,
                         std::span<uint8_t, kSectionHeaderBytes> into) {
  uint8_t* to = into.data();
  base::StoreLe(to + kIdAt, static_cast<uint32_t>(header.id));
  base::StoreLe(to + kInstanceAt, header.instance);
  base::StoreLe(to + kVersionAt, header.version);
  base::StoreLe<uint16_t>(to + kFlagsAt,
                          header.critical ? kSectionFlagCritical : 0);
  base::StoreLe(to + kCrcAt, header.crc32c);
  base::StoreLe(to + kOffsetAt, header.offset);
  base::StoreLe(to + kLengthAt, header.length);
}

absl::StatusOr<std::vector<SectionHeader>> DecodeSectionTable(
    std::span<const uint8_t> table, uint64_t first_byte, uint64_t file_bytes) {
  const size_t count = table.size() / kSectionHeaderBytes;
  if (table.size() % kSectionHeaderBytes != 0 || count > kMaxSections) {
    return Error(absl::StatusCode::kDataLoss,
                 "section table is {} bytes, must be at most {} headers of {}",
                 table.size(), kMaxSections, kSectionHeaderBytes);
  }
  std::vector<SectionHeader> headers;
  headers.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    CATNAP_ASSIGN_OR_RETURN(
        const SectionHeader header,
        DecodeHeader(table.data() + i * kSectionHeaderBytes));
    CATNAP_RETURN_IF_ERROR(CheckPlace(header, first_byte, file_bytes));
    headers.push_back(header);
    // CheckPlace() has shown that the sum does not wrap.
    first_byte = header.offset + header.length;
  }
  CATNAP_RETURN_IF_ERROR(CheckUnique(headers));
  return headers;
}

absl::StatusOr<bool> ShouldReadSection(const SectionHeader& header,
                                       std::span<const KnownSection> known) {
  const auto found = std::find_if(
      known.begin(), known.end(),
      [&header](const KnownSection& one) { return one.id == header.id; });
  if (found != known.end() && header.version <= found->version) return true;
  if (!header.critical) return false;
  if (found == known.end()) {
    return Error(absl::StatusCode::kUnimplemented,
                 "{} is needed and not known to this library", NameOf(header));
  }
  return Error(absl::StatusCode::kUnimplemented,
               "{} is needed and has version {}, this library reads up to {}",
               NameOf(header), header.version, found->version);
}

absl::Status CheckSection(const SectionHeader& header,
                          std::span<const uint8_t> bytes) {
  if (bytes.size() != header.length) {
    return Error(absl::StatusCode::kDataLoss, "{} is {} bytes, must be {}",
                 NameOf(header), bytes.size(), header.length);
  }
  const uint32_t sum = base::Crc32c(bytes);
  if (sum != header.crc32c) {
    return Error(absl::StatusCode::kDataLoss,
                 "{} has checksum {:#010x}, must have {:#010x}", NameOf(header),
                 sum, header.crc32c);
  }
  return absl::OkStatus();
}

}  // namespace catnap::state
