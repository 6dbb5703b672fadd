#ifndef CATNAP_LIB_VIRTIO_NET_NET_H_
#define CATNAP_LIB_VIRTIO_NET_NET_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "net/link.h"
#include "virtio/virtio_device.h"

namespace catnap::virtio {

// The network device (virtio 1.2, 5.1) with one pair of queues: what the guest
// sends goes to a net::Link, what the link has for the guest comes from there.
// It offers no offloads: each frame is one buffer, with its checksums in it.
//
// Its own state is the MAC address, which a guest keeps, and what the driver
// knows of the link. Frames under way are lost with a save, as on any network.
class Net final : public VirtioDevice {
 public:
  Net(std::shared_ptr<net::Link> link, memory::GuestMemory* memory);
  // Waits for a call of the link's that runs: not on the loop's thread.
  ~Net() override;

 private:
  // Named from the driver's side.
  static constexpr size_t kReceiveQueue = 0;
  static constexpr size_t kTransmitQueue = 1;

  std::vector<uint8_t> ConfigLocked() const override
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool WantsLocked(size_t index) override ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void HandleLocked(size_t index, const Chain& chain) override
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AfterServing() override;
  void SaveOwnLocked(state::StateEncoder& out) const override
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status LoadOwnLocked(state::StateDecoder in) override
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  void ResumeLocked() override ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // The link has frames, or went up or down.
  void OnLink();
  // Tells the driver whether the link is up, if it was told otherwise.
  void LookAtLinkLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::shared_ptr<net::Link> link_;
  bool up_ ABSL_GUARDED_BY(mutex_) = true;  // As the driver was told.
  std::vector<uint8_t> frame_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace catnap::virtio

#endif  // CATNAP_LIB_VIRTIO_NET_NET_H_
