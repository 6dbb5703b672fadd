#include "virtio/balloon/balloon.h"

#include <sys/mman.h>

#include <array>

#include "base/byte_order.h"
#include "base/checked.h"

namespace catnap::virtio {
namespace {

constexpr uint64_t kFeatureStats = uint64_t{1} << 1;
constexpr uint64_t kFeatureReporting = uint64_t{1} << 5;
constexpr uint16_t kQueueSize = 64;
constexpr size_t kFirstOptionalQueue = 2;  // Behind inflate and deflate.
// num_pages, actual, free_page_hint_cmd_id, poison_val.
constexpr size_t kConfigBytes = 16;
constexpr uint64_t kPageSize = 4096;

// A figure: le16 tag, le64 value (virtio 1.2, 5.5.6.3.1).
constexpr size_t kFigureBytes = 10;
// As many as the kernel may have some day; what is behind is not looked at.
constexpr size_t kMaxFigures = 64;
enum class Figure : uint16_t {
  kSwapIn = 0,
  kSwapOut = 1,
  kMajorFaults = 2,
  kMinorFaults = 3,
  kFree = 4,
  kTotal = 5,
  kAvailable = 6,
  kCaches = 7,
};

// Field ids of a saved balloon; FORMAT: state/FORMAT.md.
constexpr uint32_t kStatsBufferField = 1;
static_assert(kStatsBufferField == 1,
              "field ids are on disk: read lib/state/FORMAT.md first");

void SetFigure(Figure figure, uint64_t value, BalloonStats* stats) {
  switch (figure) {
    case Figure::kSwapIn:
      stats->swapped_in_bytes = value;
      break;
    case Figure::kSwapOut:
      stats->swapped_out_bytes = value;
      break;
    case Figure::kMajorFaults:
      stats->major_faults = value;
      break;
    case Figure::kMinorFaults:
      stats->minor_faults = value;
      break;
    case Figure::kFree:
      stats->free_bytes = value;
      break;
    case Figure::kTotal:
      stats->total_bytes = value;
      break;
    case Figure::kAvailable:
      stats->available_bytes = value;
      break;
    case Figure::kCaches:
      stats->cache_bytes = value;
      break;
  }
}

}  // namespace

Balloon::Balloon(memory::GuestMemory* memory)
    : VirtioDevice(
          {.id = DeviceId::kBalloon,
           .features = kFeatureStats | kFeatureReporting,
           .queue_sizes = {kQueueSize, kQueueSize, kQueueSize, kQueueSize}},
          memory) {}

std::vector<uint8_t> Balloon::ConfigLocked() const {
  return std::vector<uint8_t>(kConfigBytes, 0);
}

bool Balloon::IsStatsQueueLocked(size_t index) const {
  return index == kFirstOptionalQueue &&
         (features_locked() & kFeatureStats) != 0;
}

bool Balloon::IsReportingQueueLocked(size_t index) const {
  const size_t before = (features_locked() & kFeatureStats) != 0 ? 1 : 0;
  return index == kFirstOptionalQueue + before &&
         (features_locked() & kFeatureReporting) != 0;
}

bool Balloon::WantsLocked(size_t index) {
  // One buffer of figures is enough.
  return !IsStatsQueueLocked(index) || !stats_buffer_.has_value();
}

SplitQueue::Use Balloon::UseOfLocked(size_t index) const {
  // Pages that the guest gives away are not read for that.
  return IsStatsQueueLocked(index) ? SplitQueue::Use::kBytes
                                   : SplitQueue::Use::kPlaces;
}

void Balloon::HandleLocked(size_t index, const Chain& chain) {
  if (IsStatsQueueLocked(index)) {
    ReadStatsLocked(chain);
    stats_buffer_ = chain.head();
    return;
  }
  // Nobody asked to inflate or deflate: such buffers go back as they are.
  if (IsReportingQueueLocked(index)) DiscardLocked(chain);
  PushLocked(index, chain.head(), 0);
}

void Balloon::DiscardLocked(const Chain& chain) {
  for (const iovec& piece : chain.writable()) {
    // Whole pages only; the host's and the guest's pages start together.
    const auto start = reinterpret_cast<uintptr_t>(piece.iov_base);
    const uintptr_t skipped = (0 - start) % kPageSize;
    if (skipped >= piece.iov_len) continue;
    const size_t size =
        base::AlignDown<size_t>(piece.iov_len - skipped, kPageSize);
    if (size == 0) continue;
    // An error leaves the pages as they are, which the guest does not mind.
    if (::madvise(static_cast<uint8_t*>(piece.iov_base) + skipped, size,
                  MADV_DONTNEED) == 0) {
      // relaxed: a statistic that orders nothing.
      reported_bytes_.fetch_add(size, std::memory_order_relaxed);
    }
  }
}

void Balloon::ReadStatsLocked(const Chain& chain) {
  std::array<uint8_t, kMaxFigures * kFigureBytes> bytes;
  const size_t size = chain.CopyOut(0, bytes);
  BalloonStats stats;
  for (size_t at = 0; at + kFigureBytes <= size; at += kFigureBytes) {
    SetFigure(static_cast<Figure>(base::LoadLe<uint16_t>(&bytes[at])),
              base::LoadLe<uint64_t>(&bytes[at + 2]), &stats);
  }
  // The first buffer, before anybody asked, has figures too.
  stats_ = stats;
}

void Balloon::RequestStats() {
  const base::MutexLock lock(&mutex_);
  if (!serving_locked() || !stats_buffer_.has_value() ||
      !ReachRingsLocked(kFirstOptionalQueue)) {
    return;
  }
  PushLocked(kFirstOptionalQueue, *stats_buffer_, 0);
  stats_buffer_.reset();
  InterruptLocked(kFirstOptionalQueue);
  // It may have another one there already.
  ServeQueueLocked(kFirstOptionalQueue);
}

std::optional<BalloonStats> Balloon::stats() const {
  const base::MutexLock lock(&mutex_);
  return stats_;
}

void Balloon::ResetLocked() {
  stats_.reset();
  stats_buffer_.reset();
}

void Balloon::SaveOwnLocked(state::StateEncoder& out) const {
  if (stats_buffer_.has_value())
    out.Unsigned(kStatsBufferField, *stats_buffer_);
}

absl::Status Balloon::LoadOwnLocked(state::StateDecoder in) {
  while (in.Next()) {
    if (in.id() == kStatsBufferField) stats_buffer_ = in.U16();
  }
  return in.status();
}

}  // namespace catnap::virtio
