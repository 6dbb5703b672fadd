#include "virtio/queue.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstring>

#include "base/byte_order.h"
#include "base/checked.h"
#include "base/status.h"

namespace catnap::virtio {
namespace {

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

// Descriptor flags (virtio 1.2, 2.7.5).
constexpr uint16_t kNext = 1;
constexpr uint16_t kWrite = 2;
constexpr uint16_t kIndirect = 4;
constexpr size_t kDescriptorBytes = 16;

// Both rings: flags, index, entries, event.
constexpr size_t kFlagsOffset = 0;
constexpr size_t kIndexOffset = 2;
constexpr size_t kRingOffset = 4;
constexpr size_t kUsedEntryBytes = 8;
constexpr uint16_t kAvailableNoInterrupt = 1;
constexpr uint16_t kUsedNoNotify = 1;

static_assert(std::endian::native == std::endian::little,
              "the rings are little-endian and are accessed as they are");

// Resolves a part of a queue. Its address must be aligned.
absl::StatusOr<std::span<uint8_t>> Resolve(const memory::GuestMemory& memory,
                                           const char* what, memory::Gpa gpa,
                                           uint64_t bytes, uint64_t alignment) {
  if (!base::IsAligned(gpa.value, alignment)) {
    return Error(kInvalid, "the {} at gpa {:#x} is not aligned to {}", what,
                 gpa.value, alignment);
  }
  auto slice = memory.Slice(gpa, bytes);
  if (!slice.ok()) {
    return Error(kInvalid, "the {} ({} bytes at gpa {:#x}) is not in guest RAM",
                 what, bytes, gpa.value);
  }
  return *slice;
}

template <typename T>
T LoadShared(const uint8_t* from) {
  // acquire: what the driver wrote before this value is seen after it.
  return std::atomic_ref<const T>(*reinterpret_cast<const T*>(from))
      .load(std::memory_order_acquire);
}

template <typename T>
void StoreShared(uint8_t* to, T value) {
  // release: a driver that sees this value sees what was written before it.
  std::atomic_ref<T>(*reinterpret_cast<T*>(to))
      .store(value, std::memory_order_release);
}

// Orders a store before a later load, which acquire and release do not. A
// builtin, since the thread sanitizer refuses std::atomic_thread_fence().
void FullBarrier() { __sync_synchronize(); }

}  // namespace

absl::Status SplitQueue::Start(const QueueConfig& config, uint64_t features,
                               QueueProgress progress) {
  size_ = 0;
  if (config.size == 0 || config.size > kMaxQueueSize ||
      !std::has_single_bit(config.size)) {
    return Error(kInvalid,
                 "the queue size is {}, must be a power of two up to {}",
                 config.size, kMaxQueueSize);
  }
  const uint64_t size = config.size;
  CATNAP_ASSIGN_OR_RETURN(
      descriptors_, Resolve(*memory_, "descriptor table", config.descriptors,
                            size * kDescriptorBytes, 16));
  CATNAP_ASSIGN_OR_RETURN(available_,
                          Resolve(*memory_, "available ring", config.driver,
                                  kRingOffset + size * 2 + 2, 2));
  CATNAP_ASSIGN_OR_RETURN(used_,
                          Resolve(*memory_, "used ring", config.device,
                                  kRingOffset + size * kUsedEntryBytes + 2, 4));
  indirect_ = (features & kFeatureIndirectDescriptors) != 0;
  event_index_ = (features & kFeatureEventIndex) != 0;
  progress_ = progress;
  interrupted_used_ = progress.next_used;
  size_ = config.size;
  rings_reached_ = false;
  waits_for_pages_ = false;
  return absl::OkStatus();
}

bool SplitQueue::Reach(std::span<const iovec> parts) {
  return waiter_ == nullptr || !memory_->may_miss_pages() ||
         memory_->BringSoon(parts, waiter_);
}

bool SplitQueue::ReachRings() {
  if (rings_reached_) return true;  // Pages that are there stay.
  const auto part = [](std::span<const uint8_t> bytes) {
    // iovec has no const.
    return iovec{.iov_base = const_cast<uint8_t*>(bytes.data()),
                 .iov_len = bytes.size()};
  };
  rings_reached_ =
      Reach(std::array{part(descriptors_), part(available_), part(used_)});
  return rings_reached_;
}

uint16_t SplitQueue::LoadAvailable(size_t offset) const {
  return LoadShared<uint16_t>(available_.data() + offset);
}

void SplitQueue::StoreUsed16(size_t offset, uint16_t value) {
  StoreShared<uint16_t>(used_.data() + offset, value);
}

SplitQueue::Descriptor SplitQueue::ReadDescriptor(
    std::span<const uint8_t> table, size_t index) {
  uint8_t copy[kDescriptorBytes];
  std::memcpy(copy, table.data() + index * kDescriptorBytes, sizeof(copy));
  // The compiler must not go back to the guest's memory for a second look at
  // what is checked below.
  asm volatile("" : "+m"(copy));
  return {.gpa = base::LoadLe<uint64_t>(copy),
          .length = base::LoadLe<uint32_t>(copy + 8),
          .flags = base::LoadLe<uint16_t>(copy + 12),
          .next = base::LoadLe<uint16_t>(copy + 14)};
}

uint16_t SplitQueue::waiting() const {
  const auto waiting = static_cast<uint16_t>(LoadAvailable(kIndexOffset) -
                                             progress_.next_available);
  return std::min(waiting, size_);
}

absl::StatusOr<bool> SplitQueue::Pop(Chain* chain, Use use) {
  waits_for_pages_ = false;
  const uint16_t available = LoadAvailable(kIndexOffset);
  const auto waiting =
      static_cast<uint16_t>(available - progress_.next_available);
  if (waiting == 0) return false;
  if (waiting > size_) {
    return Error(kInvalid,
                 "the available index says that {} buffers wait in a queue of "
                 "{}",
                 waiting, size_);
  }
  const size_t slot = progress_.next_available % size_;
  const uint16_t head = LoadAvailable(kRingOffset + slot * 2);
  if (head >= size_) {
    return Error(kInvalid, "buffer {} was made available in a queue of {}",
                 head, size_);
  }
  chain->Clear(head);
  CATNAP_RETURN_IF_ERROR(Walk(descriptors_, head, false, chain));
  if (!waits_for_pages_ && use == Use::kBytes) {
    waits_for_pages_ = !Reach(chain->pieces());
  }
  // It is read anew when they are there: the driver may have changed it.
  if (waits_for_pages_) return false;
  ++progress_.next_available;
  return true;
}

absl::Status SplitQueue::Walk(std::span<const uint8_t> table, uint16_t first,
                              bool indirect, Chain* chain) {
  const size_t entries = table.size() / kDescriptorBytes;
  size_t index = first;
  // A chain that is longer than its table has a loop.
  for (size_t steps = 0; steps < entries; ++steps) {
    if (index >= entries) {
      return Error(kInvalid, "descriptor {} is named in a table of {}", index,
                   entries);
    }
    const Descriptor descriptor = ReadDescriptor(table, index);
    if ((descriptor.flags & kIndirect) != 0) {
      if (!indirect_ || indirect || (descriptor.flags & kNext) != 0) {
        return Error(kInvalid, "descriptor {} is indirect where it must not be",
                     index);
      }
      // A table of any length may be offered; only so much of it can be used.
      if (descriptor.length == 0 || descriptor.length % kDescriptorBytes != 0 ||
          descriptor.length > Chain::kMaxPieces * kDescriptorBytes) {
        return Error(kInvalid,
                     "an indirect table has {} bytes, must be a multiple of {} "
                     "up to {}",
                     descriptor.length, kDescriptorBytes,
                     Chain::kMaxPieces * kDescriptorBytes);
      }
      const auto inner =
          memory_->Slice(memory::Gpa{descriptor.gpa}, descriptor.length);
      if (!inner.ok()) {
        return Error(kInvalid,
                     "an indirect table ({} bytes at gpa {:#x}) is not in "
                     "guest RAM",
                     descriptor.length, descriptor.gpa);
      }
      const iovec table_part{.iov_base = inner->data(),
                             .iov_len = inner->size()};
      waits_for_pages_ = !Reach({&table_part, 1});
      if (waits_for_pages_) return absl::OkStatus();
      return Walk(*inner, 0, true, chain);
    }
    CATNAP_RETURN_IF_ERROR(AddDescriptor(descriptor, chain));
    if ((descriptor.flags & kNext) == 0) return absl::OkStatus();
    index = descriptor.next;
  }
  return Error(kInvalid, "a descriptor chain has a loop");
}

absl::Status SplitQueue::AddDescriptor(const Descriptor& descriptor,
                                       Chain* chain) {
  const auto bytes =
      memory_->Slice(memory::Gpa{descriptor.gpa}, descriptor.length);
  if (!bytes.ok()) {
    return Error(kInvalid,
                 "a buffer of {} bytes at gpa {:#x} is not in guest RAM",
                 descriptor.length, descriptor.gpa);
  }
  if (!chain->Add(*bytes, (descriptor.flags & kWrite) != 0)) {
    return Error(kInvalid,
                 "a descriptor chain has more than {} parts or 2^32 - 1 bytes, "
                 "or a readable part behind a writable one",
                 Chain::kMaxPieces);
  }
  return absl::OkStatus();
}

void SplitQueue::Push(uint16_t head, uint32_t written) {
  const size_t slot = progress_.next_used % size_;
  uint8_t* const entry = used_.data() + kRingOffset + slot * kUsedEntryBytes;
  StoreShared<uint32_t>(entry, head);
  StoreShared<uint32_t>(entry + 4, written);
  ++progress_.next_used;
  StoreUsed16(kIndexOffset, progress_.next_used);
}

bool SplitQueue::TakeInterrupt() {
  const uint16_t before = interrupted_used_;
  const uint16_t now = progress_.next_used;
  if (before == now) return false;
  interrupted_used_ = now;
  // The used index must be out before we look at what the driver wants: it
  // writes its wish, then looks at the index.
  FullBarrier();
  if (!event_index_) {
    return (LoadAvailable(kFlagsOffset) & kAvailableNoInterrupt) == 0;
  }
  // Whether the index went past the event (virtio 1.2, 2.7.7.1).
  const uint16_t event = LoadAvailable(used_event_offset());
  return static_cast<uint16_t>(now - event - 1) <
         static_cast<uint16_t>(now - before);
}

void SplitQueue::DisableNotifications() {
  // With event index an event that lies behind asks for nothing.
  if (!event_index_) StoreUsed16(kFlagsOffset, kUsedNoNotify);
}

bool SplitQueue::EnableNotifications() {
  if (event_index_) {
    StoreUsed16(available_event_offset(), progress_.next_available);
  } else {
    StoreUsed16(kFlagsOffset, 0);
  }
  // Our wish must be out before we look: the driver writes its index, then
  // looks at our wish.
  FullBarrier();
  return LoadAvailable(kIndexOffset) != progress_.next_available;
}

}  // namespace catnap::virtio
