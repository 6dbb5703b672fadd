#include "state/decoder.h"

#include <algorithm>
#include <array>
#include <catch2/catch.hpp>
#include <string>
#include <vector>

#include "state/encoder.h"

namespace catnap::state {
namespace {

using Bytes = std::vector<uint8_t>;

// Walks over all fields, into messages too, and returns the first error.
absl::Status Walk(StateDecoder in) {
  while (in.Next()) {
    if (in.type() != WireType::kMessage) continue;
    if (absl::Status status = Walk(in.Message()); !status.ok()) return status;
  }
  return in.status();
}

TEST_CASE("StateDecoder takes an empty message") {
  StateDecoder in({});
  CHECK_FALSE(in.Next());
  CHECK(in.status().ok());
}

struct BadInput {
  Bytes bytes;
  const char* error;
};

TEST_CASE("StateDecoder refuses bytes that are no fields") {
  const std::vector<BadInput> inputs = {
      {{0x80}, "ends inside an integer"},        // Half a key.
      {{0x08}, "ends inside an integer"},        // No value.
      {{0x08, 0xff}, "ends inside an integer"},  // Half a value.
      {{0x09, 1, 2, 3}, "ends inside an integer"},
      {{0x0a, 1, 2, 3, 4, 5, 6, 7}, "ends inside an integer"},
      {{0x00, 0x01}, "id out of range"},              // Id 0.
      {{0x80, 0x80, 0x20, 0x01}, "id out of range"},  // Id 65536.
      {{0x0d}, "unknown wire type"},
      {{0x0e}, "unknown wire type"},
      {{0x0f}, "unknown wire type"},
      {{0x08, 0x80, 0x00}, "bytes too many"},  // 0 in two bytes.
      {{0x88, 0x00, 0x01}, "bytes too many"},  // The key, too.
      {{0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02},
       "exceeds 64 bits"},
      {{0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1},
       "exceeds 64 bits"},
      {{0x0b, 0x01}, "longer than the input"},
      {{0x0b, 0x03, 1, 2}, "longer than the input"},
      {{0x0b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01},
       "longer than a field may be"},
      {{0x0c, 0x01, 0x00, 0x00}, "ends inside an integer"},
      {{0x0c, 0x01, 0x00, 0x00, 0x00}, "longer than the input"},
      {{0x0c, 0xff, 0xff, 0xff, 0xff}, "longer than a field may be"},
  };
  for (const auto& [bytes, error] : inputs) {
    StateDecoder in(bytes);
    CHECK_FALSE(in.Next());
    CHECK_FALSE(in.Next());
    CHECK(in.status().code() == absl::StatusCode::kDataLoss);
    CHECK_THAT(in.status().ToString(), Catch::Contains(error));
  }
}

TEST_CASE("StateDecoder names the field and where it starts") {
  const Bytes bytes = {0x08, 0x01, 0x3b, 0x09, 0x00};
  StateDecoder in(bytes);
  REQUIRE(in.Next());
  CHECK_FALSE(in.Next());
  CHECK(in.status().message() ==
        "field 7 at byte 2 of 5: is longer than the input");
}

TEST_CASE("Every cut of a message is an error or ends between two fields") {
  Bytes buffer;
  StateEncoder out(&buffer);
  out.Unsigned(1, 300);
  out.Fixed64(2, 1);
  {
    const auto nested = out.Message(3);
    out.Text(1, "text");
  }
  REQUIRE(out.status().ok());
  const std::vector<size_t> ends = {0, 3, 12, buffer.size()};
  for (size_t size = 0; size <= buffer.size(); ++size) {
    const bool between =
        std::find(ends.begin(), ends.end(), size) != ends.end();
    CAPTURE(size);
    CHECK(Walk(StateDecoder(std::span(buffer).first(size))).ok() == between);
  }
}

TEST_CASE("A value that its variable cannot hold is an error, not cut") {
  Bytes buffer;
  StateEncoder out(&buffer);
  out.Unsigned(1, uint64_t{1} << 32);
  const auto read = GENERATE(as<int>(), 0, 1, 2, 3);
  StateDecoder in(buffer);
  REQUIRE(in.Next());
  uint64_t value = 1;
  if (read == 0) value = in.U8();
  if (read == 1) value = in.U16();
  if (read == 2) value = in.U32();
  if (read == 3) value = in.Bool() ? 1 : 0;
  CHECK(value == 0);
  CHECK(in.status().code() == absl::StatusCode::kDataLoss);
}

TEST_CASE("The largest value of each width is taken") {
  Bytes buffer;
  StateEncoder out(&buffer);
  out.Unsigned(1, UINT8_MAX);
  out.Unsigned(2, UINT16_MAX);
  out.Fixed32(3, UINT32_MAX);
  out.Fixed64(4, UINT64_MAX);
  StateDecoder in(buffer);
  REQUIRE(in.Next());
  CHECK(in.U8() == UINT8_MAX);
  REQUIRE(in.Next());
  CHECK(in.U16() == UINT16_MAX);
  REQUIRE(in.Next());
  CHECK(in.U32() == UINT32_MAX);
  REQUIRE(in.Next());
  CHECK(in.U64() == UINT64_MAX);
  CHECK(in.status().ok());
}

TEST_CASE("A value of another kind is an error and reads as nothing") {
  Bytes buffer;
  StateEncoder out(&buffer);
  out.Text(1, "text");
  out.Unsigned(2, 5);
  out.Fixed64(3, 5);
  StateDecoder in(buffer);

  SECTION("an integer from a byte string") {
    REQUIRE(in.Next());
    CHECK(in.U64() == 0);
  }
  SECTION("a message from a byte string") {
    REQUIRE(in.Next());
    CHECK_FALSE(in.Message().Next());
  }
  SECTION("a byte string from an integer") {
    REQUIRE((in.Next() && in.Next()));
    CHECK(in.Bytes().empty());
  }
  SECTION("a signed integer from a fixed one") {
    REQUIRE((in.Next() && in.Next() && in.Next()));
    CHECK(in.Signed() == 0);
  }
  CHECK(in.status().code() == absl::StatusCode::kDataLoss);
  CHECK_FALSE(in.Next());
}

TEST_CASE("Byte strings are bounded by what the reader asks for") {
  Bytes buffer;
  StateEncoder out(&buffer);
  out.Text(1, "12345");
  SECTION("as long as allowed") {
    StateDecoder in(buffer);
    REQUIRE(in.Next());
    CHECK(in.Text(5) == "12345");
    CHECK(in.status().ok());
  }
  SECTION("too long") {
    StateDecoder in(buffer);
    REQUIRE(in.Next());
    CHECK(in.Text(4).empty());
    CHECK_THAT(in.status().ToString(), Catch::Contains("too long"));
  }
}

TEST_CASE("CopyBytes takes exactly its length and else changes nothing") {
  Bytes buffer;
  StateEncoder out(&buffer);
  out.Text(1, "abc");
  std::array<uint8_t, 4> four = {9, 9, 9, 9};
  StateDecoder in(buffer);
  REQUIRE(in.Next());
  in.CopyBytes(four);
  CHECK(four == std::array<uint8_t, 4>{9, 9, 9, 9});
  CHECK_THAT(in.status().ToString(), Catch::Contains("wrong length"));
}

TEST_CASE("Views are into the input") {
  Bytes buffer;
  StateEncoder out(&buffer);
  out.Text(1, "abc");
  StateDecoder in(buffer);
  REQUIRE(in.Next());
  CHECK(in.Bytes().data() == buffer.data() + 2);
}

TEST_CASE("An unknown field is skipped, a repeated one is seen each time") {
  Bytes buffer;
  StateEncoder out(&buffer);
  out.Unsigned(1, 10);
  out.Text(999, "from a newer writer");
  {
    const auto nested = out.Message(1000);
    out.Unsigned(1, 66);
  }
  out.Unsigned(1, 11);
  uint32_t value = 5;
  uint32_t missing = 6;
  StateDecoder in(buffer);
  while (in.Next()) {
    if (in.id() == 1) value = in.U32();
    if (in.id() == 2) missing = in.U32();
  }
  CHECK(in.status().ok());
  CHECK(value == 11);
  CHECK(missing == 6);
}

// `depth` messages, one in the other, made without the encoder's own check.
Bytes Nested(int depth) {
  Bytes bytes;
  for (int i = 0; i < depth; ++i) {
    const auto size = static_cast<uint8_t>(bytes.size());
    bytes.insert(bytes.begin(), {0x0c, size, 0, 0, 0});
  }
  return bytes;
}

TEST_CASE("StateDecoder follows messages to the depth limit only") {
  CHECK(Walk(StateDecoder(Nested(kMaxDepth))).ok());
  const Bytes too_deep = Nested(kMaxDepth + 1);
  // The outermost decoder skips what it is not asked to follow.
  StateDecoder outermost(too_deep);
  CHECK(outermost.Next());
  CHECK_FALSE(outermost.Next());
  CHECK(outermost.status().ok());

  std::vector<StateDecoder> chain = {StateDecoder(too_deep)};
  for (int i = 0; i < kMaxDepth; ++i) {
    REQUIRE(chain.back().Next());
    chain.push_back(chain.back().Message());
  }
  REQUIRE(chain.back().Next());
  CHECK_FALSE(chain.back().Message().Next());
  CHECK_THAT(chain.back().status().ToString(), Catch::Contains("too deep"));
}

}  // namespace
}  // namespace catnap::state
