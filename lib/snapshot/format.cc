#include "snapshot/format.h"

#include <algorithm>
#include <cstring>

#include "base/byte_order.h"
#include "base/checked.h"
#include "base/crc32c.h"
#include "base/status.h"

namespace catnap::snapshot {
namespace {

constexpr std::array<uint8_t, 8> kMemoryMagic = {'C', 'a', 't', 'n',
                                                 'a', 'p', 'S', '\n'};
constexpr std::array<uint8_t, 8> kChunkMagic = {'C', 'a', 't', 'n',
                                                'a', 'p', 'C', '\n'};

// Both kinds of file, in every version: magic, format, the oldest format whose
// readers can read it, and the checksum of all before it in the last bytes.
constexpr size_t kFormatAt = 8;
constexpr size_t kMinReaderAt = 12;
constexpr uint32_t kMinReader = 1;  // Of what this library writes.

// memory.catnap.
constexpr size_t kIdAt = 16;
constexpr size_t kParentAt = 32;
constexpr size_t kFlagsAt = 48;
constexpr size_t kSectionsAt = 52;
constexpr size_t kRamBytesAt = 56;
constexpr size_t kFileBytesAt = 64;
constexpr size_t kIndexOffsetAt = 72;
constexpr size_t kIndexBytesAt = 80;
constexpr size_t kTableCrcAt = 88;
constexpr size_t kIndexCrcAt = 92;
constexpr size_t kReservedAt = 96;
constexpr size_t kHeaderCrcAt = 124;
constexpr uint32_t kFlagHasParent = 1;

// A chunk file.
constexpr size_t kChunkIdAt = 16;
constexpr size_t kChunkReservedAt = 32;
constexpr size_t kChunkCrcAt = 60;

static_assert(kHeaderCrcAt + sizeof(uint32_t) == kHeaderBytes &&
                  kChunkCrcAt + sizeof(uint32_t) == kChunkHeaderBytes &&
                  kIndexCrcAt == 92 && kFlagHasParent == 1 && kMinReader == 1,
              "on-disk format: read lib/snapshot/FORMAT.md first");

bool IsZero(std::span<const uint8_t> bytes) {
  return std::all_of(bytes.begin(), bytes.end(),
                     [](uint8_t byte) { return byte == 0; });
}

// Magic, checksum, versions, in this order.
absl::Status CheckStart(std::span<const uint8_t> from,
                        std::span<const uint8_t, 8> magic) {
  if (!std::equal(magic.begin(), magic.end(), from.begin())) {
    return absl::DataLossError("does not start as a file of this kind");
  }
  const size_t crc_at = from.size() - sizeof(uint32_t);
  const auto wanted = base::LoadLe<uint32_t>(from.data() + crc_at);
  const uint32_t sum = base::Crc32c(from.first(crc_at));
  if (sum != wanted) {
    return Error(absl::StatusCode::kDataLoss,
                 "header has checksum {:#010x}, must have {:#010x}", sum,
                 wanted);
  }
  const auto format = base::LoadLe<uint32_t>(from.data() + kFormatAt);
  const auto min_reader = base::LoadLe<uint32_t>(from.data() + kMinReaderAt);
  if (min_reader > kFormatVersion) {
    return Error(absl::StatusCode::kUnimplemented,
                 "format {} needs a reader of format {}, this library reads {}",
                 format, min_reader, kFormatVersion);
  }
  if (min_reader == 0 || format < min_reader) {
    return Error(absl::StatusCode::kDataLoss, "format is {}, min reader {}",
                 format, min_reader);
  }
  return absl::OkStatus();
}

// The last step of writing a header.
void PutStart(std::span<uint8_t> into, std::span<const uint8_t, 8> magic) {
  std::memcpy(into.data(), magic.data(), magic.size());
  base::StoreLe(into.data() + kFormatAt, kFormatVersion);
  base::StoreLe(into.data() + kMinReaderAt, kMinReader);
  const size_t crc_at = into.size() - sizeof(uint32_t);
  base::StoreLe(into.data() + crc_at, base::Crc32c(into.first(crc_at)));
}

absl::Status CheckSizes(const Header& header, uint64_t file_bytes) {
  if (header.file_bytes != file_bytes) {
    return Error(absl::StatusCode::kDataLoss,
                 "file is {} bytes, its header says {}", file_bytes,
                 header.file_bytes);
  }
  if (header.ram_bytes == 0 || header.ram_bytes > kMaxRamBytes ||
      !base::IsAligned<uint64_t>(header.ram_bytes, base::kPageBytes)) {
    return Error(absl::StatusCode::kDataLoss,
                 "memory is {} bytes, must be pages, at most {} bytes",
                 header.ram_bytes, kMaxRamBytes);
  }
  if (header.sections > state::kMaxSections) {
    return Error(absl::StatusCode::kDataLoss, "{} sections, must be at most {}",
                 header.sections, state::kMaxSections);
  }
  if (header.index_bytes > kMaxIndexBytes || header.index_bytes > file_bytes ||
      header.index_offset != file_bytes - header.index_bytes) {
    return Error(absl::StatusCode::kDataLoss,
                 "index is {} bytes at {}, must be at most {} and end the file "
                 "of {} bytes",
                 header.index_bytes, header.index_offset, kMaxIndexBytes,
                 file_bytes);
  }
  const uint64_t sections_at = kHeaderBytes + header.section_table_bytes();
  if (header.index_offset < sections_at ||
      header.index_offset - sections_at > kMaxAllSectionsBytes) {
    return Error(absl::StatusCode::kDataLoss,
                 "index is at {}, must be behind the section table, which ends "
                 "at {}, and at most {} bytes of sections",
                 header.index_offset, sections_at, kMaxAllSectionsBytes);
  }
  return absl::OkStatus();
}

}  // namespace

std::string IdText(const Id& id) {
  std::string text;
  for (const uint8_t byte : id) text += fmt::format("{:02x}", byte);
  return text;
}

void EncodeHeader(const Header& header, std::span<uint8_t, kHeaderBytes> into) {
  std::fill(into.begin(), into.end(), uint8_t{0});
  uint8_t* const to = into.data();
  std::memcpy(to + kIdAt, header.id.data(), header.id.size());
  if (header.has_parent) {
    std::memcpy(to + kParentAt, header.parent.data(), header.parent.size());
  }
  base::StoreLe(to + kFlagsAt, header.has_parent ? kFlagHasParent : 0U);
  base::StoreLe(to + kSectionsAt, header.sections);
  base::StoreLe(to + kRamBytesAt, header.ram_bytes);
  base::StoreLe(to + kFileBytesAt, header.file_bytes);
  base::StoreLe(to + kIndexOffsetAt, header.index_offset);
  base::StoreLe(to + kIndexBytesAt, header.index_bytes);
  base::StoreLe(to + kTableCrcAt, header.section_table_crc32c);
  base::StoreLe(to + kIndexCrcAt, header.index_crc32c);
  PutStart(into, kMemoryMagic);
}

absl::StatusOr<Header> DecodeHeader(std::span<const uint8_t, kHeaderBytes> from,
                                    uint64_t file_bytes) {
  CATNAP_RETURN_IF_ERROR(CheckStart(from, kMemoryMagic));
  const uint8_t* const at = from.data();
  const auto flags = base::LoadLe<uint32_t>(at + kFlagsAt);
  if ((flags & ~kFlagHasParent) != 0 ||
      !IsZero(from.subspan(kReservedAt, kHeaderCrcAt - kReservedAt))) {
    return Error(absl::StatusCode::kUnimplemented,
                 "header has flags {:#x} or fields that this library does not "
                 "know",
                 flags);
  }
  Header header;
  std::memcpy(header.id.data(), at + kIdAt, header.id.size());
  std::memcpy(header.parent.data(), at + kParentAt, header.parent.size());
  header.has_parent = (flags & kFlagHasParent) != 0;
  header.sections = base::LoadLe<uint32_t>(at + kSectionsAt);
  header.ram_bytes = base::LoadLe<uint64_t>(at + kRamBytesAt);
  header.file_bytes = base::LoadLe<uint64_t>(at + kFileBytesAt);
  header.index_offset = base::LoadLe<uint64_t>(at + kIndexOffsetAt);
  header.index_bytes = base::LoadLe<uint64_t>(at + kIndexBytesAt);
  header.section_table_crc32c = base::LoadLe<uint32_t>(at + kTableCrcAt);
  header.index_crc32c = base::LoadLe<uint32_t>(at + kIndexCrcAt);
  if (!header.has_parent && !IsZero(header.parent)) {
    return absl::DataLossError("header names a parent and says it has none");
  }
  CATNAP_RETURN_IF_ERROR(CheckSizes(header, file_bytes));
  return header;
}

void EncodeChunkHeader(const Id& id,
                       std::span<uint8_t, kChunkHeaderBytes> into) {
  std::fill(into.begin(), into.end(), uint8_t{0});
  std::memcpy(into.data() + kChunkIdAt, id.data(), id.size());
  PutStart(into, kChunkMagic);
}

absl::StatusOr<Id> DecodeChunkHeader(
    std::span<const uint8_t, kChunkHeaderBytes> from) {
  CATNAP_RETURN_IF_ERROR(CheckStart(from, kChunkMagic));
  if (!IsZero(from.subspan(kChunkReservedAt, kChunkCrcAt - kChunkReservedAt))) {
    return absl::UnimplementedError(
        "header has fields that this library does not know");
  }
  Id id{};
  std::memcpy(id.data(), from.data() + kChunkIdAt, id.size());
  return id;
}

bool IsChunkFileName(std::string_view name) {
  if (name.size() <= kChunkFileSuffix.size() || name.size() > kMaxNameBytes ||
      name.front() == '.' || !name.ends_with(kChunkFileSuffix)) {
    return false;
  }
  return std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '.';
  });
}

}  // namespace catnap::snapshot
