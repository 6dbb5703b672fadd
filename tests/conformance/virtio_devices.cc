#include "conformance/virtio_devices.h"

#include <memory>

#include "virtio/balloon/balloon.h"
#include "virtio/rng/rng.h"

namespace catnap::test {

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
       .good_buffer = {{kBuffers, 64, true}}},
      {.name = "balloon",
       .factory =
           [](memory::GuestMemory* memory) {
             return std::make_unique<virtio::Balloon>(memory);
           },
       .device_id = 5,
       .queue = 3,
       .good_buffer = {{kBuffers, 8192, true}}},
  };
}

}  // namespace catnap::test
