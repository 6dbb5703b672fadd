#include "state/section.h"

#include <array>
#include <catch2/catch.hpp>
#include <vector>

#include "base/crc32c.h"

namespace catnap::state {
namespace {

// A file of 1,000 bytes whose sections start at 100.
constexpr uint64_t kFirst = 100;
constexpr uint64_t kFile = 1000;

std::vector<uint8_t> Encode(const std::vector<SectionHeader>& headers) {
  std::vector<uint8_t> table;
  for (const SectionHeader& header : headers) {
    std::array<uint8_t, kSectionHeaderBytes> bytes{};
    EncodeSectionHeader(header, bytes);
    table.insert(table.end(), bytes.begin(), bytes.end());
  }
  return table;
}

SectionHeader At(SectionId id, uint64_t offset, uint64_t length) {
  SectionHeader header;
  header.id = id;
  header.offset = offset;
  header.length = length;
  return header;
}

absl::StatusCode CodeOf(const std::vector<SectionHeader>& headers) {
  return DecodeSectionTable(Encode(headers), kFirst, kFile).status().code();
}

TEST_CASE("A section header has the bytes of FORMAT.md") {
  SectionHeader header;
  header.id = SectionId::kVcpu;
  header.instance = 3;
  header.version = 0x0201;
  header.critical = true;
  header.crc32c = 0x0a0b0c0d;
  header.offset = 0x1122;
  header.length = 0x3344;
  CHECK(Encode({header}) ==
        std::vector<uint8_t>{4, 0,    0,    0,    3,    0,    0,    0, 1, 2, 1,
                             0, 0x0d, 0x0c, 0x0b, 0x0a, 0x22, 0x11, 0, 0, 0, 0,
                             0, 0,    0x44, 0x33, 0,    0,    0,    0, 0, 0});
}

TEST_CASE("A section table comes back as it was written") {
  SectionHeader first = At(SectionId::kMachine, kFirst, 10);
  first.version = 7;
  first.critical = true;
  SectionHeader second = At(SectionId::kVcpu, 110, 0);
  second.instance = 1;
  SectionHeader third = At(SectionId::kVcpu, 500, 500);
  third.instance = UINT32_MAX;
  third.crc32c = UINT32_MAX;
  const std::vector<SectionHeader> headers = {first, second, third};
  const auto decoded = DecodeSectionTable(Encode(headers), kFirst, kFile);
  REQUIRE(decoded.ok());
  CHECK(*decoded == headers);
}

TEST_CASE("An empty section table is valid") {
  CHECK(DecodeSectionTable({}, kFirst, kFile).ok());
}

TEST_CASE("Sections that leave the file or overlap are refused") {
  const auto [offset, length, ok] = GENERATE(table<uint64_t, uint64_t, bool>({
      {kFirst, kFile - kFirst, true},
      {kFirst - 1, 1, false},  // in the header
      {kFirst, kFile - kFirst + 1, false},
      {kFile, 0, true},
      {kFile + 1, 0, false},
      {UINT64_MAX, 2, false},  // the sum wraps
      {kFirst, UINT64_MAX, false},
  }));
  CAPTURE(offset, length);
  CHECK((CodeOf({At(SectionId::kClock, offset, length)}) ==
         absl::StatusCode::kOk) == ok);
  CHECK(CodeOf({At(SectionId::kClock, 200, 50),
                At(SectionId::kVcpu, 249, 1)}) == absl::StatusCode::kDataLoss);
  CHECK(CodeOf({At(SectionId::kClock, 300, 1), At(SectionId::kVcpu, 200, 1)}) ==
        absl::StatusCode::kDataLoss);
}

TEST_CASE("A section above the size limit is refused even in a large file") {
  const auto table =
      Encode({At(SectionId::kClock, kFirst, kMaxSectionBytes + 1)});
  const auto decoded = DecodeSectionTable(table, kFirst, UINT64_MAX);
  CHECK(decoded.status().code() == absl::StatusCode::kDataLoss);
  CHECK_THAT(decoded.status().ToString(), Catch::Contains("67108865"));
}

TEST_CASE("The same section twice is refused, by name") {
  const auto decoded = DecodeSectionTable(
      Encode({At(SectionId::kVcpu, 100, 1), At(SectionId::kClock, 101, 1),
              At(SectionId::kVcpu, 102, 1)}),
      kFirst, kFile);
  CHECK(decoded.status().code() == absl::StatusCode::kDataLoss);
  CHECK_THAT(decoded.status().ToString(), Catch::Contains("vcpu 0"));
}

TEST_CASE("A table that is not whole headers, or too many, is refused") {
  const std::vector<uint8_t> table(kSectionHeaderBytes + 1);
  CHECK(DecodeSectionTable(table, kFirst, kFile).status().code() ==
        absl::StatusCode::kDataLoss);
  std::vector<SectionHeader> headers;
  for (uint32_t i = 0; i <= kMaxSections; ++i) {
    headers.push_back(At(SectionId::kVcpu, kFirst, 0));
    headers.back().instance = i;
  }
  CHECK(CodeOf(headers) == absl::StatusCode::kDataLoss);
  headers.pop_back();
  CHECK(CodeOf(headers) == absl::StatusCode::kOk);
}

TEST_CASE("A flag of a newer writer is UNIMPLEMENTED") {
  std::vector<uint8_t> table = Encode({At(SectionId::kClock, kFirst, 1)});
  table[10] = 2;
  CHECK(DecodeSectionTable(table, kFirst, kFile).status().code() ==
        absl::StatusCode::kUnimplemented);
}

TEST_CASE("Unknown sections are skipped unless they are critical") {
  static constexpr KnownSection kKnown[] = {{SectionId::kClock, 2}};
  SectionHeader header = At(SectionId::kClock, kFirst, 1);
  const auto [id, version, critical, code, read] =
      GENERATE(table<SectionId, uint16_t, bool, absl::StatusCode, bool>({
          {SectionId::kClock, 1, true, absl::StatusCode::kOk, true},
          {SectionId::kClock, 2, false, absl::StatusCode::kOk, true},
          {SectionId::kClock, 3, false, absl::StatusCode::kOk, false},
          {SectionId::kClock, 3, true, absl::StatusCode::kUnimplemented, false},
          {SectionId{77}, 0, false, absl::StatusCode::kOk, false},
          {SectionId{77}, 0, true, absl::StatusCode::kUnimplemented, false},
      }));
  header.id = id;
  header.version = version;
  header.critical = critical;
  const auto decision = ShouldReadSection(header, kKnown);
  CHECK(decision.status().code() == code);
  CHECK(decision.value_or(false) == read);
}

TEST_CASE("CheckSection compares length and checksum, and names the section") {
  std::vector<uint8_t> bytes = {1, 2, 3, 4};
  SectionHeader header = At(SectionId::kVcpu, kFirst, bytes.size());
  header.instance = 2;
  header.crc32c = base::Crc32c(bytes);
  CHECK(CheckSection(header, bytes).ok());
  CHECK(CheckSection(header, std::span(bytes).first(3)).code() ==
        absl::StatusCode::kDataLoss);
  bytes[1] ^= 1;
  const absl::Status status = CheckSection(header, bytes);
  CHECK(status.code() == absl::StatusCode::kDataLoss);
  CHECK_THAT(status.ToString(), Catch::Contains("vcpu 2 has checksum"));
}

}  // namespace
}  // namespace catnap::state
