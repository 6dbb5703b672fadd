#ifndef CATNAP_LIB_VIRTIO_VIRTIO_DEVICE_H_
#define CATNAP_LIB_VIRTIO_VIRTIO_DEVICE_H_

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "base/mutex.h"
#include "memory/guest_memory.h"
#include "memory/page_waiter.h"
#include "state/decoder.h"
#include "state/encoder.h"
#include "virtio/queue.h"

namespace catnap::virtio {

// Device ids (virtio 1.2, 5).
enum class DeviceId : uint32_t {
  kNet = 1,
  kBlock = 2,
  kEntropy = 4,
  kBalloon = 5,
  kVsock = 19,
};

// What a device says of itself, for good.
struct DeviceTraits {
  DeviceId id{};
  uint64_t features = 0;  // The device's own; the transport adds its bits.
  std::vector<uint16_t> queue_sizes;  // Each a power of two to kMaxQueueSize.
};

// What a device asks of the transport that carries it. Thread-safe; does not
// block.
class DeviceLink {
 public:
  virtual ~DeviceLink() = default;
  // Buffers were used that the driver wants to hear of.
  virtual void Interrupt() = 0;
  // The configuration space is now `config`; the driver is told.
  virtual void ChangeConfig(std::span<const uint8_t> config) = 0;
  // The driver broke the rules: the device needs a reset (virtio 1.2, 2.1.2)
  // and does nothing until then.
  virtual void NeedReset(const absl::Status& why) = 0;
  // Kick() again at `when`, or somewhat later. The last request stands.
  virtual void KickAt(std::chrono::steady_clock::time_point when) = 0;
};

// What all devices have in common: the life of their queues between
// DRIVER_OK and a reset.
//
// Thread safety: thread-safe. One mutex for each device; virtual functions
// whose names end in Locked are called with it held. So a device is served on
// whatever thread has something for it: the I/O loop that was kicked, the
// caller of the library who sends to the guest, a completion of file I/O.
//
// None of these threads waits for guest memory that a pager has yet to read: a
// queue whose next buffer, or whose rings, have pages that are missing stays as
// if the driver's kick were still to come, which the link is asked for when
// they are there. Where they cannot be read that never is.
class VirtioDevice {
 public:
  // `memory` is borrowed and must outlive the device.
  VirtioDevice(DeviceTraits traits, memory::GuestMemory* memory);
  virtual ~VirtioDevice() = default;
  VirtioDevice(const VirtioDevice&) = delete;
  VirtioDevice& operator=(const VirtioDevice&) = delete;

  const DeviceTraits& traits() const { return traits_; }
  // Set once, before anything else; borrowed until it is set to null.
  void SetLink(DeviceLink* link);

  // The configuration space as the driver finds it. At most
  // kMaxConfigBytes.
  static constexpr size_t kMaxConfigBytes = 256;
  std::vector<uint8_t> Config() const;
  // The driver wrote there. Does nothing by default: most fields are for
  // reading only.
  virtual void WriteConfig(uint64_t offset, std::span<const uint8_t> bytes);

  // The driver is ready. One entry of `queues` for each queue; those that are
  // not ready stay unused. Buffers that wait are served before this returns.
  // Errors: INVALID_ARGUMENT, what the driver set wrong; nothing is started.
  absl::Status Activate(uint64_t features, std::span<const QueueConfig> queues);
  // Back to the state before Activate(). Returns when nothing touches guest
  // memory any more, so it may block as long as file I/O in flight does.
  void Reset();

  // Serves the queues: the driver made buffers available, or time has come.
  void Kick();

  // Stops serving and returns when nothing is in flight, so that SaveState()
  // sees a state that stands. May block as Reset(). Idempotent.
  void Quiesce();
  // Serves again, as if kicked, after Quiesce() or LoadState(), and interrupts
  // the driver once: what it was to hear of before may be lost.
  void Resume();
  // The same without the interrupt: for a driver that never stopped, and lost
  // nothing. REQUIRES: Quiesce() came before, and no LoadState() since.
  void Continue();

  // Whether Quiesce() left requests undone that SaveState() knows nothing of:
  // the device cannot be saved now.
  virtual bool holds_requests() const { return false; }

