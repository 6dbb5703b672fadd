#include "vmm/stored_pages.h"

#include <utility>

#include "base/page_range.h"
#include "base/status.h"

namespace catnap::vmm {

StoredPages::StoredPages(std::shared_ptr<const snapshot::SnapshotReader> reader,
                         snapshot::WorkerPool* pool, bool has_hot_set)
    : reader_(std::move(reader)),
      pool_(pool),
      has_hot_set_(has_hot_set),
      brought_(reader_->index().frames.size()) {
  if (!has_hot_set) return;
  const std::vector<size_t> order = reader_->FramesInOrder();
  for (size_t i = 0; i < reader_->hot_frames(); ++i) {
    brought_[order[i]].store(true);
  }
}

absl::Status StoredPages::PutFrame(size_t frame, std::span<const uint8_t> pages,
                                   memory::PutPages put) {
  for (const snapshot::FramePlace& place : reader_->PlacesOf(frame)) {
    CATNAP_RETURN_IF_ERROR(
        put(place.range, pages.data() + place.first * base::kPageBytes));
  }
  brought_[frame].store(true);
  return absl::OkStatus();
}

absl::StatusOr<bool> StoredPages::Bring(uint64_t offset, memory::PutPages put) {
  const std::optional<size_t> frame = reader_->FrameAt(offset);
  if (!frame.has_value()) return false;
  if (brought_[*frame].load()) return true;
  const base::MutexLock lock(&mutex_);
  if (brought_[*frame].load()) return true;
  if (!decompressor_.has_value()) {
    CATNAP_ASSIGN_OR_RETURN(decompressor_, codec::ZstdDecompressor::Create());
  }
  frame_.resize(reader_->index().frames[*frame].pages * base::kPageBytes);
  CATNAP_RETURN_IF_ERROR(reader_->ReadFrame(*frame, &*decompressor_, frame_));
  CATNAP_RETURN_IF_ERROR(PutFrame(*frame, frame_, put));
  return true;
}

absl::Status StoredPages::BringAll(memory::PutPages put,
                                   const std::stop_token& stop) {
  snapshot::ReadOptions options;
  options.pool = pool_;
  options.stop = stop;
  options.frames =
      has_hot_set_ ? snapshot::FrameSet::kRest : snapshot::FrameSet::kAll;
  return reader_->ReadFrames(
      options, [this](size_t frame) { return !brought_[frame].load(); },
      [this, put](size_t frame, std::span<const uint8_t> pages) {
        return PutFrame(frame, pages, put);
      });
}

}  // namespace catnap::vmm
