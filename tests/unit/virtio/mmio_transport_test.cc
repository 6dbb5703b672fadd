#include "virtio/mmio_transport.h"

#include <array>
#include <catch2/catch.hpp>
#include <vector>

#include "support/virtio_driver.h"

// What the conformance suite cannot see on every device: configuration space,
// odd accesses.

namespace catnap::virtio {
namespace {

using test::VirtioDriver;

// A device with a configuration space that it can change.
class Configured final : public VirtioDevice {
 public:
  explicit Configured(memory::GuestMemory* memory)
      : VirtioDevice({.id = DeviceId::kNet, .queue_sizes = {8}}, memory) {}

  void WriteConfig(uint64_t offset, std::span<const uint8_t> bytes) override {
    written_at = offset;
    written.assign(bytes.begin(), bytes.end());
  }
  void Change(uint8_t value) {
    const base::MutexLock lock(&mutex_);
    config_[4] = value;
    ChangeConfigLocked();
  }

  uint64_t written_at = 0;
  std::vector<uint8_t> written;

 private:
  std::vector<uint8_t> ConfigLocked() const override
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return config_;
  }
  void HandleLocked(size_t index, const Chain& chain) override
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    PushLocked(index, chain.head(), 0);
  }
  void SaveOwnLocked(state::StateEncoder& /*out*/) const override {}
  absl::Status LoadOwnLocked(state::StateDecoder /*in*/) override {
    return absl::OkStatus();
  }

  std::vector<uint8_t> config_ ABSL_GUARDED_BY(mutex_) = std::vector<uint8_t>{
      1, 2, 3, 4, 5, 6};
};

std::unique_ptr<VirtioDevice> MakeConfigured(memory::GuestMemory* memory) {
  return std::make_unique<Configured>(memory);
}

Configured& DeviceOf(VirtioDriver& driver) {
  return static_cast<Configured&>(driver.device());
}

TEST_CASE(
    "The configuration space is read from the page, written to the "
    "device") {
  VirtioDriver driver(MakeConfigured);
  std::array<uint8_t, 8> bytes{};
  driver.transport().Read(0x100, bytes);
  CHECK(bytes == std::array<uint8_t, 8>{1, 2, 3, 4, 5, 6, 0, 0});
  const std::array<uint8_t, 2> two{7, 8};
  driver.transport().Write(0x103, two);
  CHECK(DeviceOf(driver).written_at == 3);
  CHECK(DeviceOf(driver).written == std::vector<uint8_t>{7, 8});
}

TEST_CASE("A change of the configuration space is told and counted") {
  VirtioDriver driver(MakeConfigured);
  const uint32_t generation = driver.Read(MmioRegister::kConfigGeneration);
  DeviceOf(driver).Change(55);
  CHECK(driver.Read(MmioRegister::kConfigGeneration) != generation);
  CHECK(driver.interrupts() == 0);  // Nobody is there yet.
  REQUIRE(driver.Start());
  DeviceOf(driver).Change(66);
  CHECK(driver.interrupts() == 1);
  CHECK(driver.Read(MmioRegister::kInterruptStatus) ==
        (kInterruptUsedBuffer | kInterruptConfigChange));
  std::array<uint8_t, 1> byte{};
  driver.transport().Read(0x104, byte);
  CHECK(byte[0] == 66);
  // Only what was acknowledged is cleared.
  driver.Write(MmioRegister::kInterruptAck, 1);
  CHECK((driver.Read(MmioRegister::kInterruptStatus) &
         kInterruptConfigChange) != 0);
  driver.Write(MmioRegister::kInterruptAck, 3);
  CHECK(driver.Read(MmioRegister::kInterruptStatus) == kInterruptUsedBuffer);
}

TEST_CASE("Only whole registers are written") {
  VirtioDriver driver(MakeConfigured);
  const std::array<uint8_t, 8> ones{1, 0, 0, 0, 1, 0, 0, 0};
  for (const size_t size : {size_t{1}, size_t{2}, size_t{8}}) {
    driver.transport().Write(0x70, std::span(ones).first(size));
    CHECK(driver.status() == 0);
  }
  driver.transport().Write(0x71, std::span(ones).first(4));
  CHECK(driver.status() == 0);
  driver.transport().Write(0x70, std::span(ones).first(4));
  CHECK(driver.status() == kStatusAcknowledge);
  // What is for reading only stays.
  driver.Write(MmioRegister::kMagic, 0);
  driver.Write(MmioRegister::kConfigGeneration, 9);
  CHECK(driver.Read(MmioRegister::kMagic) == 0x74726976);
  CHECK(driver.Read(MmioRegister::kConfigGeneration) == 0);
  // A read over the end of the page, as KVM never makes it.
  std::array<uint8_t, 4> end{9, 9, 9, 9};
  driver.transport().Read(0xffe, end);
  CHECK(end == std::array<uint8_t, 4>{0, 0, 9, 9});
}

TEST_CASE("A notification by register works as by eventfd") {
  VirtioDriver driver(MakeConfigured);
  REQUIRE(driver.Start());
  driver.Add(0, 0, {{VirtioDriver::kBuffers, 4, false}});
  driver.Write(MmioRegister::kQueueNotify, 0);
  CHECK(driver.TakeUsed(0).size() == 1);
}

TEST_CASE("Status: the driver cannot set what is the device's, nor clear") {
  VirtioDriver driver(MakeConfigured);
  driver.Write(MmioRegister::kStatus, kStatusNeedsReset | kStatusAcknowledge);
  CHECK(driver.status() == kStatusAcknowledge);
  driver.Write(MmioRegister::kStatus, kStatusFailed);
  CHECK(driver.status() == (kStatusAcknowledge | kStatusFailed));
  driver.Write(MmioRegister::kStatus, 0);
  CHECK(driver.status() == 0);
}

}  // namespace
}  // namespace catnap::virtio
