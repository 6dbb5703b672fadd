#include <catch2/catch.hpp>
#include <thread>

#include "io/event_loop.h"
#include "linux/linux_guest.h"
#include "virtio/balloon/balloon.h"
#include "virtio/rng/rng.h"

namespace catnap::vmm {
namespace {

using test::ConsoleOf;
using test::GuestFile;

std::unique_ptr<io::EventLoop> MakeLoop() {
  auto loop = io::EventLoop::Create({});
  REQUIRE(loop.ok());
  return *std::move(loop);
}

TEST_CASE("Linux reads from the entropy device") {
  const auto loop = MakeLoop();
  const auto machine = test::PrepareLinux(
      GuestFile("vmlinux"), {.memory_bytes = 128 << 20, .device_pages = 2},
      "catnap.action=random");
  REQUIRE(machine
              ->AttachVirtio(1,
                             std::make_unique<virtio::Rng>(virtio::RngOptions{},
                                                           &machine->memory()),
                             loop.get(), base::Logger())
              .ok());
  CHECK(test::RunLinux(*machine).reason == EndReason::kPowerOff);
  CHECK_THAT(ConsoleOf(*machine), Catch::Contains("hwrng bytes=32"));
}

TEST_CASE("Linux reports free pages and memory figures to the balloon") {
  const auto loop = MakeLoop();
  // The kernel keeps 64 MiB in each zone from being reported.
  const auto machine = test::PrepareLinux(
      GuestFile("vmlinux"), {.memory_bytes = 256 << 20, .device_pages = 1},
      "catnap.action=idle");
  auto owned = std::make_unique<virtio::Balloon>(&machine->memory());
  virtio::Balloon& balloon = *owned;
  REQUIRE(machine->AttachVirtio(0, std::move(owned), loop.get(), base::Logger())
              .ok());
  REQUIRE(machine->Start().ok());
  const auto deadline = test::Deadline();
  // The kernel reports two seconds after it has found free blocks.
  while ((balloon.reported_bytes() == 0 || !balloon.stats().has_value()) &&
         std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    balloon.RequestStats();
  }
  INFO(ConsoleOf(*machine));
  CHECK(balloon.reported_bytes() >= 2 << 20);
  REQUIRE(balloon.stats().has_value());
  CHECK(balloon.stats()->total_bytes.value_or(0) > 200 << 20);
  CHECK(balloon.stats()->free_bytes.value_or(0) > 1 << 20);
  CHECK(machine->state() == MachineState::kRunning);
  machine->Stop();
}

}  // namespace
}  // namespace catnap::vmm
