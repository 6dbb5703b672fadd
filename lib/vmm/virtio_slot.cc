#include "vmm/virtio_slot.h"

#include <utility>

namespace catnap::vmm {

VirtioSlot::VirtioSlot(std::unique_ptr<virtio::VirtioDevice> device,
                       const VirtioWiring& wiring, base::Logger log)
    : loop_(wiring.loop), log_(std::move(log)), device_(std::move(device)) {
  virtio::MmioTransport::Hooks hooks;
  hooks.kick_at = [this](TimePoint when) { KickAt(when); };
  hooks.on_failure = [this](const absl::Status& why) {
    log_.LogIfError(why, "virtio device {}: the guest's driver is broken",
                    static_cast<uint32_t>(device_->traits().id));
  };
  transport_ = std::make_unique<virtio::MmioTransport>(
      device_.get(), wiring.page, wiring.irq, std::move(hooks));
  Watch(wiring.notify_fd);
}

VirtioSlot::~VirtioSlot() {
  // The device first: afterwards it starts nothing new.
  device_->Reset();
  // Nor does a pager have it kicked.
  device_->SetLink(nullptr);
  const base::MutexLock lock(&mutex_);
  closing_ = true;
  loop_->Cancel(watch_);
  if (timer_.has_value()) loop_->Cancel(timer_->id);
  while (outstanding_ > 0) ended_.Wait(&mutex_);
}

void VirtioSlot::Watch(int notify_fd) {
  const base::MutexLock lock(&mutex_);
  ++outstanding_;
  watch_ =
      loop_->WatchEventFd(notify_fd, [this](const absl::StatusOr<uint32_t>& r) {
        if (r.ok()) {
          device_->Kick();
        } else {
          EndOperation();  // The last call.
        }
      });
}

void VirtioSlot::KickAt(TimePoint when) {
  const base::MutexLock lock(&mutex_);
  if (closing_) return;
  if (timer_.has_value()) {
    // One that is earlier comes in any case; the device asks again then.
    if (timer_->when <= when) return;
    loop_->Cancel(timer_->id);
  }
  ++outstanding_;
  timer_ = Timer{.when = when, .id = {}};
  timer_->id =
      loop_->StartTimer(when, [this, when](const absl::StatusOr<size_t>& r) {
        {
          const base::MutexLock timer_lock(&mutex_);
          if (timer_.has_value() && timer_->when == when) timer_.reset();
        }
        if (r.ok()) device_->Kick();
        EndOperation();
      });
}

void VirtioSlot::EndOperation() {
  const base::MutexLock lock(&mutex_);
  --outstanding_;
  ended_.NotifyAll();
}

}  // namespace catnap::vmm
