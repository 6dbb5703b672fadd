#ifndef CATNAP_LIB_VMM_GUEST_TEMPLATE_H_
#define CATNAP_LIB_VMM_GUEST_TEMPLATE_H_

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "memory/arena.h"
#include "memory/memory_image.h"
#include "snapshot/page_index.h"
#include "snapshot/reader.h"
#include "snapshot/worker_pool.h"
#include "snapshot/writer.h"
#include "state/saved_section.h"
#include "vmm/machine.h"

namespace catnap::vmm {

// How much of a stored guest's memory is there before it runs. Where
// userfaultfd is refused, all.
enum class Prefetch {
  kAll,     // Everything: damage anywhere is found at once.
  kHotSet,  // What is touched first; the rest follows while it runs.
  kLazy,    // Nothing: a page comes when it is touched.
  kRecord,  // The same, page by page, to learn which are touched.
};

// What reading and writing stored guests takes.
struct StorageOptions {
  snapshot::WorkerPool* pool = nullptr;          // Borrowed.
  int level = 1;                                 // Of zstd, for writing.
  uint32_t frame_pages = snapshot::kFramePages;  // For writing.
  bool durable = true;                           // For writing.
  Prefetch prefetch = Prefetch::kAll;            // For reading.
  // For writing: what is stored first, in this order; empty: what the image has
  // so. Borrowed.
  std::span<const base::PageRange> hot{};
  // Gives up: CANCELLED, or DEADLINE_EXCEEDED.
  std::stop_token stop{};
  std::optional<std::chrono::steady_clock::time_point> deadline{};
};

class StoredPages;

struct StorageSizes {
  uint64_t written_bytes = 0;  // Of new files.
  uint64_t stored_bytes = 0;   // Of all files that the state needs.
  uint64_t own_bytes = 0;      // Of memory that is not the parent's.
};

// The memory and the machine of a guest as they were at one instant: what
// machines are launched from, any number of them, without a copy. A template
// may lie over another, its parent, whose pages it shares: a MicroVM's over its
// image's.
//
// Immutable, thread-safe. Holds memory, no descriptors but one for each file
// of memory.
class GuestTemplate {
 public:
  // What is stored in a directory: the memory that guests of an image have in
  // common, or one guest's own state.
  enum class Role { kImage, kGuest };

  // Reads a stored guest: its state, and as much of its memory as
  // StorageOptions::prefetch says. A damaged byte in that is found here. One in
  // the rest is found when it is read: then guests of this template end
  // (EndReason::kMemoryLost), and no more can be launched. The memory lies over
  // that of `parent`, an image's, which may be null when the stored one has
  // none. The pool must outlive the template. Blocks.
  // Errors: NOT_FOUND, nothing is stored there; DATA_LOSS; UNIMPLEMENTED, of a
  // newer version; FAILED_PRECONDITION, it has another parent;
  // RESOURCE_EXHAUSTED; as StorageOptions say.
  static absl::StatusOr<std::shared_ptr<const GuestTemplate>> Load(
      const std::string& directory, Role role,
      std::shared_ptr<const GuestTemplate> parent,
      const StorageOptions& options);

  // What a machine is launched with: see LaunchConfig.
  const std::vector<state::SavedSection>& sections() const { return sections_; }
  const std::shared_ptr<const memory::MemoryImage>& memory() const {
    return memory_;
  }
  // Memory of the host that this template takes beside its parent, when all of
  // it is there.
  uint64_t own_bytes() const { return own_bytes_; }
  // Brings as much of its own memory, not its parent's, as `prefetch` of the
  // options says, when it was loaded for somebody who wanted less.
  // Errors: why some of it cannot be read; as StorageOptions say.
  absl::Status Fetch(const StorageOptions& options) const;
  // Loaded with Prefetch::kRecord: the pages that were touched so far, in that
  // order; at most 64 MiB.
  std::vector<base::PageRange> Touched() const;
  // Enters the pages that a guest touches first into the page table of one that
  // is about to run from here, in a few calls instead of a fault for each;
  // those of its own, which it wrote before it slept, for `own`: kWrite, as
  // copies that it can write, unless others are to share them. At most 16 MiB
  // of either. Does nothing for an image, whose guests are to share what they
  // can, or when those pages were not wanted ahead. A hint.
  void Populate(memory::GuestMemory* memory,
                memory::GuestMemory::Access own) const;
  // OK, or why some of the memory cannot be read: then it is of no more use.
  absl::Status memory_status() const;
  // Why all memory was read at once though StorageOptions said otherwise; OK
  // when it was not, or nobody said so.
  const absl::Status& no_paging() const { return no_paging_; }

