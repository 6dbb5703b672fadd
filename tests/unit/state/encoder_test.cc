#include "state/encoder.h"

#include <array>
#include <catch2/catch.hpp>
#include <limits>
#include <optional>
#include <vector>

#include "base/mapping.h"
#include "state/decoder.h"

namespace catnap::state {
namespace {

using Bytes = std::vector<uint8_t>;

TEST_CASE("StateEncoder writes the bytes of FORMAT.md's example") {
  Bytes buffer;
  StateEncoder out(&buffer);
  out.Unsigned(1, 300);
  out.Text(2, "hi");
  {
    const auto nested = out.Message(3);
    out.Signed(1, -2);
  }
  REQUIRE(out.status().ok());
  CHECK(buffer == Bytes{0x08, 0xac, 0x02, 0x13, 0x02, 0x68, 0x69, 0x1c, 0x02,
                        0x00, 0x00, 0x00, 0x08, 0x03});
}

TEST_CASE("StateEncoder writes fixed integers little-endian") {
  Bytes buffer;
  StateEncoder out(&buffer);
  out.Fixed32(1, 0x01020304);
  out.Fixed64(2, 0x0102030405060708);
  CHECK(buffer == Bytes{0x09, 4, 3, 2, 1, 0x12, 8, 7, 6, 5, 4, 3, 2, 1});
}

TEST_CASE("StateEncoder leaves what the buffer holds in front") {
  Bytes buffer = {1, 2, 3};
  StateEncoder out(&buffer);
  out.Bool(1, true);
  CHECK(buffer == Bytes{1, 2, 3, 0x08, 1});
}

TEST_CASE("An unsigned integer comes back whatever its size") {
  const uint64_t value = GENERATE(as<uint64_t>(), 0, 1, 127, 128, 16383, 16384,
                                  UINT32_MAX, uint64_t{1} << 63, UINT64_MAX);
  Bytes buffer;
  StateEncoder out(&buffer);
  out.Unsigned(kMaxFieldId, value);
  StateDecoder in(buffer);
  REQUIRE(in.Next());
  CHECK(in.id() == kMaxFieldId);
  CHECK(in.U64() == value);
  CHECK_FALSE(in.Next());
  CHECK(in.status().ok());
}

TEST_CASE("A signed integer comes back whatever its size") {
  const int64_t value = GENERATE(as<int64_t>(), 0, -1, 1, -64, 64,
                                 std::numeric_limits<int64_t>::min(),
                                 std::numeric_limits<int64_t>::max());
  Bytes buffer;
  StateEncoder out(&buffer);
  out.Signed(1, value);
  StateDecoder in(buffer);
  REQUIRE(in.Next());
  CHECK(in.Signed() == value);
  CHECK(in.status().ok());
}

TEST_CASE("Bytes, text, lists and nested messages come back in order") {
  const std::array<uint8_t, 4> mac = {1, 2, 3, 4};
  Bytes buffer;
  StateEncoder out(&buffer);
  for (const uint32_t element : {7U, 8U, 9U}) {
    const auto nested = out.Message(1);
    out.Unsigned(1, element);
    const auto inner = out.Message(2);
    out.Unsigned(1, uint64_t{element} * 10);
  }
  out.Bytes(2, mac);
  out.Text(3, "");
  out.Fixed32(4, 0xffffffff);
  REQUIRE(out.status().ok());

  std::vector<uint32_t> elements;
  std::array<uint8_t, 4> mac_read{};
  std::optional<std::string> text;
  uint32_t fixed = 0;
  StateDecoder in(buffer);
  while (in.Next()) {
    switch (in.id()) {
      case 1: {
        StateDecoder nested = in.Message();
        REQUIRE(nested.Next());
        elements.push_back(nested.U32());
        REQUIRE(nested.Next());
        StateDecoder inner = nested.Message();
        REQUIRE(inner.Next());
        elements.push_back(inner.U32());
        CHECK_FALSE(nested.Next());
        CHECK(nested.status().ok());
        break;
      }
      case 2:
        in.CopyBytes(mac_read);
        break;
      case 3:
        text = in.Text();
        break;
      case 4:
        fixed = in.U32();
        break;
      default:
        FAIL("unknown field");
    }
  }
  CHECK(in.status().ok());
  CHECK(elements == std::vector<uint32_t>{7, 70, 8, 80, 9, 90});
  CHECK(mac_read == mac);
  CHECK(text == "");
  CHECK(fixed == 0xffffffff);
}

TEST_CASE("StateEncoder refuses ids that cannot be read back") {
  const uint32_t id = GENERATE(as<uint32_t>(), 0, kMaxFieldId + 1, UINT32_MAX);
  Bytes buffer;
  StateEncoder out(&buffer);
  out.Unsigned(id, 1);
  out.Unsigned(1, 1);
  CHECK(out.status().code() == absl::StatusCode::kInternal);
  CHECK(buffer.empty());
}

// Opens `depth` messages, one in the other.
void Nest(StateEncoder* out, int depth) {
  if (depth == 0) return;
  const auto nested = out->Message(1);
  Nest(out, depth - 1);
}

TEST_CASE("StateEncoder nests as deep as a decoder follows, and no deeper") {
  Bytes buffer;
  StateEncoder deep(&buffer);
  Nest(&deep, kMaxDepth);
  CHECK(deep.status().ok());
  StateEncoder too_deep(&buffer);
  Nest(&too_deep, kMaxDepth + 1);
  CHECK(too_deep.status().code() == absl::StatusCode::kInternal);
}

TEST_CASE("StateEncoder reports a message that is still open") {
  Bytes buffer;
  StateEncoder out(&buffer);
  {
    const auto nested = out.Message(1);
    CHECK(out.status().code() == absl::StatusCode::kInternal);
  }
  CHECK(out.status().ok());
}

TEST_CASE("StateEncoder refuses a byte string that no decoder takes") {
  // Address space only: the length is looked at before the bytes.
  const auto huge = base::Mapping::Reserve(kMaxFieldBytes + 4096, 4096);
  REQUIRE(huge.ok());
  Bytes buffer;
  StateEncoder out(&buffer);
  out.Bytes(5, {huge->data(), kMaxFieldBytes + 1});
  CHECK(out.status().code() == absl::StatusCode::kResourceExhausted);
  CHECK_THAT(out.status().ToString(), Catch::Contains("field 5"));
}

}  // namespace
}  // namespace catnap::state
