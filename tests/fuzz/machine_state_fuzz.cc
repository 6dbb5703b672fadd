#include <memory>
#include <span>
#include <vector>

#include "arch/x86_64/cpu_identity.h"
#include "arch/x86_64/saved_vcpu.h"
#include "device/serial.h"
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
#include "vmm/persist.h"
#include "vmm/platform.h"

// The sections of a saved machine, from hostile bytes. The first byte chooses
// the section. What is accepted is written again as bytes that are accepted
// and written the same; a device that took its state keeps within its bounds.

namespace catnap::vmm {
namespace {

using Bytes = std::vector<uint8_t>;

template <typename Write>
Bytes Written(Write write) {
  Bytes bytes;
  state::StateEncoder out(&bytes);
  write(out);
  FUZZ_CHECK(out.status().ok());
  return bytes;
}

template <typename Decode, typename Encode>
void Decoded(std::span<const uint8_t> bytes, Decode decode, Encode encode) {
  const auto first = decode(state::StateDecoder(bytes));
  if (!first.ok()) {
    FUZZ_CHECK(first.status().code() == absl::StatusCode::kDataLoss);
    return;
  }
  const Bytes once =
      Written([&](state::StateEncoder& out) { encode(*first, out); });
  const auto second = decode(state::StateDecoder(once));
  FUZZ_CHECK(second.ok());
  FUZZ_CHECK(Written([&](state::StateEncoder& out) { encode(*second, out); }) ==
             once);
}

struct NoSink final : device::OutputSink {
  void Write(std::span<const uint8_t>) override {}
};
struct NoIrq final : device::IrqLine {
  void Set(bool) override {}
};

void LoadSerial(std::span<const uint8_t> bytes) {
  NoSink sink;
  NoIrq irq;
  device::Serial serial(&sink, &irq);
  if (!serial.LoadState(state::StateDecoder(bytes)).ok()) return;
  const auto save = [](device::Serial& port) {
    return Written([&](state::StateEncoder& out) { port.SaveState(out); });
  };
  const Bytes once = save(serial);
  device::Serial second(&sink, &irq);
  FUZZ_CHECK(second.LoadState(state::StateDecoder(once)).ok());
  FUZZ_CHECK(save(second) == once);
  // Any register in any state.
  for (uint64_t offset = 0; offset < device::Serial::kPorts; ++offset) {
    uint8_t value = 0;
    second.Read(offset, {&value, 1});
    second.Write(offset, std::span<const uint8_t>(&value, 1));
  }
  for (size_t i = 0; i < 2 * device::Serial::kFifoBytes; ++i) {
    second.Receive(bytes);
    uint8_t value = 0;
    second.Read(0, {&value, 1});
  }
}

// Of the network devices, which start nothing on it.
io::EventLoop* Loop() {
  static const auto loop = io::EventLoop::Create({});
  FUZZ_CHECK(loop.ok());
  return loop->get();
}

std::unique_ptr<virtio::VirtioDevice> MakeDevice(uint8_t which,
                                                 memory::GuestMemory* memory) {
  switch (which % 5) {
    case 0:
      return std::make_unique<virtio::Rng>(virtio::RngOptions{}, memory);
    case 1:
      return std::make_unique<virtio::Balloon>(memory);
    case 2:
      return std::make_unique<virtio::Block>(
          std::make_shared<test::MemoryDisk>(64 * disk::kSectorBytes),
          virtio::BlockOptions{}, memory);
    case 3:
      return std::make_unique<virtio::Vsock>(virtio::VsockOptions{}, memory);
    default: {
      auto link = net::Link::Create({}, Loop());
      FUZZ_CHECK(link.ok());
      return std::make_unique<virtio::Net>(*std::move(link), memory);
    }
  }
}

void LoadDevice(uint8_t which, std::span<const uint8_t> bytes) {
  const test::VirtioDriver::Factory factory =
      [which](memory::GuestMemory* memory) {
        return MakeDevice(which, memory);
      };
  test::VirtioDriver driver(factory);
  if (!driver.transport().LoadState(state::StateDecoder(bytes)).ok()) return;
  const auto save = [](test::VirtioDriver& from) {
    return Written([&](state::StateEncoder& out) {
      FUZZ_CHECK(from.transport().SaveState(out).ok());
    });
  };
  const Bytes once = save(driver);
  test::VirtioDriver second(factory, driver);
  FUZZ_CHECK(second.transport().LoadState(state::StateDecoder(once)).ok());
  second.device().Resume();
  second.Kick();
  second.Reset();
  FUZZ_CHECK(second.Start());
}

}  // namespace

void Run(std::span<const uint8_t> all) {
  if (all.empty()) return;
  const uint8_t which = all[0];
  const auto bytes = all.subspan(1);
  switch (which) {
    case 0:
      Decoded(bytes, arch::DecodeVcpu, arch::EncodeVcpu);
      break;
    case 1:
      Decoded(bytes, arch::DecodeIrqchip, arch::EncodeIrqchip);
      break;
    case 2:
      Decoded(bytes, arch::DecodeClock, arch::EncodeClock);
      break;
    case 3:
      Decoded(bytes, arch::DecodeIdentity, arch::EncodeIdentity);
      if (const auto identity =
              arch::DecodeIdentity(state::StateDecoder(bytes));
          identity.ok()) {
        // A host that has nothing refuses it, whatever is in there.
        arch::CheckCpu(*identity, {}).IgnoreError();
      }
      break;
    case 4:
      Decoded(bytes, DecodeMachine, EncodeMachine);
      break;
    case 5:
      LoadSerial(bytes);
      break;
    default:
      LoadDevice(which, bytes);
      break;
  }
}

}  // namespace catnap::vmm

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  catnap::vmm::Run({data, size});
  return 0;
}
