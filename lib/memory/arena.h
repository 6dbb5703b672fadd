#ifndef CATNAP_LIB_MEMORY_ARENA_H_
#define CATNAP_LIB_MEMORY_ARENA_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/page_range.h"
#include "memory/guest_memory.h"
#include "memory/memory_file.h"
#include "memory/memory_image.h"
#include "memory/page_map.h"

namespace catnap::memory {

struct ArenaOptions {
  OverlayOptions overlay = {};
  PageMapBackend backend = PageMapBackend::kBest;
  // Threads that copy, the caller's among them: 1 to 16. A second one pays
  // from some 10 MiB on; with less, one copies alone.
  int threads = 2;
};

// Copies a guest's own pages into a memory file while the guest is paused, and
// makes an image of the base with those pages over it. Faults take ten times
// as long as copying, so they are taken before the pause:
//
//   Create, Prepare      the guest runs
//   Capture, Image       it is paused
//   Seal                 it runs again
//
// To have the pages once, GuestMemory::Rebase() on the image in the pause.
//
// Thread-compatible.
class Arena {
 public:
  // For a guest with an image mapped, which the arena keeps.
  // Errors: FAILED_PRECONDITION (no image), INVALID_ARGUMENT (options),
  // RESOURCE_EXHAUSTED.
  static absl::StatusOr<std::unique_ptr<Arena>> Create(
      const GuestMemory& memory, const ArenaOptions& options = {});

  // Faults in memory for the pages that are the guest's own now, and copies
  // the gaps between them that would have to be closed. May be called again,
  // or not at all. Cost: about 1 ms for each MiB not prepared before.
  // REQUIRES: `memory` is the guest of Create(), here and below.
  absl::Status Prepare(const GuestMemory& memory);

  // Copies the own pages. Zeros where the image has zeros are left out if they
  // are MemoryImage::kMinZeroBytes or more. After an error the arena is of no
  // use.
  // REQUIRES: nothing writes to the memory meanwhile.
  // Errors: FAILED_PRECONDITION (captured before, or the guest was rebased
  // since Create()), RESOURCE_EXHAUSTED.
  absl::Status Capture(const GuestMemory& memory);

  // The base with what was captured over it. The guest may run meanwhile.
  // Errors: FAILED_PRECONDITION (nothing captured, or sealed),
  // RESOURCE_EXHAUSTED.
  absl::StatusOr<Overlaid> Image();

  // Gives back what was prepared and not used, and seals the file. Idempotent.
  // Errors: FAILED_PRECONDITION (no image was made), UNAVAILABLE (as
  // MemoryFile::Seal()).
  absl::Status Seal();

  // What was captured: the pages whose content is the guest's. In the file
  // they are at the same place.
  const std::vector<base::PageRange>& own() const { return own_; }
  const std::shared_ptr<const MemoryImage>& base() const { return base_; }
  const MemoryFile& file() const { return *file_; }

 private:
  Arena(std::shared_ptr<const MemoryImage> base,
        std::shared_ptr<MemoryFile> file, const ArenaOptions& options)
      : base_(std::move(base)), file_(std::move(file)), options_(options) {}
  absl::Status CheckGuest(const GuestMemory& memory) const;
  absl::Status Populate(const std::vector<base::PageRange>& ranges);

  const std::shared_ptr<const MemoryImage> base_;
  const std::shared_ptr<MemoryFile> file_;
  const ArenaOptions options_;
  std::vector<base::PageRange> populated_;  // What has memory in the file.
  std::vector<base::PageRange> filled_;     // What holds the base's content.
  std::vector<base::PageRange> own_;
  std::vector<base::PageRange> used_;  // What extents of the image name.
  bool captured_ = false;
  bool imaged_ = false;
};

}  // namespace catnap::memory

#endif  // CATNAP_LIB_MEMORY_ARENA_H_
