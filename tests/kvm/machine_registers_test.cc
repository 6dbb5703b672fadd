#include <atomic>
#include <catch2/catch.hpp>

#include "arch/x86_64/layout.h"
#include "support/machine_fixture.h"

namespace catnap::vmm {
namespace {

using test::Assembler;

constexpr uint32_t kStatus = 0x70;
constexpr uint32_t kQueueNotify = 0x50;
constexpr uint32_t kInterruptAck = 0x64;
constexpr uint32_t kLoops = 1000;

// A device that only counts what reaches it.
class CountingDevice final : public device::IoHandler {
 public:
  void Read(uint64_t, std::span<uint8_t>) override { ++reads; }
  void Write(uint64_t offset, std::span<const uint8_t>) override {
    ++writes;
    last_offset = offset;
  }
  std::atomic<int> reads{0};
  std::atomic<int> writes{0};
  std::atomic<uint64_t> last_offset{0};
};

TEST_CASE("Reading, notifying and acknowledging never leave the guest") {
  // Reads the status, checks it, notifies and acknowledges, a thousand times.
  const uint64_t page = arch::kRegisterPages + arch::kPageSize;
  Assembler code;
  code.MovEcx(kLoops);
  const uint64_t loop = code.here();
  code.MovRdi(page + kStatus).Load32().CompareEax(0x55);
  code.Bytes({0x74, 0x0c});  // je over the reset: mov edx, mov eax, out, hlt
  code.Reset();
  code.MovEax(1)
      .MovRdi(page + kQueueNotify)
      .Store32()
      .MovRdi(page + kInterruptAck)
      .Store32()
      .DecEcxJumpIfNotZero(loop)
      .PowerOff();
  const auto machine = test::MakeMachine(
      code, {.memory_bytes = test::kSmallMemory, .device_pages = 2});
  CountingDevice device;
  REQUIRE(machine->AttachDevice(1, &device).ok());
  machine->register_page(1).Store32(kStatus, 0x55);
  REQUIRE(machine->Start().ok());
  REQUIRE(machine->WaitForEnd(test::Deadline()));
  CHECK(machine->exit()->reason == EndReason::kPowerOff);
  CHECK(device.reads == 0);
  CHECK(device.writes == 0);
  CHECK(machine->user_exits() == 1);  // The one that switched off.
  CHECK(base::DrainEventFd(machine->notify_fd(1)));
  CHECK_FALSE(base::DrainEventFd(machine->notify_fd(0)));
}

TEST_CASE("Writes to other registers reach the device") {
  Assembler code;
  code.MovEax(1)
      .MovRdi(arch::kRegisterPages + kStatus)
      .Store32()
      .Store32()
      .PowerOff();
  const auto machine = test::MakeMachine(
      code, {.memory_bytes = test::kSmallMemory, .device_pages = 1});
  CountingDevice device;
  REQUIRE(machine->AttachDevice(0, &device).ok());
  REQUIRE(machine->Start().ok());
  REQUIRE(machine->WaitForEnd(test::Deadline()));
  CHECK(device.writes == 2);
  CHECK(machine->user_exits() == 3);  // And the one that switched off.
  CHECK(device.last_offset == kStatus);
  // The guest cannot change what it reads.
  CHECK(machine->register_page(0).Load32(kStatus) == 0);
}

TEST_CASE("The acknowledgement of a configuration change reaches the device") {
  Assembler code;
  code.MovEax(3).MovRdi(arch::kRegisterPages + kInterruptAck).Store32();
  code.PowerOff();
  const auto machine = test::MakeMachine(
      code, {.memory_bytes = test::kSmallMemory, .device_pages = 1});
  CountingDevice device;
  REQUIRE(machine->AttachDevice(0, &device).ok());
  REQUIRE(machine->Start().ok());
  REQUIRE(machine->WaitForEnd(test::Deadline()));
  CHECK(device.writes == 1);
  CHECK(device.last_offset == kInterruptAck);
}

TEST_CASE("AttachDevice refuses pages that are not there") {
  const auto machine =
      test::MakeShell({.memory_bytes = test::kSmallMemory, .device_pages = 1});
  CountingDevice device;
  CHECK(machine->AttachDevice(1, &device).code() ==
        absl::StatusCode::kInvalidArgument);
  CHECK(machine->AttachDevice(-1, &device).code() ==
        absl::StatusCode::kInvalidArgument);
  REQUIRE(machine->AttachDevice(0, &device).ok());
  CHECK(machine->AttachDevice(0, &device).code() ==
        absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace catnap::vmm
