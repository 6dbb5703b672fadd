#ifndef CATNAP_LIB_SNAPSHOT_WRITER_H_
#define CATNAP_LIB_SNAPSHOT_WRITER_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/page_range.h"
#include "snapshot/format.h"
#include "snapshot/page_index.h"
#include "snapshot/worker_pool.h"
#include "state/saved_section.h"

namespace catnap::snapshot {

// Pages in a frame. lib/README.md says why so many.
inline constexpr uint32_t kFramePages = 128;
// Of the hot set, which a restore waits for: enough frames for every thread.
inline constexpr uint32_t kHotFramePages = 32;
// For what is stored once and read often, such as an image: a sixth smaller
// than at level 1 and as fast to read, for seven times the CPU time.
inline constexpr int kImageLevel = 10;
inline constexpr uint32_t kImageFramePages = kMaxFramePages;

struct WriteOptions {
  WorkerPool* pool = nullptr;  // Borrowed.
  int level = 1;               // Of zstd.
  // In a frame that is not of the hot set, 1 to kMaxFramePages. Fewer where
  // memory or what is stored is too little for each thread to have two.
  uint32_t frame_pages = kFramePages;
  // All that was written survives a crash of the machine, the names in the
  // directory included (not the directory's own name).
  bool durable = true;
  // Of the buffers between memory and disk, 2 MiB at least; what the pool's
  // threads keep is not counted.
  size_t max_memory_bytes = size_t{32} << 20;
  // Gives up: CANCELLED, or DEADLINE_EXCEEDED.
  std::stop_token stop{};
  std::optional<std::chrono::steady_clock::time_point> deadline{};
  bool plain_io = false;  // Never io_uring.
};

// The snapshot that a guest was resumed from.
struct BaseSnapshot {
  const PageIndex* index = nullptr;
  std::string directory;  // Where its chunk files are.
};

// What becomes a snapshot. Everything is borrowed for the call.
struct SnapshotContent {
  std::span<const state::SavedSection> sections{};
  // All of the guest's RAM. Its bytes must not change meanwhile. Only pages of
  // `changed` are read.
  std::span<const uint8_t> memory{};
  // The pages that may differ from the base, or without one from the parent, or
  // without that from zeros. By offset, without overlap.
  std::span<const base::PageRange> changed{};
  // The image that the guest was made from; none: this snapshot needs no other.
  std::optional<Id> parent{};
  // The parent's RAM; pages of `changed` that are equal to it are not stored.
  // Empty: not compared. Otherwise as large as `memory`.
  std::span<const uint8_t> parent_memory{};
  // Its pages outside `changed` are taken over, its files hard-linked (copied
  // where the file system cannot). Has the same parent and size.
  std::optional<BaseSnapshot> base{};
  // What is stored first, in this order, of what is in `changed`.
  std::span<const base::PageRange> hot{};
};

struct WrittenSnapshot {
  Id id{};
  PageIndex index;
  uint64_t written_bytes = 0;  // Of new files; links are not counted.
  uint64_t own_bytes = 0;      // Of OwnRanges(index).
  // What became of the pages of `changed`.
  uint64_t stored_pages = 0;
  uint64_t zero_pages = 0;
  uint64_t parent_pages = 0;
};

// Writes a snapshot into `directory`, which exists and is empty. After an error
// the caller removes what is there. Blocks; reads memory and waits for the disk
// on this thread, which must have SIGXFSZ blocked where RLIMIT_FSIZE is set,
// and compresses on the pool. Thread-safe.
// Errors:
//   INVALID_ARGUMENT     ranges, sizes, level or options that cannot be
//   FAILED_PRECONDITION  another parent than the base's; base with too many
//                        files (ShouldCompact() says so in time)
//   RESOURCE_EXHAUSTED   disk, quota, file size limit, memory
//   CANCELLED, DEADLINE_EXCEEDED; others as the system says
absl::StatusOr<WrittenSnapshot> WriteSnapshot(const std::string& directory,
                                              const SnapshotContent& content,
                                              const WriteOptions& options);

}  // namespace catnap::snapshot

#endif  // CATNAP_LIB_SNAPSHOT_WRITER_H_
