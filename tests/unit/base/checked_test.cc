#include "base/checked.h"

#include <catch2/catch.hpp>
#include <cstdint>

namespace catnap::base {
namespace {

TEST_CASE("CheckedAdd refuses what wraps") {
  CHECK(CheckedAdd<uint64_t>(UINT64_MAX - 1, 1) == UINT64_MAX);
  CHECK_FALSE(CheckedAdd<uint64_t>(UINT64_MAX, 1).has_value());
  CHECK_FALSE(CheckedAdd<uint8_t>(uint8_t{200}, uint8_t{56}).has_value());
}

TEST_CASE("CheckedMul refuses what wraps") {
  CHECK(CheckedMul<uint32_t>(65536u, 65535u) == 65536u * 65535u);
  CHECK_FALSE(CheckedMul<uint32_t>(65536u, 65536u).has_value());
}

TEST_CASE("CheckedCast refuses values that do not fit the type") {
  CHECK(CheckedCast<uint8_t>(255) == 255);
  CHECK_FALSE(CheckedCast<uint8_t>(256).has_value());
  CHECK_FALSE(CheckedCast<uint32_t>(-1).has_value());
}

TEST_CASE("AlignUp stops at the end of the type") {
  CHECK(AlignUp<uint64_t>(4097, 4096) == 8192u);
  CHECK(AlignUp<uint64_t>(4096, 4096) == 4096u);
  CHECK_FALSE(AlignUp<uint64_t>(UINT64_MAX, 4096).has_value());
}

TEST_CASE("InRange never wraps") {
  CHECK(InRange<uint64_t>(10, 0, 10));
  CHECK(InRange<uint64_t>(0, 10, 10));
  CHECK_FALSE(InRange<uint64_t>(1, 10, 10));
  CHECK_FALSE(InRange<uint64_t>(UINT64_MAX, 2, 10));
  CHECK_FALSE(InRange<uint64_t>(2, UINT64_MAX, 10));
}

}  // namespace
}  // namespace catnap::base
