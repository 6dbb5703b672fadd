#ifndef CATNAP_LIB_VMM_STORED_PAGES_H_
#define CATNAP_LIB_VMM_STORED_PAGES_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <stop_token>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "base/mutex.h"
#include "codec/zstd_codec.h"
#include "memory/pager.h"
#include "snapshot/reader.h"
#include "snapshot/worker_pool.h"

namespace catnap::vmm {

// Pages of a stored guest for the pager of its memory. What somebody waits for
// is read and unpacked on the pager's thread, whole frames, and all in order by
// the pool; each frame is brought once by either, mostly.
class StoredPages final : public memory::PageSupply {
 public:
  // `pool` is borrowed. Frames of the hot set are there already when
  // `has_hot_set`.
  StoredPages(std::shared_ptr<const snapshot::SnapshotReader> reader,
              snapshot::WorkerPool* pool, bool has_hot_set);

  // Errors: DATA_LOSS, naming file and frame; as the system says.
  absl::StatusOr<bool> Bring(uint64_t offset, memory::PutPages put) override;
  absl::Status BringAll(memory::PutPages put,
                        const std::stop_token& stop) override;

 private:
  absl::Status PutFrame(size_t frame, std::span<const uint8_t> pages,
                        memory::PutPages put);

  const std::shared_ptr<const snapshot::SnapshotReader> reader_;
  snapshot::WorkerPool* const pool_;  // Not owned.
  const bool has_hot_set_;
  std::vector<std::atomic<bool>> brought_;  // By frame.

  base::Mutex mutex_;  // Held while a frame is read: one at a time.
  std::optional<codec::ZstdDecompressor> decompressor_ ABSL_GUARDED_BY(mutex_);
  std::vector<uint8_t> frame_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace catnap::vmm

#endif  // CATNAP_LIB_VMM_STORED_PAGES_H_
