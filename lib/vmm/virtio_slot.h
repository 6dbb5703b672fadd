#ifndef CATNAP_LIB_VMM_VIRTIO_SLOT_H_
#define CATNAP_LIB_VMM_VIRTIO_SLOT_H_

#include <chrono>
#include <memory>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "base/log.h"
#include "base/mutex.h"
#include "device/device.h"
#include "device/register_page.h"
#include "io/event_loop.h"
#include "virtio/mmio_transport.h"
#include "virtio/virtio_device.h"

namespace catnap::vmm {

// What a slot is wired to. All is borrowed and must outlive it.
struct VirtioWiring {
  device::RegisterPage page;
  device::IrqLine* irq = nullptr;
  int notify_fd = -1;  // An eventfd that the guest's notifications signal.
  io::EventLoop* loop = nullptr;
};

// One virtio device in a machine: its registers, and an event loop's thread
// that serves it when the driver notifies or when it asked to be called.
//
// Thread safety: thread-safe. The destructor waits for the loop to let go, so
// it must not run on the loop's thread.
class VirtioSlot {
 public:
  VirtioSlot(std::unique_ptr<virtio::VirtioDevice> device,
             const VirtioWiring& wiring, base::Logger log);
  ~VirtioSlot();
  VirtioSlot(const VirtioSlot&) = delete;
  VirtioSlot& operator=(const VirtioSlot&) = delete;

  virtio::VirtioDevice& device() { return *device_; }
  virtio::MmioTransport& transport() { return *transport_; }

 private:
  using TimePoint = std::chrono::steady_clock::time_point;

  void Watch(int notify_fd);
  void KickAt(TimePoint when);
  void EndOperation();

  io::EventLoop* const loop_;  // Not owned.
  const base::Logger log_;
  std::unique_ptr<virtio::VirtioDevice> device_;
  std::unique_ptr<virtio::MmioTransport> transport_;

  base::Mutex mutex_;
  base::CondVar ended_;
  bool closing_ ABSL_GUARDED_BY(mutex_) = false;
  int outstanding_ ABSL_GUARDED_BY(mutex_) = 0;  // Operations of the loop.
  io::OperationId watch_ ABSL_GUARDED_BY(mutex_);
  struct Timer {
    TimePoint when;
    io::OperationId id;
  };
  std::optional<Timer> timer_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace catnap::vmm

#endif  // CATNAP_LIB_VMM_VIRTIO_SLOT_H_
