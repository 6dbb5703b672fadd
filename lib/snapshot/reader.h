#ifndef CATNAP_LIB_SNAPSHOT_READER_H_
#define CATNAP_LIB_SNAPSHOT_READER_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/page_range.h"
#include "base/scratch_buffer.h"
#include "base/unique_fd.h"
#include "snapshot/format.h"
#include "snapshot/page_index.h"
#include "snapshot/worker_pool.h"
#include "state/saved_section.h"

namespace catnap::snapshot {

// Which frames are read.
enum class FrameSet {
  kAll,
  kHot,   // Of the hot set.
  kRest,  // All others.
};

struct ReadOptions {
  WorkerPool* pool = nullptr;  // Borrowed.
  // Gives up: CANCELLED, or DEADLINE_EXCEEDED.
  std::stop_token stop{};
  std::optional<std::chrono::steady_clock::time_point> deadline{};
  bool plain_io = false;  // Never io_uring.
  FrameSet frames = FrameSet::kAll;
};

// Takes pages that follow each other in RAM: their place there, and their
// bytes. Called on threads of the pool, on several at once.
using PutPages =
    absl::FunctionRef<absl::Status(base::PageRange, const uint8_t*)>;

// Where pages of a frame belong.
struct FramePlace {
  uint32_t first = 0;  // Of the frame's pages.
  base::PageRange range;
};

// One snapshot's directory. What it holds may be hostile.
//
// Thread-compatible, and nothing changes after Open(). Holds a descriptor for
// each chunk file; the directory may be removed.
class SnapshotReader {
 public:
  // Reads and checks everything but the frames: memory.catnap to its last byte,
  // and that each chunk file is there, is the right one and has its size.
  // Errors:
  //   NOT_FOUND       no memory.catnap in `directory`
  //   DATA_LOSS       damaged, cut, or a wrong file
  //   UNIMPLEMENTED   of a newer writer
  //   RESOURCE_EXHAUSTED, others as the system says
  static absl::StatusOr<std::unique_ptr<SnapshotReader>> Open(
      const std::string& directory);
  SnapshotReader(const SnapshotReader&) = delete;
  SnapshotReader& operator=(const SnapshotReader&) = delete;

  const Id& id() const { return header_.id; }
  // The image whose memory lies below; none: zeros do.
  std::optional<Id> parent() const;
  uint64_t ram_bytes() const { return header_.ram_bytes; }
  const std::vector<state::SavedSection>& sections() const { return sections_; }
  const PageIndex& index() const { return index_; }
  // Of memory.catnap and the chunk files.
  uint64_t stored_bytes() const;

  // Gives `put` the pages that `options` name, the hot set first. Pages of
  // other kinds are zeros, or the parent's. Blocks; reads on this thread,
  // decompresses on the pool. Memory: 8 MiB. Every byte is checked before it is
  // used; after an error a part was put, and nothing of a frame that is
  // damaged. Errors: DATA_LOSS, naming file and frame; CANCELLED,
  // DEADLINE_EXCEEDED; as `put`.
  absl::Status ReadPages(PutPages put, const ReadOptions& options) const;

  // The same into all of RAM, mapped for writing.
  // Errors: INVALID_ARGUMENT, the size of `memory`.
  absl::Status ReadAll(std::span<uint8_t> memory,
                       const ReadOptions& options) const;

  // The same for who takes whole frames, and puts pages by PlacesOf(): `take`
  // gets each frame that `options` name and `wanted` still wants when its turn
  // comes, with the bytes of its pages. Called on threads of the pool.
  using TakeFrame =
      absl::FunctionRef<absl::Status(size_t frame, std::span<const uint8_t>)>;
  absl::Status ReadFrames(const ReadOptions& options,
                          absl::FunctionRef<bool(size_t frame)> wanted,
                          TakeFrame take) const;

  // The same without keeping anything.
  absl::Status Verify(const ReadOptions& options) const;

  // For who brings pages one by one.
  //
  // All frames, those of the hot set first, in order.
  std::vector<size_t> FramesInOrder() const;
  size_t hot_frames() const;
  // The frame that has the page at `offset`; none: it is not stored.
  std::optional<size_t> FrameAt(uint64_t offset) const;
  // Where the pages of a frame belong. Some of its pages may belong nowhere.
  std::vector<FramePlace> PlacesOf(size_t frame) const;
  // Reads a frame by way of `compressed` into `into`, which has room for its
  // pages. Blocks. Errors: DATA_LOSS, naming file and frame.
  absl::Status ReadFrame(size_t frame, codec::ZstdDecompressor* decompressor,
                         base::ScratchBuffer* compressed,
                         std::span<uint8_t> into) const;

 private:
  class Bulk;

  SnapshotReader() = default;
  bool IsHot(const Frame& frame) const {
    return frame.offset < index_.files[frame.file].hot_bytes;
  }
  std::string NameOf(size_t frame) const;
  // Checks the compressed bytes of a frame and decompresses them.
  absl::Status Unpack(size_t frame, std::span<const uint8_t> compressed,
                      codec::ZstdDecompressor* decompressor,
                      std::span<uint8_t> into) const;

  Header header_;
  std::vector<state::SavedSection> sections_;
  PageIndex index_;
  std::vector<PageRun> by_slot_;       // index_'s stored runs.
  std::vector<base::UniqueFd> files_;  // By index_.files.
};

}  // namespace catnap::snapshot

#endif  // CATNAP_LIB_SNAPSHOT_READER_H_
