#include "virtio/balloon/balloon.h"

#include <catch2/catch.hpp>
#include <string>

#include "base/byte_order.h"
#include "support/virtio_driver.h"

namespace catnap::virtio {
namespace {

using test::VirtioDriver;
constexpr uint64_t kBuffer = VirtioDriver::kBuffers;
constexpr uint32_t kStatsQueue = 2;
constexpr uint64_t kStatsFeature = 2;

std::unique_ptr<VirtioDevice> MakeBalloon(memory::GuestMemory* memory) {
  return std::make_unique<Balloon>(memory);
}

Balloon& BalloonOf(VirtioDriver& driver) {
  return static_cast<Balloon&>(driver.device());
}

std::string Figure(uint16_t tag, uint64_t value) {
  std::string bytes(10, '\0');
  base::StoreLe(&bytes[0], tag);
  base::StoreLe(&bytes[2], value);
  return bytes;
}

TEST_CASE("Pages that the guest reports go back to the host") {
  VirtioDriver driver(MakeBalloon);
  const bool stats = GENERATE(true, false);
  REQUIRE(driver.Start(8, stats ? 0 : kStatsFeature));
  const uint32_t reporting = stats ? 3 : 2;
  driver.Fill(kBuffer, std::string(0x4000, 'x'));
  // Two whole pages; of what is not whole nothing is lost.
  driver.Add(reporting, 0,
             {{kBuffer, 0x1000, true}, {kBuffer + 0x1800, 0x1900, true}});
  driver.Kick();
  CHECK(driver.TakeUsed(reporting).size() == 1);
  CHECK(driver.Bytes(kBuffer, 0x1000) == std::string(0x1000, '\0'));
  CHECK(driver.Bytes(kBuffer + 0x1000, 0x1000) == std::string(0x1000, 'x'));
  CHECK(driver.Bytes(kBuffer + 0x2000, 0x1000) == std::string(0x1000, '\0'));
  CHECK(driver.Bytes(kBuffer + 0x3000, 0x1000) == std::string(0x1000, 'x'));
  CHECK(BalloonOf(driver).reported_bytes() == 0x2000);
}

TEST_CASE("What is inflated stays as it is") {
  VirtioDriver driver(MakeBalloon);
  REQUIRE(driver.Start());
  driver.Fill(kBuffer, std::string(8, '\1'));
  for (const uint32_t queue : {0u, 1u}) {
    driver.Add(queue, 0, {{kBuffer, 8, false}, {kBuffer, 0x1000, true}});
    driver.Kick();
    CHECK(driver.TakeUsed(queue).size() == 1);
  }
  CHECK(BalloonOf(driver).reported_bytes() == 0);
  CHECK(driver.Bytes(kBuffer, 8) == std::string(8, '\1'));
}

TEST_CASE("Figures come when they are asked for") {
  VirtioDriver driver(MakeBalloon);
  REQUIRE(driver.Start());
  Balloon& balloon = BalloonOf(driver);
  balloon.RequestStats();  // Nothing is there yet.
  CHECK_FALSE(balloon.stats().has_value());
  const std::string figures =
      Figure(4, 100) + Figure(5, 200) + Figure(99, 7) + Figure(6, UINT64_MAX);
  driver.Fill(kBuffer, figures + "rest");
  const auto length = static_cast<uint32_t>(figures.size());
  driver.Add(kStatsQueue, 0, {{kBuffer, length + 4, false}});
  driver.Kick();
  CHECK(driver.TakeUsed(kStatsQueue).empty());  // Kept until we want more.
  REQUIRE(balloon.stats().has_value());
  CHECK(balloon.stats()->free_bytes == 100);
  CHECK(balloon.stats()->total_bytes == 200);
  CHECK(balloon.stats()->available_bytes == UINT64_MAX);
  CHECK_FALSE(balloon.stats()->cache_bytes.has_value());

  const int interrupts = driver.interrupts();
  balloon.RequestStats();
  CHECK(driver.TakeUsed(kStatsQueue).size() == 1);
  CHECK(driver.interrupts() == interrupts + 1);
  balloon.RequestStats();  // The driver has not answered: nothing more.
  CHECK(driver.interrupts() == interrupts + 1);
  driver.Fill(kBuffer, Figure(4, 50));
  driver.Add(kStatsQueue, 0, {{kBuffer, 10, false}});
  driver.Kick();
  CHECK(balloon.stats()->free_bytes == 50);
  driver.Reset();
  CHECK_FALSE(balloon.stats().has_value());
}

}  // namespace
}  // namespace catnap::virtio
