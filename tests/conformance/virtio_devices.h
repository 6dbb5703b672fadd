#ifndef CATNAP_TESTS_CONFORMANCE_VIRTIO_DEVICES_H_
#define CATNAP_TESTS_CONFORMANCE_VIRTIO_DEVICES_H_

#include <string>
#include <vector>

#include "support/virtio_driver.h"

namespace catnap::test {

// A device that the conformance suite is run on.
struct DeviceUnderTest {
  std::string name;
  VirtioDriver::Factory factory;
  uint32_t device_id = 0;
  // A queue whose buffers come back by themselves, and one good buffer for
  // it, at VirtioDriver::kBuffers.
  uint32_t queue = 0;
  std::vector<Piece> good_buffer;
  // The queues that the device looks at whenever it is kicked.
  std::vector<uint32_t> watched_queues;
};

// All devices that the library has: add a new one here.
std::vector<DeviceUnderTest> AllDevices();

}  // namespace catnap::test

#endif  // CATNAP_TESTS_CONFORMANCE_VIRTIO_DEVICES_H_
