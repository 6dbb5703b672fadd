#ifndef CATNAP_LIB_VIRTIO_QUEUE_H_
#define CATNAP_LIB_VIRTIO_QUEUE_H_

#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "memory/gpa.h"
#include "memory/guest_memory.h"
#include "memory/page_waiter.h"
#include "virtio/chain.h"

namespace catnap::virtio {

// Feature bits that belong to the transport and its queues (virtio 1.2, 6).
inline constexpr uint64_t kFeatureIndirectDescriptors = uint64_t{1} << 28;
inline constexpr uint64_t kFeatureEventIndex = uint64_t{1} << 29;
inline constexpr uint64_t kFeatureVersion1 = uint64_t{1} << 32;

inline constexpr uint16_t kMaxQueueSize = 256;

// What the driver says of a queue before it is used.
struct QueueConfig {
  uint16_t size = 0;
  bool ready = false;
  memory::Gpa descriptors;  // Descriptor table.
  memory::Gpa driver;       // Available ring.
  memory::Gpa device;       // Used ring.

  friend bool operator==(const QueueConfig&, const QueueConfig&) = default;
};

// Where both sides of a queue are. All counts run through 2^16 and wrap.
struct QueueProgress {
  uint16_t next_available = 0;  // The next entry that the device takes.
  uint16_t next_used = 0;       // The next entry that the device fills.

  friend bool operator==(const QueueProgress&, const QueueProgress&) = default;
};

// The device's end of a split virtqueue (virtio 1.2, 2.7), with indirect
// descriptors and event index. The rings are memory that the guest writes to
// at any time: each value is read once, checked, and the copy used. A driver
// that breaks the rules gets an error, after which the queue must be reset.
//
// With a waiter the queue touches no page of the rings, and hands out no buffer
// with pages, that a pager has yet to read: it has them brought and tells the
// waiter when to look again. So nobody who serves a queue, or gives buffers
// back, stands still for a store.
//
// Thread-compatible; the guest may use its own end meanwhile.
class SplitQueue {
 public:
  // What a device does with the buffers that it takes.
  enum class Use {
    kBytes,   // Reads or writes what they hold.
    kPlaces,  // No more than to know where they are.
  };

  // `memory` is borrowed and must outlive the queue. Without `waiter` who
  // touches pages that are missing waits for them.
  explicit SplitQueue(memory::GuestMemory* memory,
                      std::shared_ptr<memory::PageWaiter> waiter = nullptr)
      : memory_(memory), waiter_(std::move(waiter)) {}

  // Checks that the rings lie in guest RAM and are aligned, and takes the
  // queue into use.
  // Errors: INVALID_ARGUMENT naming what the driver set wrong.
  absl::Status Start(const QueueConfig& config, uint64_t features,
                     QueueProgress progress = {});
  void Stop() { size_ = 0; }
  bool started() const { return size_ != 0; }
  // Whether the rings can be touched. If not, the waiter is told when they can.
  // REQUIRES: started(), and true before the calls below.
  bool ReachRings();
  uint16_t size() const { return size_; }
  // How many buffers the driver has made available that were not taken; at most
  // size(), whatever it says. REQUIRES: started(), ReachRings() was true.
  uint16_t waiting() const;
  QueueProgress progress() const { return progress_; }

  // Takes the next available buffer into `chain`; false: there is none, or
  // waits_for_pages(). The pieces stay valid as long as the guest memory.
  // REQUIRES: started().
  // Errors: INVALID_ARGUMENT, the driver broke a rule. Cost: in proportion to
  // the descriptors, of which at most Chain::kMaxPieces are looked at.
  absl::StatusOr<bool> Pop(Chain* chain, Use use = Use::kBytes);
  // The last Pop() found a buffer of which pages are missing, and left it. The
  // waiter is told when they are there.
  bool waits_for_pages() const { return waits_for_pages_; }
  // Gives the buffer with this head back, with `written` bytes written from
  // the start of its writable side. In any order. REQUIRES: started().
  void Push(uint16_t head, uint32_t written);

  // Whether the driver wants an interrupt for what was pushed since the last
  // call.
  bool TakeInterrupt();
  // Asks the driver not to notify: we look anyway. It may do so nevertheless.
  void DisableNotifications();
  // Asks the driver to notify of the next buffer. Returns true when there are
  // buffers already, for which no notification will come: pop again.
  bool EnableNotifications();

 private:
  struct Descriptor {
    uint64_t gpa;
    uint32_t length;
    uint16_t flags;
    uint16_t next;
  };

  // Whether these bytes of guest memory can be touched now.
  bool Reach(std::span<const iovec> parts);
  // A buffer's chain from descriptor `first`, `table` being descriptors in
  // guest memory.
  absl::Status Walk(std::span<const uint8_t> table, uint16_t first,
                    bool indirect, Chain* chain);
  absl::Status AddDescriptor(const Descriptor& descriptor, Chain* chain);
  static Descriptor ReadDescriptor(std::span<const uint8_t> table,
                                   size_t index);
  // Fields of the rings, by their offsets in them.
  uint16_t LoadAvailable(size_t offset) const;
  void StoreUsed16(size_t offset, uint16_t value);
  size_t used_event_offset() const { return 4 + size_t{2} * size_; }
  size_t available_event_offset() const { return 4 + size_t{8} * size_; }

  memory::GuestMemory* const memory_;  // Not owned.
  const std::shared_ptr<memory::PageWaiter> waiter_;
  bool rings_reached_ = false;  // Since Start().
  bool waits_for_pages_ = false;
  uint16_t size_ = 0;  // 0: not started.
  bool indirect_ = false;
  bool event_index_ = false;
  std::span<const uint8_t> descriptors_;
  std::span<const uint8_t> available_;
  std::span<uint8_t> used_;
  QueueProgress progress_;
  uint16_t interrupted_used_ = 0;  // next_used at the last TakeInterrupt().
};

}  // namespace catnap::virtio

#endif  // CATNAP_LIB_VIRTIO_QUEUE_H_
