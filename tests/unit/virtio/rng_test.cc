#include "virtio/rng/rng.h"

#include <catch2/catch.hpp>
#include <set>
#include <string>

#include "support/virtio_driver.h"

namespace catnap::virtio {
namespace {

using test::VirtioDriver;
constexpr uint64_t kBuffer = VirtioDriver::kBuffers;

VirtioDriver::Factory WithRate(double bytes_per_second, double burst_bytes) {
  return [=](memory::GuestMemory* memory) {
    return std::make_unique<Rng>(
        RngOptions{.bytes_per_second = bytes_per_second,
                   .burst_bytes = burst_bytes},
        memory);
  };
}

TEST_CASE("Rng fills what it is given, never twice the same") {
  VirtioDriver driver(WithRate(1e9, 1e9));
  REQUIRE(driver.Start());
  std::set<std::string> seen;
  for (int i = 0; i < 50; ++i) {
    driver.Add(0, 0, {{kBuffer, 10, true}, {kBuffer + 100, 22, true}});
    driver.Kick();
    const auto used = driver.TakeUsed(0);
    REQUIRE(used.size() == 1);
    CHECK(used[0].written == 32);
    seen.insert(driver.Bytes(kBuffer, 10) + driver.Bytes(kBuffer + 100, 22));
  }
  CHECK(seen.size() == 50);
  CHECK(driver.Bytes(kBuffer + 10, 4) == std::string(4, '\0'));
}

TEST_CASE("Rng takes a buffer that it can write nothing to") {
  VirtioDriver driver(WithRate(1e9, 1e9));
  REQUIRE(driver.Start());
  driver.Add(0, 0, {{kBuffer, 10, false}});
  driver.Kick();
  CHECK(driver.TakeUsed(0) == std::vector<test::UsedBuffer>{{0, 0}});
  CHECK(driver.failures() == 0);
}

TEST_CASE("Rng bounds what one buffer and all together get") {
  // Two requests of the largest size at once, then next to nothing.
  VirtioDriver driver(WithRate(1e-3, 2 * Rng::kMaxRequestBytes));
  REQUIRE(driver.Start());
  for (uint16_t i = 0; i < 4; ++i) driver.Add(0, i, {{kBuffer, 1 << 16, true}});
  driver.Kick();
  const auto used = driver.TakeUsed(0);
  REQUIRE(used.size() == 2);
  CHECK(used[0].written == Rng::kMaxRequestBytes);
  CHECK(used[1].written == Rng::kMaxRequestBytes);
  // The others wait for a later kick, which it asked for.
  CHECK(driver.kick_at().has_value());
  driver.Kick();
  CHECK(driver.TakeUsed(0).empty());
}

}  // namespace
}  // namespace catnap::virtio
