#ifndef CATNAP_LIB_SNAPSHOT_FORMAT_H_
#define CATNAP_LIB_SNAPSHOT_FORMAT_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/page_range.h"
#include "state/section.h"

namespace catnap::snapshot {

// The fixed parts of a snapshot's files; FORMAT.md has the bytes. Everything
// that is read here may be hostile.

inline constexpr uint32_t kFormatVersion = 1;

inline constexpr size_t kHeaderBytes = 128;
inline constexpr size_t kChunkHeaderBytes = 64;
inline constexpr std::string_view kMemoryFileName = "memory.catnap";
inline constexpr std::string_view kChunkFileSuffix = ".chunks";

// What no file goes beyond, whatever it claims.
inline constexpr uint64_t kMaxRamBytes = uint64_t{64} << 30;
inline constexpr uint64_t kMaxAllSectionsBytes = uint64_t{256} << 20;
inline constexpr uint64_t kMaxIndexBytes = uint64_t{128} << 20;
inline constexpr size_t kMaxChunkFiles = 64;
inline constexpr size_t kMaxNameBytes = 64;
inline constexpr uint32_t kMaxFramePages = 256;
// More than zstd ever makes of kMaxFramePages.
inline constexpr uint32_t kMaxFrameBytes =
    kMaxFramePages * base::kPageBytes + (16 << 10);

static_assert(kFormatVersion == 1 && kHeaderBytes == 128 &&
                  kChunkHeaderBytes == 64 && kMaxFramePages == 256,
              "on-disk format: read lib/snapshot/FORMAT.md first");

// 16 random bytes: tells snapshots, and their chunk files, apart for ever.
using Id = std::array<uint8_t, 16>;

// 32 hexadecimal digits.
std::string IdText(const Id& id);

// The start of memory.catnap.
struct Header {
  Id id{};
  bool has_parent = false;
  Id parent{};  // The image's snapshot, whose pages are not here.
  uint64_t ram_bytes = 0;
  uint32_t sections = 0;
  uint32_t section_table_crc32c = 0;
  uint64_t index_offset = 0;
  uint64_t index_bytes = 0;
  uint32_t index_crc32c = 0;
  uint64_t file_bytes = 0;

  // The section table follows the header.
  uint64_t section_table_bytes() const {
    return uint64_t{sections} * state::kSectionHeaderBytes;
  }

  friend bool operator==(const Header&, const Header&) = default;
};

void EncodeHeader(const Header& header, std::span<uint8_t, kHeaderBytes> into);

// On success all sizes are within the limits above, and the parts lie in the
// file of `file_bytes` bytes: header, section table, sections, index, end.
// Errors: DATA_LOSS; UNIMPLEMENTED, of a newer writer.
absl::StatusOr<Header> DecodeHeader(std::span<const uint8_t, kHeaderBytes> from,
                                    uint64_t file_bytes);

// The start of a chunk file.
void EncodeChunkHeader(const Id& id,
                       std::span<uint8_t, kChunkHeaderBytes> into);

// Returns the file's id. Errors: as DecodeHeader().
absl::StatusOr<Id> DecodeChunkHeader(
    std::span<const uint8_t, kChunkHeaderBytes> from);

// Whether a chunk file may have this name: 1 to kMaxNameBytes of a-z, 0-9, '-'
// and '.', not starting with a dot, ending in kChunkFileSuffix.
bool IsChunkFileName(std::string_view name);

}  // namespace catnap::snapshot

#endif  // CATNAP_LIB_SNAPSHOT_FORMAT_H_
