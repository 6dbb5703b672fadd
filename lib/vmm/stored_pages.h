#ifndef CATNAP_LIB_VMM_STORED_PAGES_H_
#define CATNAP_LIB_VMM_STORED_PAGES_H_

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "base/mutex.h"
#include "base/scratch_buffer.h"
#include "codec/zstd_codec.h"
#include "memory/pager.h"
#include "snapshot/reader.h"
#include "snapshot/worker_pool.h"

namespace catnap::vmm {

// How pages of a stored guest are brought.
enum class Bringing {
  kAll,      // Whole frames.
  kRest,     // The same, but those of the hot set are there already.
  kTouched,  // Single pages, and in which order they are touched is recorded.
};

// Pages of a stored guest for the pager of its memory. What somebody waits for
// is read and unpacked on the pager's thread, whole frames; in the background
// one thread goes through all in their order, and for who waits for all the
// pool does. Each frame is brought once by one of them, mostly. While the
// background comes with all, the first who waits for a page of a frame gets it
// and its neighbours, and goes on; the second has the whole frame brought.
class StoredPages final : public memory::PageSupply {
 public:
  // `pool` is borrowed.
  StoredPages(std::shared_ptr<const snapshot::SnapshotReader> reader,
              snapshot::WorkerPool* pool, Bringing bringing);

  std::vector<base::PageRange> There() const override;
  // Errors: DATA_LOSS, naming file and frame; as the system says.
  absl::StatusOr<bool> Bring(uint64_t offset, memory::PutPages put) override;
  absl::StatusOr<bool> BringMore(memory::PutPages put,
                                 const std::stop_token& stop) override;
  absl::Status BringAll(
      memory::PutPages put, const std::stop_token& stop,
      std::optional<std::chrono::steady_clock::time_point> deadline) override;

  // With kTouched: which pages were, in that order. The first 64 MiB.
  std::vector<base::PageRange> Touched() const;

 private:
  // A frame that was read, and its pages.
  struct Unpacked {
    size_t frame = SIZE_MAX;
    base::ScratchBuffer room;
    std::span<const uint8_t> pages;
  };

  absl::StatusOr<std::span<const uint8_t>> Unpack(size_t frame)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status PutTouched(size_t frame, uint64_t offset, memory::PutPages put)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What a fault at `offset` has entered into the page table with its page.
  absl::Status PutAround(size_t frame, std::span<const uint8_t> pages,
                         uint64_t offset, memory::PutPages put);
  absl::Status PutFrame(size_t frame, std::span<const uint8_t> pages,
                        memory::PutPages put);

  const std::shared_ptr<const snapshot::SnapshotReader> reader_;
  snapshot::WorkerPool* const pool_;  // Not owned.
  const Bringing bringing_;
  std::vector<std::atomic<bool>> brought_;  // By frame.

  // Of BringMore().
  const std::vector<size_t> order_;
  size_t next_ = 0;
  std::optional<codec::ZstdDecompressor> more_decompressor_;
  base::ScratchBuffer more_compressed_;
  base::ScratchBuffer more_;

  mutable base::Mutex mutex_;  // Held while a frame is read: one at a time.
  std::optional<codec::ZstdDecompressor> decompressor_ ABSL_GUARDED_BY(mutex_);
  base::ScratchBuffer compressed_ ABSL_GUARDED_BY(mutex_);
  // The last ones. One is enough but for kTouched, which comes back to them.
  std::vector<Unpacked> unpacked_ ABSL_GUARDED_BY(mutex_);
  size_t oldest_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<base::PageRange> touched_ ABSL_GUARDED_BY(mutex_);
  // With kRest: frames of which somebody waited for a page, by frame.
  std::vector<bool> met_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace catnap::vmm

#endif  // CATNAP_LIB_VMM_STORED_PAGES_H_