  // Saves what LoadState() needs beside what the transport saves.
  // REQUIRES: quiesced.
  void SaveState(state::StateEncoder& out) const;
  // Instead of Activate(), for a device that was active when it was saved, and
  // did not need a reset. The device is quiesced afterwards.
  // Errors: DATA_LOSS, INVALID_ARGUMENT; the device is of no more use.
  absl::Status LoadState(uint64_t features, std::span<const QueueConfig> queues,
                         state::StateDecoder in);

 protected:
  memory::GuestMemory& memory() const { return *memory_; }
  // Whether the device may take buffers.
  bool serving_locked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return active_ && !quiesced_ && !failed_;
  }
  // Whether the driver is there. In DrainLocked(): false for a reset.
  bool active_locked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return active_;
  }
  uint64_t features_locked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return features_;
  }
  // Whether the rings of queue `index` can be touched; if not, it is served
  // when they can. For who gives buffers back that this process did not take.
  bool ReachRingsLocked(size_t index) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Serves queue `index` as far as WantsLocked() goes: for devices that learn
  // from elsewhere than the driver that they can go on.
  void ServeQueueLocked(size_t index) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The size of a queue, and how many of its buffers wait for the device; both
  // 0 while it is not in use, or its rings cannot be touched yet.
  struct QueueFill {
    uint16_t size = 0;
    uint16_t waiting = 0;
  };
  QueueFill FillOfQueueLocked(size_t index)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Gives a buffer back that HandleLocked() took, now or later.
  void PushLocked(size_t index, uint16_t head, uint32_t written)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Interrupts the driver if it wants to hear of what was pushed. The serving
  // of a queue ends with it; a later PushLocked() needs it.
  void InterruptLocked(size_t index) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void FailLocked(const absl::Status& why)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void KickAtLocked(std::chrono::steady_clock::time_point when)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ChangeConfigLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  mutable base::Mutex mutex_;

 private:
  virtual std::vector<uint8_t> ConfigLocked() const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) = 0;
  // Whether the device can do something with another buffer of the queue.
  virtual bool WantsLocked(size_t /*index*/)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return true;
  }
  // Whether HandleLocked() looks at what buffers of the queue hold, or writes
  // to them.
  virtual SplitQueue::Use UseOfLocked(size_t /*index*/) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return SplitQueue::Use::kBytes;
  }
  // Serves one buffer: it is the device's until PushLocked(). `chain` is used
  // again for the next one.
  virtual void HandleLocked(size_t index, const Chain& chain)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) = 0;
  // Waits until nothing is in flight. serving_locked() is false meanwhile, and
  // the mutex may be released.
  virtual void DrainLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {}
  // The driver is gone: forgets what it knew of it. Nothing is in flight.
  virtual void ResetLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {}
  // Serving starts again after Quiesce() or LoadState().
  virtual void ResumeLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {}
  // Comes after each Activate(), Reset(), Kick(), Resume() and Continue(), on
  // the same thread, with no lock held: what was learnt may be told to others.
  virtual void AfterServing() {}
  virtual void SaveOwnLocked(state::StateEncoder& out) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) = 0;
  virtual absl::Status LoadOwnLocked(state::StateDecoder in)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) = 0;

  absl::Status StartQueuesLocked(uint64_t features,
                                 std::span<const QueueConfig> queues,
                                 std::span<const QueueProgress> progress)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ServeAgain(bool interrupt);
  void ServeAllLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void StopLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const DeviceTraits traits_;
  memory::GuestMemory* const memory_;  // Not owned.
  // Of each queue: since each asks for one thing at a time.
  std::vector<std::shared_ptr<memory::PageWaiter>> waiters_;
  DeviceLink* link_ ABSL_GUARDED_BY(mutex_) = nullptr;
  bool active_ ABSL_GUARDED_BY(mutex_) = false;
  bool quiesced_ ABSL_GUARDED_BY(mutex_) = false;
  bool failed_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t features_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<SplitQueue> queues_ ABSL_GUARDED_BY(mutex_);
  Chain chain_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace catnap::virtio

#endif  // CATNAP_LIB_VIRTIO_VIRTIO_DEVICE_H_
