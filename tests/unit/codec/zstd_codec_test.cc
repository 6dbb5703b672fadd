#include "codec/zstd_codec.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <string>
#include <vector>

namespace catnap::codec {
namespace {

using Bytes = std::vector<uint8_t>;

// Bytes that compress somewhat: words of a small vocabulary.
Bytes Words(size_t size) {
  Bytes bytes(size);
  uint32_t state = 1;
  for (size_t i = 0; i < size; i += 8) {
    state = state * 1664525 + 1013904223;
    const size_t end = std::min(size, i + 8);
    for (size_t j = i; j < end; ++j) {
      bytes[j] = static_cast<uint8_t>((size_t{state} >> 27) * 7 + j % 8);
    }
  }
  return bytes;
}

// Bytes that do not compress.
Bytes Noise(size_t size) {
  Bytes bytes(size);
  uint32_t state = 1;
  for (uint8_t& byte : bytes) {
    state = state * 1664525 + 1013904223;
    byte = static_cast<uint8_t>(state >> 24);
  }
  return bytes;
}

Bytes Compressed(const Bytes& content, int level = 1) {
  auto compressor = ZstdCompressor::Create(level);
  REQUIRE(compressor.ok());
  Bytes frame(ZstdCompressor::Bound(content.size()));
  const auto size = compressor->Compress(content, frame);
  REQUIRE(size.ok());
  frame.resize(*size);
  return frame;
}

// A frame that does not declare its size: `blocks` blocks that repeat one byte
// `block_bytes` times, behind a window descriptor (exponent and mantissa).
Bytes Undeclared(size_t blocks, uint32_t block_bytes, uint8_t window) {
  Bytes frame = {0x28, 0xb5, 0x2f, 0xfd, 0x00, window};
  for (size_t i = 1; i <= blocks; ++i) {
    // Last block, type (1: one byte repeated), size.
    const uint32_t header = (i == blocks ? 1 : 0) | 1 << 1 | block_bytes << 3;
    frame.push_back(static_cast<uint8_t>(header));
    frame.push_back(static_cast<uint8_t>(header >> 8));
    frame.push_back(static_cast<uint8_t>(header >> 16));
    frame.push_back('x');
  }
  return frame;
}

// 2^(10 + exponent) bytes of window.
constexpr uint8_t Window(int exponent) {
  return static_cast<uint8_t>(exponent << 3);
}

ZstdDecompressor MakeDecompressor() {
  auto decompressor = ZstdDecompressor::Create();
  REQUIRE(decompressor.ok());
  return *std::move(decompressor);
}

TEST_CASE("What was compressed comes back at every level") {
  const int level = GENERATE(-7, -1, 0, 1, 3, 9, 19);
  ZstdDecompressor decompressor = MakeDecompressor();
  for (const size_t size : {0UL, 1UL, 4096UL, 300'000UL}) {
    const Bytes content = Words(size);
    Bytes out(size);
    CAPTURE(level, size);
    CHECK(decompressor.DecompressExact(Compressed(content, level), out).ok());
    CHECK(out == content);
  }
}

TEST_CASE("Frames get smaller, and more so at a higher level") {
  const Bytes content = Words(1 << 20);
  const size_t fast = Compressed(content, -7).size();
  const size_t small = Compressed(content, 19).size();
  CHECK(fast < content.size());
  CHECK(small < fast);
}

TEST_CASE("Levels outside the range are refused by value and limit") {
  const int level = GENERATE(-8, 20, 1000);
  const auto compressor = ZstdCompressor::Create(level);
  CHECK(compressor.status().code() == absl::StatusCode::kInvalidArgument);
  CHECK_THAT(
      compressor.status().ToString(),
      Catch::Contains(std::to_string(level)) && Catch::Contains("-7 to 19"));
}

TEST_CASE("Content that does not fit compressed is RESOURCE_EXHAUSTED") {
  auto compressor = ZstdCompressor::Create(1);
  REQUIRE(compressor.ok());
  const Bytes content = Noise(4096);
  Bytes into(4096);
  CHECK(compressor->Compress(content, into).status().code() ==
        absl::StatusCode::kResourceExhausted);
  // The context is good for the next frame.
  into.resize(ZstdCompressor::Bound(content.size()));
  const auto size = compressor->Compress(content, into);
  REQUIRE(size.ok());
  Bytes out(content.size());
  CHECK(MakeDecompressor()
            .DecompressExact(std::span(into).first(*size), out)
            .ok());
  CHECK(out == content);
}

TEST_CASE("Decompress returns the size of content smaller than its output") {
  const Bytes content = Words(1000);
  Bytes out(5000, 0xee);
  const auto size = MakeDecompressor().Decompress(Compressed(content), out);
  REQUIRE(size.ok());
  CHECK(*size == 1000);
  CHECK(std::equal(content.begin(), content.end(), out.begin()));
  CHECK(std::all_of(out.begin() + 1000, out.end(),
                    [](uint8_t byte) { return byte == 0xee; }));
}

TEST_CASE("A frame that declares more than the output is refused unread") {
  const Bytes frame = Compressed(Words(4097));
  Bytes out(4096, 0xee);
  const auto size = MakeDecompressor().Decompress(frame, out);
  CHECK(size.status().code() == absl::StatusCode::kResourceExhausted);
  CHECK_THAT(size.status().ToString(),
             Catch::Contains("4097") && Catch::Contains("4096"));
  CHECK(out == Bytes(4096, 0xee));
}

TEST_CASE("A frame that does not declare its size is bounded by the output") {
  // 4 blocks of 1,000 bytes.
  const Bytes frame = Undeclared(4, 1000, Window(0));
  const auto [room, code] = GENERATE(table<size_t, absl::StatusCode>({
      {5000, absl::StatusCode::kOk},
      {4000, absl::StatusCode::kOk},
      {3999, absl::StatusCode::kResourceExhausted},
      {3000, absl::StatusCode::kResourceExhausted},
      {1, absl::StatusCode::kResourceExhausted},
      {0, absl::StatusCode::kResourceExhausted},
  }));
  CAPTURE(room);
  Bytes out(room);
  const auto size = MakeDecompressor().Decompress(frame, out);
  CHECK(size.status().code() == code);
  CHECK(size.value_or(4000) == 4000);
}

TEST_CASE("DecompressExact refuses content of another size as DATA_LOSS") {
  const Bytes frame =
      GENERATE(Compressed(Words(4000)), Undeclared(4, 1000, Window(0)));
  const size_t room = GENERATE(as<size_t>(), 0, 3999, 4001);
  Bytes out(room);
  CHECK(MakeDecompressor().DecompressExact(frame, out).code() ==
        absl::StatusCode::kDataLoss);
}

TEST_CASE("Every cut of a frame is DATA_LOSS") {
  const Bytes frame =
      GENERATE(Compressed(Words(3000)), Undeclared(3, 1000, Window(0)));
  ZstdDecompressor decompressor = MakeDecompressor();
  Bytes out(3000);
  for (size_t size = 0; size < frame.size(); ++size) {
    CAPTURE(size);
    REQUIRE(decompressor.Decompress(std::span(frame).first(size), out)
                .status()
                .code() == absl::StatusCode::kDataLoss);
  }
  // And no cut frame spoils the context.
  CHECK(decompressor.DecompressExact(frame, out).ok());
}

TEST_CASE("Bytes behind a frame are DATA_LOSS, even another frame") {
  const Bytes content = Words(1000);
  const Bytes frame = Compressed(content);
  const Bytes tail = GENERATE(Bytes{0}, Compressed(Words(10)),
                              Bytes{0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0});
  Bytes both = frame;
  both.insert(both.end(), tail.begin(), tail.end());
  Bytes out(5000);
  const auto size = MakeDecompressor().Decompress(both, out);
  CHECK(size.status().code() == absl::StatusCode::kDataLoss);
  CHECK_THAT(size.status().ToString(), Catch::Contains("behind"));
}

TEST_CASE("Bytes that are no frame are DATA_LOSS") {
  const Bytes bytes = GENERATE(
      Bytes{}, Bytes{0x28, 0xb5, 0x2f}, Bytes(100, 0),
      // A skippable frame, then a real one.
      Bytes{0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0},
      // A reserved bit of the frame header; a reserved block type.
      Bytes{0x28, 0xb5, 0x2f, 0xfd, 0x28, 0x00, 0x01, 0x00, 0x00},
      Bytes{0x28, 0xb5, 0x2f, 0xfd, 0x20, 0x00, 0x07, 0x00, 0x00},
      // A frame that needs a dictionary.
      Bytes{0x28, 0xb5, 0x2f, 0xfd, 0x21, 0x07, 0x00, 0x01, 0x00, 0x00});
  Bytes out(100);
  CHECK(MakeDecompressor().Decompress(bytes, out).status().code() ==
        absl::StatusCode::kDataLoss);
}

TEST_CASE("A flipped bit ends in a status and does not spoil the context") {
  const Bytes content = Words(2000);
  const Bytes frame = Compressed(content, 3);
  ZstdDecompressor decompressor = MakeDecompressor();
  Bytes out(2000);
  size_t refused = 0;
  for (size_t bit = 0; bit < 8 * frame.size(); ++bit) {
    Bytes bad = frame;
    bad[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
    const absl::Status status = decompressor.DecompressExact(bad, out);
    CAPTURE(bit, status.ToString());
    REQUIRE((status.ok() || status.code() == absl::StatusCode::kDataLoss));
    refused += status.ok() ? 0 : 1;
  }
  // Not all: without a checksum of its own, content may change unseen.
  CHECK(refused > 0);
  CHECK(decompressor.DecompressExact(frame, out).ok());
  CHECK(out == content);
}

TEST_CASE("A frame cannot make the decompressor take memory without bound") {
  ZstdDecompressor decompressor = MakeDecompressor();
  Bytes out(100'000);
  // 2^23 bytes, the largest window that is allowed.
  CHECK(decompressor.Decompress(Undeclared(1, 1000, Window(13)), out).ok());
  const auto too_large =
      decompressor.Decompress(Undeclared(1, 1000, Window(14)), out);
  CHECK(too_large.status().code() == absl::StatusCode::kResourceExhausted);
  CHECK_THAT(too_large.status().ToString(), Catch::Contains("2^23"));
  CHECK(decompressor.memory_bytes() <= ZstdDecompressor::kMaxMemoryBytes);
}

TEST_CASE("Frames of the highest level and more than a window are readable") {
  // Mostly zeros: the highest level takes seconds for each MiB of text.
  Bytes content = Words(256 << 10);
  content.resize(9 << 20);
  const Bytes frame = Compressed(content, ZstdCompressor::kMaxLevel);
  ZstdDecompressor decompressor = MakeDecompressor();
  const size_t before = decompressor.memory_bytes();
  Bytes out(content.size());
  CHECK(decompressor.DecompressExact(frame, out).ok());
  CHECK(out == content);
  // It went straight into `out`.
  CHECK(decompressor.memory_bytes() == before);
}

TEST_CASE("A compressor keeps its memory from frame to frame") {
  auto compressor = ZstdCompressor::Create(1);
  REQUIRE(compressor.ok());
  const Bytes content = Words(64 << 10);
  Bytes frame(ZstdCompressor::Bound(content.size()));
  REQUIRE(compressor->Compress(content, frame).ok());
  const size_t held = compressor->memory_bytes();
  REQUIRE(compressor->Compress(content, frame).ok());
  CHECK(held > 0);
  CHECK(compressor->memory_bytes() == held);
}

}  // namespace
}  // namespace catnap::codec
