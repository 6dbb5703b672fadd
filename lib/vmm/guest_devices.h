#ifndef CATNAP_LIB_VMM_GUEST_DEVICES_H_
#define CATNAP_LIB_VMM_GUEST_DEVICES_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/log.h"
#include "disk/block_io.h"
#include "io/event_loop.h"
#include "net/link.h"
#include "vmm/guest_sockets.h"
#include "vmm/machine.h"

namespace catnap::vmm {

struct DiskDevice {
  std::shared_ptr<disk::BlockIo> disk;
  std::string serial;
  std::function<void()> cancel_parked;  // See virtio::BlockOptions; or null.
};

// The devices of a guest with an agent. Pages in this order: disks, the first
// of which is its root, sockets, entropy, balloon, network.
struct GuestDevices {
  std::vector<DiskDevice> disks;
  std::shared_ptr<net::Link> link;  // Null: no network device.
};

// Register pages that they take.
int DevicePages(size_t disks, bool has_link);
inline int DevicePages(const GuestDevices& devices) {
  return DevicePages(devices.disks.size(), devices.link != nullptr);
}

// Puts them into `machine` before its guest runs. `loop` serves them; borrowed,
// it must outlive the machine. Returns the sockets, which the machine owns.
// Errors: as Machine::AttachVirtio().
absl::StatusOr<GuestSockets*> AttachGuestDevices(Machine* machine,
                                                 GuestDevices devices,
                                                 io::EventLoop* loop,
                                                 const base::Logger& log);

}  // namespace catnap::vmm

#endif  // CATNAP_LIB_VMM_GUEST_DEVICES_H_
