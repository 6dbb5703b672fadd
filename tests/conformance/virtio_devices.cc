#include "conformance/virtio_devices.h"

#include <cstdlib>
#include <memory>

#include "io/event_loop.h"
#include "net/link.h"
#include "support/memory_disk.h"
#include "virtio/balloon/balloon.h"
#include "virtio/block/block.h"
#include "virtio/net/net.h"
#include "virtio/rng/rng.h"
#include "virtio/vsock/vsock.h"

namespace catnap::test {
namespace {

// A network device that nothing leaves, with the loop that it does not need
// for that.
class LonelyNet {
 public:
  static std::unique_ptr<virtio::VirtioDevice> Make(
      memory::GuestMemory* memory) {
    static const LonelyNet shared;
    auto link = net::Link::Create({}, shared.loop_.get());
    if (!link.ok()) std::abort();
    return std::make_unique<virtio::Net>(*std::move(link), memory);
  }

 private:
  LonelyNet() {
    auto loop = io::EventLoop::Create({});
    if (!loop.ok()) std::abort();
    loop_ = *std::move(loop);
  }
  std::unique_ptr<io::EventLoop> loop_;
};

}  // namespace

std::vector<DeviceUnderTest> AllDevices() {
  constexpr uint64_t kBuffers = VirtioDriver::kBuffers;
  return {
      {.name = "rng",
       .factory =
           [](memory::GuestMemory* memory) {
             return std::make_unique<virtio::Rng>(
                 virtio::RngOptions{.bytes_per_second = 1e9,
                                    .burst_bytes = 1e9},
                 memory);
           },
       .device_id = 4,
       .queue = 0,
       .good_buffer = {{kBuffers, 64, true}},
       .watched_queues = {0}},
      {.name = "balloon",
       .factory =
           [](memory::GuestMemory* memory) {
             return std::make_unique<virtio::Balloon>(memory);
           },
       .device_id = 5,
       .queue = 3,
       .good_buffer = {{kBuffers, 8192, true}},
       .watched_queues = {0, 1, 2, 3}},
      {.name = "block",
       .factory =
           [](memory::GuestMemory* memory) {
             return std::make_unique<virtio::Block>(
                 std::make_shared<MemoryDisk>(1 << 20), virtio::BlockOptions{},
                 memory);
           },
       .device_id = 2,
       .queue = 0,
       // RAM is zeroes: a request to read from sector 0.
       .good_buffer = {{kBuffers, 16, false},
                       {kBuffers + 512, 512, true},
                       {kBuffers + 2048, 1, true}},
       .watched_queues = {0}},
      {.name = "net",
       .factory = LonelyNet::Make,
       .device_id = 1,
       .queue = 1,
       // The header and zeroes: no frame that anybody wants.
       .good_buffer = {{kBuffers, 12, false}, {kBuffers + 512, 60, false}},
       .watched_queues = {1}},
      {.name = "vsock",
       .factory =
           [](memory::GuestMemory* memory) {
             return std::make_unique<virtio::Vsock>(virtio::VsockOptions{},
                                                    memory);
           },
       .device_id = 19,
       .queue = 1,
       .good_buffer = {{kBuffers, 44, false}},
       .watched_queues = {1}},
  };
}

}  // namespace catnap::test
