// Devices of a machine whose memory is still being read, on the event loop that
// they share with those of another one.
#include <unistd.h>

#include <catch2/catch.hpp>
#include <chrono>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "arch/x86_64/layout.h"
#include "io/event_loop.h"
#include "memory/userfault.h"
#include "support/held_pages.h"
#include "support/memory_disk.h"
#include "support/saved_machine.h"
#include "virtio/block/block.h"

namespace catnap::vmm {
namespace {

using test::Assembler;
using test::HeldPages;
using test::MemoryDisk;
using virtio::MmioRegister;

constexpr size_t kPage = base::kPageBytes;
constexpr ShellConfig kShell{.memory_bytes = test::kSmallMemory,
                             .device_pages = 1};
// What the guest is made of lies below kGuestEnd.
constexpr uint64_t kGuestEnd = 0x40'0000;
constexpr uint64_t kBegun = 0x20'0000;
constexpr uint64_t kDone = 0x20'0004;
constexpr uint32_t kHeader = 0x20'1000;
constexpr uint32_t kDescriptors = 0x21'0000;
constexpr uint32_t kAvailable = 0x21'1000;
constexpr uint32_t kUsed = 0x21'2000;
// The guest touches neither before its first request has ended.
constexpr uint32_t kStatus = 0x30'0000;
constexpr uint32_t kData = 0x31'0000;

constexpr char kOnDisk = 'd';
constexpr char kInMemory = 'm';
// Requests of the other machine that tell that nobody holds it up.
constexpr uint32_t kEnough = 100;

// One request for a page of the disk's first block after the other, for ever:
// counts them at kDone. Resets when one fails.
Assembler Requests(bool write) {
  Assembler code;
  const auto put = [&code](uint64_t address, uint32_t value) {
    code.MovRdi(address).MovEax(value).Store32();
  };
  const auto address = [](MmioRegister which) {
    return arch::kRegisterPages + static_cast<uint64_t>(which);
  };
  const auto reg = [&](MmioRegister which, uint32_t value) {
    put(address(which), value);
  };
  const size_t failure_bytes = Assembler().Reset().code().size();
  constexpr size_t kJumpBytes = 5;
  code.Cli();
  code.Jump(code.here() + kJumpBytes + failure_bytes);
  const uint64_t failed = code.here();
  code.Reset();
  reg(MmioRegister::kStatus, 3);
  reg(MmioRegister::kDriverFeaturesSelect, 1);
  reg(MmioRegister::kDriverFeatures, 1);  // VERSION_1
  reg(MmioRegister::kStatus, 11);
  reg(MmioRegister::kQueueSize, 4);
  reg(MmioRegister::kQueueDescriptorsLow, kDescriptors);
  reg(MmioRegister::kQueueDriverLow, kAvailable);
  reg(MmioRegister::kQueueDeviceLow, kUsed);
  reg(MmioRegister::kQueueReady, 1);
  reg(MmioRegister::kStatus, 15);
  put(kHeader, write ? 1 : 0);
  put(kDescriptors, kHeader);
  put(kDescriptors + 8, 16);
  put(kDescriptors + 12, 1 | 1u << 16);  // Goes on in descriptor 1.
  put(kDescriptors + 16, kData);
  put(kDescriptors + 24, kPage);
  put(kDescriptors + 28, (write ? 1 : 3) | 2u << 16);
  put(kDescriptors + 32, kStatus);
  put(kDescriptors + 40, 1);
  put(kDescriptors + 44, 2);  // Writable.

  const uint64_t step = code.here();
  code.MovRdi(kBegun).Load32().IncEax().Store32();
  code.Bytes({0x89, 0xc1})        // mov ecx, eax
      .Bytes({0xc1, 0xe1, 0x10})  // shl ecx, 16
      .MovRsi(kAvailable)
      .Bytes({0x89, 0x0e})  // mov [rsi], ecx
      .MovRsi(address(MmioRegister::kQueueNotify))
      .Bytes({0x31, 0xc9})  // xor ecx, ecx
      .Bytes({0x89, 0x0e})  // mov [rsi], ecx
      .MovRsi(kUsed)
      .Bytes({0x0f, 0xb7, 0xd0});  // movzx edx, ax
  const uint64_t wait = code.here();
  code.Bytes({0xf3, 0x90})        // pause
      .Bytes({0x8b, 0x0e})        // mov ecx, [rsi]
      .Bytes({0xc1, 0xe9, 0x10})  // shr ecx, 16
      .Bytes({0x39, 0xd1})        // cmp ecx, edx
      .JumpIfNotEqual(wait);
  code.MovRsi(kStatus)
      .Bytes({0x0f, 0xb6, 0x0e})  // movzx ecx, byte [rsi]
      .Bytes({0x85, 0xc9})        // test ecx, ecx
      .JumpIfNotEqual(failed);
  code.MovRsi(kDone).StoreRsi32().Jump(step);
  return code;
}

std::vector<uint8_t> BytesOf(int memfd, size_t size) {
  std::vector<uint8_t> bytes(size);
  REQUIRE(::pread(memfd, bytes.data(), size, 0) == static_cast<ssize_t>(size));
  return bytes;
}

uint32_t DoneOf(Machine& machine) {
  const auto done = machine.memory().Load<uint32_t>(memory::Gpa{kDone});
  REQUIRE(done.ok());
  return *done;
}

bool GetsOn(Machine& machine, uint32_t requests) {
  const uint32_t from = DoneOf(machine);
  const auto until = test::Deadline();
  while (DoneOf(machine) - from < requests) {
    if (std::chrono::steady_clock::now() > until) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

struct Disk {
  Disk() { disk->bytes().assign(kPage, kOnDisk); }
  bool Has(char value) { return disk->Content() == std::string(kPage, value); }

  std::shared_ptr<MemoryDisk> disk = std::make_shared<MemoryDisk>(kPage);
};

// A machine whose memory comes from a store that stalls, and another one that
// has all of its own. One loop serves both.
class Neighbours {
 public:
  Neighbours() {
    auto made = io::EventLoop::Create({});
    REQUIRE(made.ok());
    loop = *std::move(made);
    other = NewShell(other_disk);
    const test::TinyGuest guest =
        test::MakeGuest(Requests(/*write=*/true), kShell.memory_bytes);
    REQUIRE(other
                ->Launch(
                    {.template_memfd = guest.memfd.get(), .state = guest.state})
                .ok());
    REQUIRE(other->Start().ok());
    REQUIRE(GetsOn(*other, 1));
  }
  ~Neighbours() {
    if (store != nullptr) store->Release();
  }

  std::unique_ptr<Machine> NewShell(Disk& its_disk) {
    auto shell = test::MakeShell(kShell);
    REQUIRE(shell
                ->AttachVirtio(0,
                               std::make_unique<virtio::Block>(
                                   its_disk.disk, virtio::BlockOptions{},
                                   &shell->memory()),
                               loop.get(), base::Logger())
                .ok());
    return shell;
  }

  // Before its first instruction.
  void LaunchLazy(bool write, uint64_t held) {
    const test::TinyGuest guest =
        test::MakeGuest(Requests(write), kShell.memory_bytes);
    std::vector<uint8_t> bytes = BytesOf(guest.memfd.get(), kGuestEnd);
    std::fill_n(bytes.begin() + kData, kPage, kInMemory);
    LaunchFrom(std::move(bytes), held, {.state = guest.state});
  }
  // As it was saved.
  void LaunchLazy(const test::SavedGuest& saved, uint64_t held) {
    LaunchFrom(BytesOf(saved.memfd.get(), kShell.memory_bytes), held,
               {.saved = &saved.sections});
  }

  std::unique_ptr<io::EventLoop> loop;
  Disk disk;
  Disk other_disk;
  std::unique_ptr<HeldPages> store;
  // Its memory, whose end waits for a read that is under way.
  std::shared_ptr<memory::MemoryFile> file;
  std::unique_ptr<Machine> machine;
  std::unique_ptr<Machine> other;

 private:
  void LaunchFrom(std::vector<uint8_t> bytes, uint64_t held,
                  LaunchConfig launch) {
    store = std::make_unique<HeldPages>(std::move(bytes));
    store->Hold(held);
    auto made = store->NewFile(kShell.memory_bytes);
    REQUIRE(made.ok());
    file = *std::move(made);
    auto image = HeldPages::ImageOf(file, kShell.memory_bytes);
    REQUIRE(image.ok());
    launch.image = *std::move(image);
    machine = NewShell(disk);
    const absl::Status launched = machine->Launch(std::move(launch));
    INFO(launched.ToString());
    REQUIRE(launched.ok());
  }
};

bool IsRefused() {
  const absl::Status status = memory::Userfault::Open().status();
  if (status.ok()) return false;
  WARN("nothing was looked at: " << status.ToString());
  return true;
}

TEST_CASE("A page that a device waits for holds up no other machine's disk") {
  if (IsRefused()) return;
  const bool write = GENERATE(true, false);
  const uint64_t held = GENERATE(as<uint64_t>{}, kData, kStatus);
  CAPTURE(write, held);
  Neighbours two;
  two.LaunchLazy(write, held);
  REQUIRE(two.machine->Start().ok());
  REQUIRE(two.store->WaitUntilAsked(test::Deadline()));
  // From here on it stands until Release().
  REQUIRE(GetsOn(*two.other, kEnough));
  CHECK(two.disk.Has(kOnDisk));
  two.store->Release();
  REQUIRE(GetsOn(*two.machine, 3));
  two.machine->Stop();
  two.other->Stop();
  CHECK(two.disk.Has(write ? kInMemory : kOnDisk));
  const std::string data(
      reinterpret_cast<char*>(two.machine->memory().host_base()) + kData,
      kPage);
  CHECK(data == std::string(kPage, write ? kInMemory : kOnDisk));
}

TEST_CASE("A machine is woken before the rings of its devices have come") {
  if (IsRefused()) return;
  const uint64_t held =
      GENERATE(as<uint64_t>{}, kDescriptors, kAvailable, kUsed);
  CAPTURE(held);
  Neighbours two;
  test::SavedGuest saved;
  {
    Disk disk;
    const auto before = two.NewShell(disk);
    const test::TinyGuest guest =
        test::MakeGuest(Requests(/*write=*/true), kShell.memory_bytes);
    REQUIRE(before
                ->Launch(
                    {.template_memfd = guest.memfd.get(), .state = guest.state})
                .ok());
    REQUIRE(before->Start().ok());
    REQUIRE(GetsOn(*before, 3));
    saved = test::SaveGuest(*before);
  }
  two.LaunchLazy(saved, held);
  auto started = std::async(std::launch::async,
                            [&two] { return two.machine->Start().ok(); });
  CHECK(started.wait_until(test::Deadline()) == std::future_status::ready);
  CHECK(two.store->WaitUntilAsked(test::Deadline()));
  // As the guest, or who has something for it, may do at any time.
  base::SignalEventFd(two.machine->notify_fd(0));
  CHECK(GetsOn(*two.other, kEnough));
  CHECK(two.disk.Has(kOnDisk));
  two.store->Release();
  REQUIRE(started.get());
  REQUIRE(GetsOn(*two.machine, kEnough));
  two.machine->Stop();
  // Its data page was zeros.
  CHECK(two.disk.Has('\0'));
}

TEST_CASE("A page that a device waits for and that is lost ends its machine") {
  if (IsRefused()) return;
  Neighbours two;
  two.LaunchLazy(/*write=*/true, kData);
  REQUIRE(two.machine->Start().ok());
  REQUIRE(two.store->WaitUntilAsked(test::Deadline()));
  two.store->Release(absl::DataLossError("a frame is damaged"));
  REQUIRE(two.machine->WaitForEnd(test::Deadline()));
  CHECK(two.machine->exit()->reason == EndReason::kMemoryLost);
  CHECK_THAT(two.machine->exit()->detail,
             Catch::Contains("a frame is damaged"));
  CHECK(GetsOn(*two.other, kEnough));
  // Also when it is served again nothing of what is lost gets to its disk.
  base::SignalEventFd(two.machine->notify_fd(0));
  CHECK(GetsOn(*two.other, kEnough));
  two.machine.reset();
  CHECK(two.disk.Has(kOnDisk));
}

TEST_CASE("A machine may go while a device of it waits for a page") {
  if (IsRefused()) return;
  Neighbours two;
  two.LaunchLazy(/*write=*/true, kData);
  REQUIRE(two.machine->Start().ok());
  REQUIRE(two.store->WaitUntilAsked(test::Deadline()));
  auto gone = std::async(std::launch::async, [&two] { two.machine.reset(); });
  CHECK(gone.wait_until(test::Deadline()) == std::future_status::ready);
  CHECK(GetsOn(*two.other, kEnough));
  two.store->Release();
  gone.get();
  CHECK(two.disk.Has(kOnDisk));
  CHECK(GetsOn(*two.other, kEnough));
}

}  // namespace
}  // namespace catnap::vmm
