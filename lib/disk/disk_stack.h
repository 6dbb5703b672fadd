#ifndef CATNAP_LIB_DISK_DISK_STACK_H_
#define CATNAP_LIB_DISK_DISK_STACK_H_

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "base/thread.h"
#include "disk/block_io.h"
#include "disk/cow_layer.h"
#include "disk/layer_cache.h"
#include "disk/layer_chain.h"
#include "disk/layer_seat.h"
#include "io/event_loop.h"

namespace catnap::disk {

struct DiskStackOptions {
  // Holds this disk's layers, and nobody else changes it.
  std::string directory;
  // Below all layers, read-only, with an id of its own. Null: zeroes.
  std::shared_ptr<BlockIo> base;
  // Of a disk that has no layer yet, in bytes: 0 is as large as the base.
  uint64_t capacity = 0;
  // Frozen layers that other disks have open too are kept in memory once. Null:
  // each keeps its own.
  std::shared_ptr<LayerCache> cache{};
  // Borrowed: outlives the stack and all requests.
  io::EventLoop* loop = nullptr;
  // As in CowLayerOptions, of whichever layer is the top.
  std::function<void(const std::string& reason)> on_parked{};
  std::chrono::milliseconds first_retry{100};
  std::chrono::milliseconds last_retry{5000};
  // Frozen layers are merged in the background until there are at most so many,
  // at least 1. 0: never.
  size_t max_frozen = 8;
  // kLater: of a new disk, whose layers, those that Open() finds and the one
  // that it makes, the caller makes durable by Sync().
  Durable durable = Durable::kNow;
};

// The disk of one virtual machine, which stays while what it consists of
// changes: a base that others share, frozen layers, and one that is written.
//
//   base <- frozen layers <- top
//
// Requests, errors and parking are those of the top (CowLayer). Freeze() makes
// the top a frozen layer and puts an empty one above: what snapshots and forks
// start from. Frozen files never change; a snapshot has links of its own to
// them (LinkInto()).
//
// **Merging.** With more than max_frozen frozen layers a thread of the stack
// makes one of two neighbours, those that cost least first, 1 MiB at a time,
// and rests as long as it worked. The new file takes the upper one's place by
// rename once it is durable; reads go on meanwhile. When the disk is full it is
// tried again after the next freeze.
//
// **Crashes.** At any moment the directory has a chain that Open() opens, with
// all that was flushed: FORMAT.md, "Directories".
//
// Thread-safe, but for what says otherwise. The destructor waits for a merge in
// progress to stop, for at most the copy of 1 MiB: not on the loop's thread,
// where no call that "blocks" may be either.
//
// Memory: that of its layers, but for frozen ones that another disk with the
// same cache has open, and while it merges 1 MiB and the map of the new
// one. Descriptors: one for each layer, and two while it merges.
class DiskStack final : public BlockIo {
 public:
  // Opens what the directory has, removes what a crash left over, and goes on
  // in the top; without one that is not frozen, an empty one is made. Blocks.
  // Errors: as ReadChain() and CowLayer::Create().
  static absl::StatusOr<std::shared_ptr<DiskStack>> Open(
      DiskStackOptions options);

  DiskStack(const DiskStack&) = delete;
  DiskStack& operator=(const DiskStack&) = delete;
  ~DiskStack() override;

  uint64_t capacity() const override;
  bool read_only() const override { return false; }
  DiskId id() const override;  // The top's.
  void Read(std::span<const iovec> buffers, uint64_t offset,
            BlockCompletion done) override;
  void Write(std::span<const iovec> buffers, uint64_t offset,
             BlockCompletion done) override;
  void Flush(BlockCompletion done) override;
  void Discard(uint64_t offset, uint64_t length, BlockCompletion done) override;
  void WriteZeroes(uint64_t offset, uint64_t length,
                   BlockCompletion done) override;
  void Resize(uint64_t new_capacity, BlockCompletion done) override;
  void Drain(DrainCompletion done) override;

  // Makes durable what is in the directory, which kLater left open; a crash
  // before may take all of the disk. So does a Freeze(). Blocks.
  // Errors: what the file system says.
  absl::Status Sync();

  // Does ahead of Freeze() what can be done while the guest runs: makes durable
  // what was written so far, and the file of the next top. Blocks.
  // Errors: RESOURCE_EXHAUSTED, the disk is full; DATA_LOSS, it failed.
  absl::Status PrepareFreeze();
  // Freezes the disk as it is after the requests that were started before.
  // Requests that come meanwhile wait, and go to the new top. Everything frozen
  // is durable afterwards. Blocks: with PrepareFreeze() shortly before, for two
  // fdatasyncs of what came since.
  // After an error the disk is as before, requests go on and nothing is lost.
  // Errors: RESOURCE_EXHAUSTED, the disk is full, or requests are parked;
  // DATA_LOSS, it failed; CANCELLED, the loop stopped.
  absl::Status Freeze();

