#include "vmm/stored_pages.h"

#include <algorithm>
#include <utility>

#include "base/page_range.h"
#include "base/status.h"

namespace catnap::vmm {
namespace {

constexpr uint64_t kPage = base::kPageBytes;
// Of frames that are kept unpacked while single pages are brought.
constexpr size_t kKeptPages = (size_t{16} << 20) / kPage;
// Where a file's pages are there, the kernel maps as many around one that is
// touched (fault_around_bytes).
constexpr uint64_t kAroundBytes = uint64_t{64} << 10;
constexpr size_t kMaxTouched = (size_t{64} << 20) / kPage;

size_t KeptFrames(const snapshot::PageIndex& index) {
  size_t largest = 1;
  for (const snapshot::Frame& frame : index.frames) {
    largest = std::max<size_t>(largest, frame.pages);
  }
  return std::max<size_t>(kKeptPages / largest, 1);
}

}  // namespace

StoredPages::StoredPages(std::shared_ptr<const snapshot::SnapshotReader> reader,
                         snapshot::WorkerPool* pool, Bringing bringing)
    : reader_(std::move(reader)),
      pool_(pool),
      bringing_(bringing),
      brought_(reader_->index().frames.size()),
      order_(reader_->FramesInOrder()),
      unpacked_(bringing == Bringing::kTouched ? KeptFrames(reader_->index())
                                               : 1),
      met_(bringing == Bringing::kRest ? brought_.size() : 0) {
  if (bringing != Bringing::kRest) return;
  for (size_t i = 0; i < reader_->hot_frames(); ++i) {
    brought_[order_[i]].store(true);
  }
}

std::vector<base::PageRange> StoredPages::There() const {
  std::vector<base::PageRange> ranges;
  if (bringing_ != Bringing::kRest) return ranges;
  for (size_t i = 0; i < reader_->hot_frames(); ++i) {
    for (const snapshot::FramePlace& place : reader_->PlacesOf(order_[i])) {
      ranges.push_back(place.range);
    }
  }
  return ranges;
}

absl::Status StoredPages::PutFrame(size_t frame, std::span<const uint8_t> pages,
                                   memory::PutPages put) {
  for (const snapshot::FramePlace& place : reader_->PlacesOf(frame)) {
    CATNAP_RETURN_IF_ERROR(
        put(place.range, pages.data() + place.first * kPage));
  }
  brought_[frame].store(true);
  return absl::OkStatus();
}

absl::Status StoredPages::PutAround(size_t frame,
                                    std::span<const uint8_t> pages,
                                    uint64_t offset, memory::PutPages put) {
  const uint64_t from = offset / kAroundBytes * kAroundBytes;
  for (const snapshot::FramePlace& place : reader_->PlacesOf(frame)) {
    const uint64_t start = std::max(place.range.offset, from);
    const uint64_t end =
        std::min(place.range.offset + place.range.length, from + kAroundBytes);
    if (start >= end) continue;
    CATNAP_RETURN_IF_ERROR(
        put({.offset = start, .length = end - start},
            pages.data() + place.first * kPage + (start - place.range.offset)));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::span<const uint8_t>> StoredPages::Unpack(size_t frame) {
  for (const Unpacked& kept : unpacked_) {
    if (kept.frame == frame) return kept.pages;
  }
  if (!decompressor_.has_value()) {
    CATNAP_ASSIGN_OR_RETURN(decompressor_, codec::ZstdDecompressor::Create());
  }
  Unpacked& into = unpacked_[oldest_];
  oldest_ = (oldest_ + 1) % unpacked_.size();
  into.frame = SIZE_MAX;
  const std::span<uint8_t> pages =
      into.room.Get(reader_->index().frames[frame].pages * kPage);
  CATNAP_RETURN_IF_ERROR(
      reader_->ReadFrame(frame, &*decompressor_, &compressed_, pages));
  into.frame = frame;
  into.pages = pages;
  return into.pages;
}

absl::Status StoredPages::PutTouched(size_t frame, uint64_t offset,
                                     memory::PutPages put) {
  CATNAP_ASSIGN_OR_RETURN(const auto pages, Unpack(frame));
  for (const snapshot::FramePlace& place : reader_->PlacesOf(frame)) {
    if (offset - place.range.offset >= place.range.length) continue;
    touched_.push_back({.offset = offset, .length = kPage});
    return put(touched_.back(), pages.data() + place.first * kPage +
                                    (offset - place.range.offset));
  }
  return absl::InternalError("a stored page is in no frame");
}

absl::StatusOr<bool> StoredPages::Bring(uint64_t offset, memory::PutPages put) {
  const std::optional<size_t> frame = reader_->FrameAt(offset);
  if (!frame.has_value()) return false;
  if (brought_[*frame].load()) return true;
  const base::MutexLock lock(&mutex_);
  if (brought_[*frame].load()) return true;
  if (bringing_ == Bringing::kTouched && touched_.size() < kMaxTouched) {
    CATNAP_RETURN_IF_ERROR(PutTouched(*frame, offset, put));
    return true;
  }
  CATNAP_ASSIGN_OR_RETURN(const auto pages, Unpack(*frame));
  if (bringing_ == Bringing::kRest && !met_[*frame]) {
    met_[*frame] = true;
    CATNAP_RETURN_IF_ERROR(PutAround(*frame, pages, offset, put));
    return true;
  }
  CATNAP_RETURN_IF_ERROR(PutFrame(*frame, pages, put));
  return true;
}

absl::StatusOr<bool> StoredPages::BringMore(memory::PutPages put,
                                            const std::stop_token& stop) {
  if (stop.stop_requested()) {
    return absl::CancelledError("the guest's memory is not wanted any more");
  }
  while (next_ < order_.size() && brought_[order_[next_]].load()) ++next_;
  if (next_ == order_.size()) return false;
  const size_t frame = order_[next_++];
  if (!more_decompressor_.has_value()) {
    CATNAP_ASSIGN_OR_RETURN(more_decompressor_,
                            codec::ZstdDecompressor::Create());
  }
  const std::span<uint8_t> pages =
      more_.Get(reader_->index().frames[frame].pages * kPage);
  CATNAP_RETURN_IF_ERROR(reader_->ReadFrame(frame, &*more_decompressor_,
                                            &more_compressed_, pages));
  CATNAP_RETURN_IF_ERROR(PutFrame(frame, pages, put));
  return true;
}

absl::Status StoredPages::BringAll(
    memory::PutPages put, const std::stop_token& stop,
    std::optional<std::chrono::steady_clock::time_point> deadline) {
  snapshot::ReadOptions options;
  options.pool = pool_;
  options.deadline = deadline;
  options.stop = stop;
  if (bringing_ == Bringing::kRest) options.frames = snapshot::FrameSet::kRest;
  return reader_->ReadFrames(
      options, [this](size_t frame) { return !brought_[frame].load(); },
      [this, put](size_t frame, std::span<const uint8_t> pages) {
        return PutFrame(frame, pages, put);
      });
}

std::vector<base::PageRange> StoredPages::Touched() const {
  const base::MutexLock lock(&mutex_);
  // Two guests, or a guest and its devices, may touch a page at once.
  std::vector<base::PageRange> once;
  std::vector<bool> seen(reader_->ram_bytes() / kPage);
  for (const base::PageRange& range : touched_) {
    const size_t page = range.offset / kPage;
    if (!seen[page]) once.push_back(range);
    seen[page] = true;
  }
  return once;
}

}  // namespace catnap::vmm
