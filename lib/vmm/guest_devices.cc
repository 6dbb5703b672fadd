#include "vmm/guest_devices.h"

#include <utility>

#include "base/status.h"
#include "virtio/balloon/balloon.h"
#include "virtio/block/block.h"
#include "virtio/net/net.h"
#include "virtio/rng/rng.h"
#include "virtio/vsock/vsock.h"

namespace catnap::vmm {
namespace {

constexpr int kOtherDevices = 3;  // Sockets, entropy, balloon.

}  // namespace

int DevicePages(size_t disks, bool has_link) {
  return static_cast<int>(disks) + kOtherDevices + (has_link ? 1 : 0);
}

absl::StatusOr<GuestSockets*> AttachGuestDevices(Machine* machine,
                                                 GuestDevices devices,
                                                 io::EventLoop* loop,
                                                 const base::Logger& log) {
  memory::GuestMemory* const memory = &machine->memory();
  int page = 0;
  for (DiskDevice& device : devices.disks) {
    virtio::BlockOptions options;
    options.serial = std::move(device.serial);
    options.cancel_parked = std::move(device.cancel_parked);
    CATNAP_RETURN_IF_ERROR(machine->AttachVirtio(
        page++,
        std::make_unique<virtio::Block>(std::move(device.disk),
                                        std::move(options), memory),
        loop, log));
  }
  auto sockets =
      std::make_unique<virtio::Vsock>(virtio::VsockOptions{}, memory);
  GuestSockets* const attached = sockets.get();
  CATNAP_RETURN_IF_ERROR(
      machine->AttachVirtio(page++, std::move(sockets), loop, log));
  CATNAP_RETURN_IF_ERROR(machine->AttachVirtio(
      page++, std::make_unique<virtio::Rng>(virtio::RngOptions{}, memory), loop,
      log));
  CATNAP_RETURN_IF_ERROR(machine->AttachVirtio(
      page++, std::make_unique<virtio::Balloon>(memory), loop, log));
  if (devices.link != nullptr) {
    CATNAP_RETURN_IF_ERROR(machine->AttachVirtio(
        page, std::make_unique<virtio::Net>(std::move(devices.link), memory),
        loop, log));
  }
  return attached;
}

}  // namespace catnap::vmm
