#include "virtio/queue.h"

#include <catch2/catch.hpp>

#include "support/virtio_driver.h"
#include "virtio/rng/rng.h"

// The ring's own mechanisms; its rules for drivers are in tests/conformance.

namespace catnap::virtio {
namespace {

using test::VirtioDriver;

std::unique_ptr<VirtioDevice> MakeRng(memory::GuestMemory* memory) {
  return std::make_unique<Rng>(
      RngOptions{.bytes_per_second = 1e12, .burst_bytes = 1e12}, memory);
}

constexpr uint64_t kBuffer = VirtioDriver::kBuffers;

TEST_CASE("The indices wrap at 2^16") {
  VirtioDriver driver(MakeRng);
  REQUIRE(driver.Start(4));
  int wrong = 0;
  for (int i = 0; i < 70000; ++i) {
    driver.Add(0, static_cast<uint16_t>(i % 4), {{kBuffer, 1, true}});
    driver.Kick();
    const auto used = driver.TakeUsed(0);
    if (used.size() != 1 || used[0].head != static_cast<uint32_t>(i % 4) ||
        used[0].written != 1) {
      ++wrong;
    }
  }
  CHECK(wrong == 0);
  CHECK(driver.failures() == 0);
}

TEST_CASE("A full queue is served in one pass") {
  VirtioDriver driver(MakeRng);
  REQUIRE(driver.Start(64));
  for (uint16_t i = 0; i < 64; ++i) driver.Add(0, i, {{kBuffer, 1, true}});
  driver.Kick();
  CHECK(driver.TakeUsed(0).size() == 64);
}

TEST_CASE("Event index: the driver says where it wants its interrupt") {
  VirtioDriver driver(MakeRng);
  REQUIRE(driver.Start(8));
  // After the third buffer: used index 3, event 2.
  driver.SetUsedEvent(0, 2);
  for (int i = 0; i < 2; ++i) {
    driver.Add(0, 0, {{kBuffer, 1, true}});
    driver.Kick();
  }
  CHECK(driver.interrupts() == 0);
  driver.Add(0, 0, {{kBuffer, 1, true}});
  driver.Kick();
  CHECK(driver.interrupts() == 1);
  driver.Add(0, 0, {{kBuffer, 1, true}});
  driver.Kick();
  CHECK(driver.interrupts() == 1);  // It has not moved the event.
  // A batch that goes over the event counts once.
  driver.SetUsedEvent(0, 5);
  for (uint16_t i = 0; i < 4; ++i) driver.Add(0, i, {{kBuffer, 1, true}});
  driver.Kick();
  CHECK(driver.interrupts() == 2);
}

TEST_CASE("Event index: the device says where it wants its notification") {
  VirtioDriver driver(MakeRng);
  REQUIRE(driver.Start(8));
  for (uint16_t i = 0; i < 5; ++i) {
    CHECK(driver.AvailableEvent(0) == i);
    driver.Add(0, 0, {{kBuffer, 1, true}});
    driver.Kick();
  }
}

TEST_CASE("Without event index the flags do the same") {
  VirtioDriver driver(MakeRng);
  REQUIRE(driver.Start(8, kFeatureEventIndex));
  driver.SetAvailableFlags(0, 1);  // No interrupts.
  driver.Add(0, 0, {{kBuffer, 1, true}});
  driver.Kick();
  CHECK(driver.interrupts() == 0);
  CHECK(driver.UsedFlags(0) == 0);  // Notifications, please.
  driver.SetAvailableFlags(0, 0);
  driver.Add(0, 0, {{kBuffer, 1, true}});
  driver.Kick();
  CHECK(driver.interrupts() == 1);
}

}  // namespace
}  // namespace catnap::virtio