  // Writes it into `directory`, which exists and is empty of such files.
  // Errors: as snapshot::WriteSnapshot().
  absl::StatusOr<StorageSizes> Store(const std::string& directory,
                                     const StorageOptions& options) const;

 private:
  friend class MachineCapture;
  friend absl::StatusOr<StorageSizes> StoreMachine(
      Machine*, const std::vector<state::SavedSection>&, const GuestTemplate*,
      const std::string&, const StorageOptions&);

  // Where it is stored, if it is.
  struct Stored {
    snapshot::Id id{};
    snapshot::PageIndex index;
    std::string directory;
  };

  GuestTemplate() = default;
  // Has memory that is there in part be filled, now or by a pager.
  absl::Status Fill(
      const std::shared_ptr<const snapshot::SnapshotReader>& reader,
      memory::MemoryFile* file, const StorageOptions& options);
  // The image whose memory guests of this template share; null: none.
  const GuestTemplate* image() const {
    return role_ == Role::kImage ? this : parent_.get();
  }
  // What is stored first of guests like this.
  std::span<const base::PageRange> HotOf(const StorageOptions& options) const;
  // The parent's memory; null: none.
  const memory::MemoryImage* below() const;
  // The pages that differ from the parent's, or from zeros.
  static std::vector<base::PageRange> OwnRangesOf(
      const memory::MemoryImage& image, const GuestTemplate* parent);

  Role role_ = Role::kGuest;
  std::shared_ptr<const GuestTemplate> parent_;  // An image's. Null: none.
  std::vector<state::SavedSection> sections_;
  std::shared_ptr<const memory::MemoryImage> memory_;
  uint64_t own_bytes_ = 0;
  absl::Status no_paging_;
  std::vector<base::PageRange> hot_;       // As it was stored, in its order.
  bool hot_is_read_ = false;               // All of that, when it was loaded.
  const StoredPages* recorder_ = nullptr;  // Not owned: the memory's pager's.
  std::optional<Stored> stored_;
};

// Writes the state of a paused machine, whose Machine::Save() returned
// `sections`, into `directory`, which exists. `origin` is what it was launched
// from, null: booted. Of memory only what changed since is written, where the
// origin's files are still there to be linked. Blocks.
// Errors: as snapshot::WriteSnapshot(); the machine may go on in any case.
absl::StatusOr<StorageSizes> StoreMachine(
    Machine* machine, const std::vector<state::SavedSection>& sections,
    const GuestTemplate* origin, const std::string& directory,
    const StorageOptions& options);

// Copies a machine into a template, while its guest stands still for as short
// as can be:
//
//   Prepare   the guest runs
//   Take      it is paused, and Machine::Save() returned `sections`
//   Finish    it runs again
//
// Thread-compatible.
class MachineCapture {
 public:
  enum class Memory {
    // The machine itself runs on over the template's memory: what it has of its
    // own is in memory once, and a next capture copies what is new since. Its
    // guest faults in again all that it touches.
    kShared,
    // The machine keeps its own pages, beside the template's copy of them, for
    // a template that is not kept for long.
    kApart,
  };
  // `origin` as for StoreMachine(). With kShared it waits until all memory is
  // there that is still being read, so that the template is whole.
  // Errors: RESOURCE_EXHAUSTED, as StorageOptions say, ...
  static absl::StatusOr<std::unique_ptr<MachineCapture>> Prepare(
      Machine* machine, std::shared_ptr<const GuestTemplate> origin,
      Memory memory, const StorageOptions& options = {});
  absl::Status Take(Machine* machine,
                    std::vector<state::SavedSection> sections);
  absl::StatusOr<std::shared_ptr<const GuestTemplate>> Finish();

 private:
  explicit MachineCapture(Memory memory) : memory_(memory) {}

  const Memory memory_;
  std::shared_ptr<const GuestTemplate> origin_;
  std::unique_ptr<memory::Arena> arena_;
  std::shared_ptr<GuestTemplate> result_;
};

}  // namespace catnap::vmm

#endif  // CATNAP_LIB_VMM_GUEST_TEMPLATE_H_
