#include "base/mapping.h"

#include <catch2/catch.hpp>
#include <cstdint>

namespace catnap::base {
namespace {

TEST_CASE("Mapping::Reserve aligns its start") {
  static constexpr size_t kAlignment = 2 << 20;
  auto mapping = Mapping::Reserve(64 << 10, kAlignment);
  REQUIRE(mapping.ok());
  CHECK(reinterpret_cast<uintptr_t>(mapping->data()) % kAlignment == 0);
  CHECK(mapping->size() == 64 << 10);
}

TEST_CASE("Mapping::Reserve says RESOURCE_EXHAUSTED beyond the address space") {
  const auto mapping = Mapping::Reserve(size_t{1} << 60, 4096);
  REQUIRE_FALSE(mapping.ok());
  CHECK(mapping.status().code() == absl::StatusCode::kResourceExhausted);
  CHECK_THAT(mapping.status().ToString(), Catch::Contains("RLIMIT_AS"));
}

TEST_CASE("A moved-from Mapping is empty") {
  auto mapping = Mapping::Anonymous(4096);
  REQUIRE(mapping.ok());
  mapping->data()[4095] = 7;
  const Mapping moved = *std::move(mapping);
  CHECK(moved.data()[4095] == 7);
  // NOLINTNEXTLINE(bugprone-use-after-move): what a move leaves is the subject
  CHECK(mapping->data() == nullptr);
}

}  // namespace
}  // namespace catnap::base
