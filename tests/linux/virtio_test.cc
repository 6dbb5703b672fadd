#include <algorithm>
#include <catch2/catch.hpp>
#include <memory>
#include <thread>
#include <vector>

#include "io/event_loop.h"
#include "linux/linux_guest.h"
#include "virtio/balloon/balloon.h"
#include "virtio/rng/rng.h"
#include "virtio/vsock/vsock.h"

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

// Sends a long text as the guest takes it, and checks that it comes back.
class LongTalk final : public virtio::VsockHandler {
 public:
  static constexpr size_t kBytes = 8 << 20;

  LongTalk(virtio::Vsock* device, virtio::VsockStreamId id)
      : device_(device), id_(id) {}

  static uint8_t ByteAt(size_t index) {
    return static_cast<uint8_t>(index * 31 + (index >> 8) + (index >> 16));
  }
  void SendMore() {
    std::vector<uint8_t> part;
    while (sent_ < kBytes) {
      part.resize(std::min<size_t>(kBytes - sent_, 100'000));
      for (size_t i = 0; i < part.size(); ++i) part[i] = ByteAt(sent_ + i);
      const auto taken = device_->Send(id_, part);
      if (!taken.ok()) return;
      sent_ += *taken;
      if (*taken < part.size()) return;
    }
    device_->CloseSend(id_);
  }
  void OnData(std::span<const uint8_t> bytes) override {
    for (const uint8_t byte : bytes) {
      if (byte != ByteAt(received)) ++wrong;
      ++received;
    }
    device_->Consumed(id_, bytes.size());
  }
  void OnConnected() override { SendMore(); }
  void OnWritable() override { SendMore(); }
  void OnClosed(const absl::Status& status) override {
    why = status;
    closed = true;
  }

  // Read when the guest has ended.
  size_t received = 0;
  size_t wrong = 0;
  bool closed = false;
  absl::Status why;

 private:
  virtio::Vsock* const device_;
  const virtio::VsockStreamId id_;
  size_t sent_ = 0;
};

TEST_CASE("Linux talks to the host by vsock, byte for byte") {
  const auto loop = MakeLoop();
  const auto machine = test::PrepareLinux(
      GuestFile("vmlinux"),
      {.memory_bytes = 128 << 20, .vcpus = 2, .device_pages = 1},
      "catnap.action=vsock");
  auto owned = std::make_unique<virtio::Vsock>(virtio::VsockOptions{},
                                               &machine->memory());
  virtio::Vsock& device = *owned;
  std::shared_ptr<LongTalk> talk;
  device.Listen(1024, [&](virtio::VsockStreamId id) {
    talk = std::make_shared<LongTalk>(&device, id);
    return talk;
  });
  REQUIRE(machine->AttachVirtio(0, std::move(owned), loop.get(), base::Logger())
              .ok());
  CHECK(test::RunLinux(*machine).reason == EndReason::kPowerOff);
  INFO(ConsoleOf(*machine));
  REQUIRE(talk != nullptr);
  CHECK(talk->received == LongTalk::kBytes);
  CHECK(talk->wrong == 0);
  CHECK(talk->closed);
  CHECK(talk->why.ok());
  CHECK_THAT(ConsoleOf(*machine), Catch::Contains("vsock bytes=8388608"));
}

}  // namespace
}  // namespace catnap::vmm
