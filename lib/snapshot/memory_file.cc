#include "snapshot/memory_file.h"

#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include "base/crc32c.h"
#include "base/status.h"
#include "io/file.h"

namespace catnap::snapshot {
namespace {

// Bytes of the file; one that has become shorter is damaged.
absl::Status ReadBytes(int fd, std::span<uint8_t> into, uint64_t offset) {
  absl::Status status = io::ReadFully(fd, into.data(), into.size(), offset);
  if (status.code() != absl::StatusCode::kOutOfRange) return status;
  return absl::DataLossError(status.message());
}

absl::StatusOr<std::vector<uint8_t>> ReadPart(int fd, uint64_t offset,
                                              uint64_t length) {
  std::vector<uint8_t> bytes(length);
  CATNAP_RETURN_IF_ERROR(ReadBytes(fd, bytes, offset));
  return bytes;
}

absl::Status CheckSum(std::span<const uint8_t> bytes, uint32_t wanted,
                      const char* what) {
  const uint32_t sum = base::Crc32c(bytes);
  if (sum == wanted) return absl::OkStatus();
  return Error(absl::StatusCode::kDataLoss,
               "{} has checksum {:#010x}, must have {:#010x}", what, sum,
               wanted);
}

absl::StatusOr<std::vector<state::SavedSection>> ReadSections(
    int fd, const Header& header) {
  CATNAP_ASSIGN_OR_RETURN(
      const std::vector<uint8_t> table,
      ReadPart(fd, kHeaderBytes, header.section_table_bytes()));
  CATNAP_RETURN_IF_ERROR(
      CheckSum(table, header.section_table_crc32c, "section table"));
  uint64_t end = kHeaderBytes + table.size();
  CATNAP_ASSIGN_OR_RETURN(
      const std::vector<state::SectionHeader> headers,
      state::DecodeSectionTable(table, end, header.index_offset));
  std::vector<state::SavedSection> sections;
  sections.reserve(headers.size());
  for (const state::SectionHeader& entry : headers) {
    if (entry.offset != end) {
      return Error(absl::StatusCode::kDataLoss, "{} is at {}, must be at {}",
                   state::SectionName(entry.id, entry.instance), entry.offset,
                   end);
    }
    end += entry.length;
    CATNAP_ASSIGN_OR_RETURN(std::vector<uint8_t> bytes,
                            ReadPart(fd, entry.offset, entry.length));
    CATNAP_RETURN_IF_ERROR(state::CheckSection(entry, bytes));
    sections.push_back({.id = entry.id,
                        .instance = entry.instance,
                        .version = entry.version,
                        .critical = entry.critical,
                        .bytes = std::move(bytes)});
  }
  if (end != header.index_offset) {
    return Error(absl::StatusCode::kDataLoss,
                 "sections end at {}, the index begins at {}", end,
                 header.index_offset);
  }
  return sections;
}

}  // namespace

std::vector<uint8_t> EncodeMemoryFile(
    const Header& ids, std::span<const state::SavedSection> sections,
    const PageIndex& page_index) {
  const std::vector<uint8_t> index = EncodePageIndex(page_index);
  Header header = ids;
  header.sections = static_cast<uint32_t>(sections.size());
  std::vector<uint8_t> file(kHeaderBytes + header.section_table_bytes());
  size_t table_at = kHeaderBytes;
  for (const state::SavedSection& section : sections) {
    std::array<uint8_t, state::kSectionHeaderBytes> entry{};
    state::EncodeSectionHeader({.id = section.id,
                                .instance = section.instance,
                                .version = section.version,
                                .critical = section.critical,
                                .offset = file.size(),
                                .length = section.bytes.size(),
                                .crc32c = base::Crc32c(section.bytes)},
                               entry);
    std::copy(entry.begin(), entry.end(),
              file.begin() + static_cast<ptrdiff_t>(table_at));
    table_at += entry.size();
    file.insert(file.end(), section.bytes.begin(), section.bytes.end());
  }
  header.index_offset = file.size();
  header.index_bytes = index.size();
  header.index_crc32c = base::Crc32c(index);
  file.insert(file.end(), index.begin(), index.end());
  header.file_bytes = file.size();
  header.section_table_crc32c = base::Crc32c(
      std::span(file).subspan(kHeaderBytes, header.section_table_bytes()));
  EncodeHeader(header, std::span(file).first<kHeaderBytes>());
  return file;
}

absl::StatusOr<MemoryFile> ReadMemoryFile(int fd) {
  struct stat info {};
  if (::fstat(fd, &info) != 0) return ErrnoError(errno, "stat");
  const auto file_bytes = static_cast<uint64_t>(info.st_size);
  if (!S_ISREG(info.st_mode) || file_bytes < kHeaderBytes) {
    return Error(absl::StatusCode::kDataLoss,
                 "{} bytes, must be a file of at least {}", info.st_size,
                 kHeaderBytes);
  }
  std::array<uint8_t, kHeaderBytes> start{};
  CATNAP_RETURN_IF_ERROR(ReadBytes(fd, start, 0));
  MemoryFile file;
  CATNAP_ASSIGN_OR_RETURN(file.header, DecodeHeader(start, file_bytes));
  CATNAP_ASSIGN_OR_RETURN(file.sections, ReadSections(fd, file.header));
  CATNAP_ASSIGN_OR_RETURN(
      const std::vector<uint8_t> index,
      ReadPart(fd, file.header.index_offset, file.header.index_bytes));
  CATNAP_RETURN_IF_ERROR(
      CheckSum(index, file.header.index_crc32c, "page index"));
  CATNAP_ASSIGN_OR_RETURN(
      file.index,
      DecodePageIndex(index, file.header.ram_bytes / base::kPageBytes,
                      file.header.has_parent));
  return file;
}

}  // namespace catnap::snapshot
