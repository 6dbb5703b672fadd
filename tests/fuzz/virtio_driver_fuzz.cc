#include <array>
#include <memory>
#include <span>
#include <vector>

#include "fuzz/fuzz_input.h"
#include "fuzz/fuzz_target.h"
#include "io/event_loop.h"
#include "net/link.h"
#include "state/decoder.h"
#include "state/encoder.h"
#include "support/memory_disk.h"
#include "support/virtio_driver.h"
#include "virtio/balloon/balloon.h"
#include "virtio/block/block.h"
#include "virtio/net/net.h"
#include "virtio/rng/rng.h"
#include "virtio/vsock/vsock.h"

// A malicious driver against each device: any register, any bytes in the rings
// and the buffers, resets and saves at any moment. The first byte chooses the
// device. Whatever happens, the device keeps within RAM (the sanitizers see
// to it), says NEEDS_RESET at most once for each reset, and works again after
// one.

namespace catnap::virtio {
namespace {

using test::VirtioDriver;

// Of the network devices, which start nothing on it.
io::EventLoop* Loop() {
  static const auto loop = io::EventLoop::Create({});
  FUZZ_CHECK(loop.ok());
  return loop->get();
}

VirtioDriver::Factory Choose(uint8_t selector) {
  if (selector % 5 == 4) {
    return [](memory::GuestMemory* memory) {
      auto link = net::Link::Create({}, Loop());
      FUZZ_CHECK(link.ok());
      return std::make_unique<Net>(*std::move(link), memory);
    };
  }
  if (selector % 5 == 3) {
    return [](memory::GuestMemory* memory) {
      return std::make_unique<Block>(
          std::make_shared<test::MemoryDisk>(64 * disk::kSectorBytes),
          BlockOptions{.serial = "fuzz"}, memory);
    };
  }
  if (selector % 5 == 2) {
    return [](memory::GuestMemory* memory) {
      return std::make_unique<Vsock>(VsockOptions{}, memory);
    };
  }
  if (selector % 5 == 0) {
    return [](memory::GuestMemory* memory) {
      return std::make_unique<Rng>(
          RngOptions{.bytes_per_second = 1e12, .burst_bytes = 1e12}, memory);
    };
  }
  return [](memory::GuestMemory* memory) {
    return std::make_unique<Balloon>(memory);
  };
}

class Run {
 public:
  explicit Run(uint8_t selector)
      : factory_(Choose(selector)),
        driver_(std::make_unique<VirtioDriver>(factory_)) {}

  void Step(fuzz::FuzzInput* input) {
    const size_t queues = driver_->device().traits().queue_sizes.size();
    const auto operation = input->Between<uint8_t>(0, 15);
    const auto queue =
        static_cast<uint32_t>(input->Integer<uint8_t>() % queues);
    switch (operation) {
      case 0:  // Any access to any register.
        driver_->transport().Write(
            input->Integer<uint16_t>() % device::kRegisterPageSize,
            input->Bytes(size_t{1} << input->Between<uint8_t>(0, 3)));
        ++resets_;  // It may have been one.
        break;
      case 1:
        Start(input->Integer<uint8_t>());
        break;
      case 2:
        Reset();
        break;
      case 3:
        SaveAndLoad(input);
        break;
      case 4:  // Any bytes in the rings.
      case 5: {
        const uint64_t at =
            queue * VirtioDriver::kQueueStride +
            input->Integer<uint16_t>() % VirtioDriver::kQueueStride;
        const auto bytes = input->Bytes(input->Between<uint8_t>(0, 31));
        (void)driver_->memory().Write({VirtioDriver::kQueueArea + at}, bytes);
        break;
      }
      case 6:
        if (started_) {
          driver_->SetAvailableIndex(queue, input->Integer<uint16_t>());
        }
        break;
      case 7:
      case 8:
      case 9: {
        const auto index = input->Between<uint8_t>(0, 7);
        driver_->SetDescriptor(queue, index,
                               {.gpa = Address(input),
                                .length = input->Integer<uint16_t>(),
                                .flags = input->Between<uint8_t>(0, 7),
                                .next = input->Between<uint8_t>(0, 8)});
        break;
      }
      case 10:
      case 11:
      case 12:
        if (started_) {
          driver_->MakeAvailable(queue, input->Between<uint8_t>(0, 8));
        }
        break;
      default:
        driver_->Kick();
        break;
    }
    FUZZ_CHECK(driver_->failures() <= resets_ + 1);
  }

  // A good driver comes after all.
  void End() {
    driver_->device().Resume();
    Reset();
    FUZZ_CHECK(driver_->status() == 0);
    FUZZ_CHECK(driver_->Start());
    driver_->Kick();
    FUZZ_CHECK((driver_->status() & kStatusNeedsReset) == 0);
  }

 private:
  // Mostly in RAM.
  static uint64_t Address(fuzz::FuzzInput* input) {
    const auto address = input->Integer<uint32_t>();
    if (address % 16 == 0) return uint64_t{address} << 32 | address;
    return address % (VirtioDriver::kRamBytes + 4096);
  }

  void Start(uint8_t choice) {
    Reset();
    const uint64_t without =
        ((choice & 1) != 0 ? kFeatureEventIndex : 0) |
        ((choice & 2) != 0 ? kFeatureIndirectDescriptors : 0) |
        ((choice & 4) != 0 ? 2 : 0);
    FUZZ_CHECK(driver_->Start(8, without));
    started_ = true;
  }

  void Reset() {
    driver_->Reset();
    ++resets_;
  }

  // Saves, damages what was saved, and loads it in a machine of its own.
  void SaveAndLoad(fuzz::FuzzInput* input) {
    driver_->device().Quiesce();
    std::vector<uint8_t> bytes;
    state::StateEncoder out(&bytes);
    FUZZ_CHECK(driver_->transport().SaveState(out).ok());
    const auto flips = input->Between<uint8_t>(0, 3);
    for (int i = 0; i < flips; ++i) {
      const size_t at = input->Integer<uint16_t>() % bytes.size();
      bytes[at] ^= input->Integer<uint8_t>();
    }
    auto second = std::make_unique<VirtioDriver>(factory_, *driver_);
    const absl::Status loaded =
        second->transport().LoadState(state::StateDecoder(bytes));
    FUZZ_CHECK(flips != 0 || loaded.ok());
    driver_->device().Resume();
    if (!loaded.ok()) return;
    second->device().Resume();
    driver_ = std::move(second);
    resets_ = 0;
  }

  VirtioDriver::Factory factory_;
  std::unique_ptr<VirtioDriver> driver_;
  bool started_ = false;
  int resets_ = 0;
};

}  // namespace
}  // namespace catnap::virtio

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  catnap::fuzz::FuzzInput input(data, size);
  catnap::virtio::Run run(input.Integer<uint8_t>());
  while (!input.empty()) run.Step(&input);
  run.End();
  return 0;
}
