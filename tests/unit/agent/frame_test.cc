#include "agent/frame.h"

#include <catch2/catch.hpp>
#include <string>
#include <vector>

namespace catnap::agent {
namespace {

using Bytes = std::vector<uint8_t>;

Bytes Data(uint32_t stream, const Bytes& body) {
  Bytes bytes;
  AppendFrame({.type = FrameType::kData,
               .channel = 2,
               .end = true,
               .stream = stream,
               .body = body},
              &bytes);
  return bytes;
}

TEST_CASE("A frame's bytes are those of PROTOCOL.md") {
  CHECK(Data(0x01020304, {'h', 'i'}) ==
        Bytes{2, 0, 0, 0, 5, 0x82, 0, 0, 4, 3, 2, 1, 'h', 'i'});
}

TEST_CASE("Frames come out however their bytes are cut") {
  const size_t cut = GENERATE(as<size_t>(), 1, 5, 11, 12, 13, 100);
  Bytes bytes = Data(6, {'h', 'i'});
  const Bytes second = Data(8, {});
  bytes.insert(bytes.end(), second.begin(), second.end());
  FrameReader reader;
  std::vector<uint32_t> streams;
  std::string text;
  for (size_t at = 0; at < bytes.size(); at += cut) {
    std::span<const uint8_t> piece(bytes);
    piece = piece.subspan(at, std::min(cut, bytes.size() - at));
    while (const auto frame = reader.Next(&piece)) {
      CHECK(frame->type == FrameType::kData);
      CHECK(frame->channel == 2);
      CHECK(frame->end);
      streams.push_back(frame->stream);
      text.append(frame->body.begin(), frame->body.end());
    }
    CHECK(piece.empty());
  }
  CHECK(reader.error() == nullptr);
  CHECK(streams == std::vector<uint32_t>{6, 8});
  CHECK(text == "hi");
}

TEST_CASE("A header that is wrong ends the reader for good") {
  const auto [at, value] = GENERATE(table<size_t, uint8_t>({
      {2, 0x05},  // 320 KiB
      {2, 0x02},  // more than a DATA frame may have
      {4, 0},     // no type
      {4, 10},    // no type
      {4, 4},     // OPEN with a channel
      {4, 1},     // HELLO on a stream
      {5, 4},     // channel
      {6, 1},     // reserved
      {8, 0},     // DATA on the connection
  }));
  CAPTURE(at, value);
  Bytes bytes = Data(6, {'h', 'i'});
  bytes[at] = value;
  FrameReader reader;
  std::span<const uint8_t> all(bytes);
  CHECK_FALSE(reader.Next(&all).has_value());
  CHECK(reader.error() != nullptr);
  const Bytes good = Data(6, {});
  all = good;
  CHECK_FALSE(reader.Next(&all).has_value());
}

TEST_CASE("A header's promise allocates nothing") {
  const Bytes header = {0, 0, 4, 0, 7, 0, 0, 0, 2, 0, 0, 0};
  FrameReader reader;
  std::span<const uint8_t> all(header);
  CHECK_FALSE(reader.Next(&all).has_value());
  CHECK(reader.error() == nullptr);
  CHECK(reader.buffered_bytes() == kHeaderBytes);
}

}  // namespace
}  // namespace catnap::agent
