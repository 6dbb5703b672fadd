#include "base/crc32c.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <numeric>
#include <string>
#include <vector>

namespace catnap::base {
namespace {

using Extend = uint32_t (*)(uint32_t, std::span<const uint8_t>);

// Both implementations; on a machine without the instruction, one.
std::vector<Extend> Implementations() {
  std::vector<Extend> all = {ExtendCrc32c, internal::ExtendCrc32cPortable};
  if (internal::HasCrc32cInstruction()) {
    all.push_back(internal::ExtendCrc32cHardware);
  }
  return all;
}

std::vector<uint8_t> BytesOf(const std::string& text) {
  return {text.begin(), text.end()};
}

std::vector<uint8_t> Rising(size_t size) {
  std::vector<uint8_t> bytes(size);
  std::iota(bytes.begin(), bytes.end(), uint8_t{0});
  return bytes;
}

std::vector<uint8_t> Falling(size_t size) {
  std::vector<uint8_t> bytes = Rising(size);
  std::reverse(bytes.begin(), bytes.end());
  return bytes;
}

// Not periodic in any power of two, so that swapped stripes are seen.
std::vector<uint8_t> Mixed(size_t size) {
  std::vector<uint8_t> bytes(size);
  uint32_t state = 1;
  for (uint8_t& byte : bytes) {
    state = state * 1664525 + 1013904223;
    byte = static_cast<uint8_t>(state >> 24);
  }
  return bytes;
}

struct KnownSum {
  std::vector<uint8_t> bytes;
  uint32_t sum;
};

TEST_CASE("CRC-32C gives the known checksums") {
  // A SCSI Read (10) command as iSCSI sends it.
  const std::vector<uint8_t> read_command = {
      0x01, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,    0, 0, 0, 0,
      0x14, 0,    0, 0, 0, 0, 4, 0, 0, 0, 0, 0x14, 0, 0, 0, 0x18,
      0x28, 0,    0, 0, 0, 0, 0, 0, 2, 0, 0, 0,    0, 0, 0, 0};
  const std::vector<KnownSum> known = {
      {{}, 0},
      {BytesOf("123456789"), 0xe3069283},
      // RFC 3720, appendix B.4.
      {std::vector<uint8_t>(32, 0x00), 0x8a9136aa},
      {std::vector<uint8_t>(32, 0xff), 0x62a8ab43},
      {Rising(32), 0x46dd794e},
      {Falling(32), 0x113fdb5c},
      {read_command, 0xd9963a56},
  };
  for (const Extend extend : Implementations()) {
    for (const auto& [bytes, sum] : known) CHECK(extend(0, bytes) == sum);
  }
}

TEST_CASE("The instruction and the table agree at every length and alignment") {
  if (!internal::HasCrc32cInstruction()) return;
  // Reaches over two rounds of three 1 KiB stripes.
  const std::vector<uint8_t> bytes = Mixed(6400);
  for (size_t start = 0; start < 8; ++start) {
    for (size_t length = 0; length + start <= bytes.size();
         length += length < 64 ? 1 : 61) {
      const auto part = std::span(bytes).subspan(start, length);
      CAPTURE(start, length);
      REQUIRE(internal::ExtendCrc32cHardware(7, part) ==
              internal::ExtendCrc32cPortable(7, part));
    }
  }
}

TEST_CASE("A checksum in pieces equals the checksum of the whole") {
  const std::vector<uint8_t> bytes = Mixed(10000);
  const size_t cut =
      GENERATE(as<size_t>(), 0, 1, 7, 8, 3071, 3072, 3073, 9999, 10000);
  for (const Extend extend : Implementations()) {
    const uint32_t first = extend(0, std::span(bytes).first(cut));
    CHECK(extend(first, std::span(bytes).subspan(cut)) == extend(0, bytes));
  }
}

}  // namespace
}  // namespace catnap::base