  // The frozen layers, the lowest first. A merge may replace them at any time:
  // LinkInto() is what keeps them.
  std::vector<ChainLayer> frozen_layers() const;
  // Links the frozen layers into a directory without layers, for ReadChain() or
  // LinkChain() to find there; durable afterwards with kNow. They are the disk
  // as it was at the last Freeze(). Returns what is there now, the lowest
  // first. Blocks; a merge waits meanwhile.
  // Errors: as LinkChain().
  absl::StatusOr<std::vector<ChainLayer>> LinkInto(
      const std::string& directory, CopyMode mode,
      Durable durable = Durable::kNow);

  // What the disk's own layers cost on the host's disk at most.
  uint64_t allocated_bytes() const;
  // Whether requests wait because the host's disk is full.
  bool parked() const;
  // As those of CowLayer.
  void RetryParked();
  void CancelParked();

  // Blocks until the background has nothing to merge, or could not go on.
  void WaitForMerges();

  // Lets go of the directory, for somebody else to open or remove it: stops a
  // merge in progress as the destructor does, which calls this. No freeze may
  // come any more; requests may, and do no harm. Idempotent.
  void Close();

 private:
  struct FrozenLayer {
    ChainLayer file;
    std::shared_ptr<CowLayer> layer;
    // What the layer above reads from.
    std::shared_ptr<LayerSeat> seat;
  };
  // A layer that is written, or is to be.
  struct TopLayer {
    ChainLayer file;
    std::shared_ptr<CowLayer> layer;
    // For the layer above, once there is one.
    std::shared_ptr<LayerSeat> seat;
  };

  explicit DiskStack(DiskStackOptions options) : options_(std::move(options)) {}

  absl::Status OpenChain(const LayerChain& chain);
  CowLayerOptions TopOptions() const;
  // An empty layer on `parent`; kNow: durable with its name.
  absl::StatusOr<TopLayer> MakeTop(uint64_t number,
                                   std::shared_ptr<BlockIo> parent,
                                   uint64_t capacity, Durable durable) const;
  // A next top that fits the present one.
  absl::Status EnsureSpare() ABSL_EXCLUSIVE_LOCKS_REQUIRED(freeze_mutex_);
  std::shared_ptr<CowLayer> top() const;
  // Runs `call` with the top, now or once a freeze has ended.
  template <typename Call>
  void Forward(Call&& call);
  // A span of buffers is the caller's: a call that waits needs a copy.
  template <typename Call>
  void ForwardBuffers(std::span<const iovec> buffers, Call&& call);
  std::shared_ptr<CowLayer> BeginCall();
  void EndCall();
  void HoldRequests();
  void ReleaseRequests();

  void StartMerging() ABSL_EXCLUSIVE_LOCKS_REQUIRED(freeze_mutex_);
  void Merge();
  // The two neighbours that cost least; false: few enough.
  bool PickLocked(size_t* lower) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status MergeTwo(size_t lower);
  // Rests for as long as the last piece took. False: stop.
  bool Pace(std::chrono::steady_clock::time_point* began);

  const DiskStackOptions options_;

  // Held by Freeze() and PrepareFreeze() from their start to their end, so that
  // they come one after the other. First of the mutexes.
  base::Mutex freeze_mutex_;
  std::optional<TopLayer> spare_ ABSL_GUARDED_BY(freeze_mutex_);
  uint64_t next_number_ ABSL_GUARDED_BY(freeze_mutex_) = 0;

  // Held while the directory's frozen files are linked or replaced, which
  // blocks on the disk: only those two wait for each other.
  base::Mutex files_mutex_;

  mutable base::Mutex mutex_;  // Never held across I/O. Last of the mutexes.
  base::CondVar changed_;
  std::vector<FrozenLayer> frozen_ ABSL_GUARDED_BY(mutex_);
  TopLayer top_ ABSL_GUARDED_BY(mutex_);
  bool held_ ABSL_GUARDED_BY(mutex_) = false;  // Requests wait.
  size_t calls_ ABSL_GUARDED_BY(mutex_) = 0;   // On their way to the top.
  std::vector<absl::AnyInvocable<void() &&>> waiting_ ABSL_GUARDED_BY(mutex_);
  bool merging_ ABSL_GUARDED_BY(mutex_) = false;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  // Started and joined with freeze_mutex_ held, or by the destructor.
  base::Thread merger_ ABSL_GUARDED_BY(freeze_mutex_);
};

}  // namespace catnap::disk

#endif  // CATNAP_LIB_DISK_DISK_STACK_H_
