#include "base/random.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <vector>

namespace catnap::base {
namespace {

TEST_CASE("FillRandom fills all of a long buffer and nothing behind it") {
  // Longer than what one getrandom() call is sure to give (256 bytes).
  std::vector<uint8_t> bytes(100'001);
  REQUIRE(FillRandom(std::span(bytes).first(100'000)).ok());
  CHECK(bytes.back() == 0);
  // 64 random bytes are all zero once in 2^512 runs.
  const auto end = bytes.end() - 1;
  CHECK(std::any_of(end - 64, end, [](uint8_t byte) { return byte != 0; }));
}

TEST_CASE("FillRandom of nothing succeeds") { CHECK(FillRandom({}).ok()); }

TEST_CASE("RandomBytes differs from call to call") {
  const auto first = RandomBytes<16>();
  const auto second = RandomBytes<16>();
  REQUIRE(first.ok());
  REQUIRE(second.ok());
  CHECK(*first != *second);
}

}  // namespace
}  // namespace catnap::base
