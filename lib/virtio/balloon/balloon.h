#ifndef CATNAP_LIB_VIRTIO_BALLOON_BALLOON_H_
#define CATNAP_LIB_VIRTIO_BALLOON_BALLOON_H_

#include <atomic>
#include <cstdint>
#include <optional>
#include <vector>

#include "virtio/virtio_device.h"

namespace catnap::virtio {

// What the guest says of its memory. It may say anything.
struct BalloonStats {
  std::optional<uint64_t> free_bytes{};
  std::optional<uint64_t> total_bytes{};
  std::optional<uint64_t> available_bytes{};  // Free or easily freed.
  std::optional<uint64_t> cache_bytes{};
  std::optional<uint64_t> swapped_in_bytes{};
  std::optional<uint64_t> swapped_out_bytes{};
  std::optional<uint64_t> major_faults{};
  std::optional<uint64_t> minor_faults{};
};

// The balloon (virtio 1.2, 5.5) for two things only: the guest reports pages
// that it does not use, which go back to the host, and it tells figures of
// its memory. It is never asked to inflate; F_PAGE_POISON is never offered: it
// turns reporting off in kernels with init_on_free.
class Balloon final : public VirtioDevice {
 public:
  explicit Balloon(memory::GuestMemory* memory);

  // Asks the guest for new figures; stats() has them when it has answered.
  // Does not block.
  void RequestStats();
  // The latest figures; empty until the guest has told some.
  std::optional<BalloonStats> stats() const;

  // Bytes that were given back to the host so far.
  uint64_t reported_bytes() const {
    // relaxed: a statistic that orders nothing.
    return reported_bytes_.load(std::memory_order_relaxed);
  }

 private:
  std::vector<uint8_t> ConfigLocked() const override
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void HandleLocked(size_t index, const Chain& chain) override
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool WantsLocked(size_t index) override ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  SplitQueue::Use UseOfLocked(size_t index) const override
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ResetLocked() override ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SaveOwnLocked(state::StateEncoder& out) const override
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status LoadOwnLocked(state::StateDecoder in) override
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // Queues are numbered without those of features that were not negotiated
  // (virtio 1.2, 5.5.2).
  bool IsStatsQueueLocked(size_t index) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool IsReportingQueueLocked(size_t index) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void DiscardLocked(const Chain& chain) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ReadStatsLocked(const Chain& chain)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  std::optional<BalloonStats> stats_ ABSL_GUARDED_BY(mutex_);
  // The buffer that we keep until new figures are wanted.
  std::optional<uint16_t> stats_buffer_ ABSL_GUARDED_BY(mutex_);
  std::atomic<uint64_t> reported_bytes_{0};
};

}  // namespace catnap::virtio

#endif  // CATNAP_LIB_VIRTIO_BALLOON_BALLOON_H_
