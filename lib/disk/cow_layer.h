#ifndef CATNAP_LIB_DISK_COW_LAYER_H_
#define CATNAP_LIB_DISK_COW_LAYER_H_

#include <chrono>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "base/mutex.h"
#include "disk/block_io.h"
#include "disk/file_io.h"
#include "disk/in_flight.h"
#include "disk/layer_loader.h"
#include "disk/layer_request.h"

namespace catnap::disk {

struct CowLayerOptions {
  // Told when requests begin to wait because the host's disk is full, with the
  // reason for people, and with an empty text when none waits any more. Called
  // as completions are.
  absl::AnyInvocable<void(const std::string& reason)> on_parked;
  // False: what meets a full disk ends with RESOURCE_EXHAUSTED instead.
  bool park = true;
  // Between two tries of parked requests: the first, doubled up to the last.
  std::chrono::milliseconds first_retry{100};
  std::chrono::milliseconds last_retry{5000};
};

// A sparse file of what differs from the disk below (the parent): the top of a
// MicroVM's disk while it is written, and a part of a stack once it is frozen.
// FORMAT.md has the file's bytes, and why crashes leave it whole.
//
// **Full host disk.** A Write(), Discard(), Flush(), ... that meets
// RESOURCE_EXHAUSTED is parked: it stays in flight and is tried again by a
// timer, or by RetryParked(). Requests that overlap with it wait behind it.
//
// After a failed fdatasync nobody knows what the host has lost: this and all
// later flushes fail.
//
// Requests that overlap (in blocks of 4 KiB) and of which one writes take
// effect one after the other, in the order of their calls.
//
// Memory: what LayerMap and SpaceMap say; for each request in flight under 1
// KiB besides the loop's, 16 bytes for each buffer, and 8 KiB while a write
// covers blocks of the parent in part; 256 KiB for a flush. Starting a request
// takes time in proportion to those in flight.
class CowLayer final : public BlockIo,
                       public std::enable_shared_from_this<CowLayer> {
 public:
  // Makes an empty layer of `virtual_bytes` in an empty file. Null `parent`:
  // zeroes below. Blocks for a few writes into the page cache; a Flush() makes
  // the layer durable (not its name).
  // Errors: INVALID_ARGUMENT, the size is 0, not whole sectors, more than 8 TiB
  // or less than the parent's; FAILED_PRECONDITION, the parent can be written.
  static absl::StatusOr<std::shared_ptr<CowLayer>> Create(
      std::shared_ptr<FileIo> file, uint64_t virtual_bytes,
      std::shared_ptr<BlockIo> parent, CowLayerOptions options);
  // As Create(), for a layer that is to take the place of the one with this id.
  static absl::StatusOr<std::shared_ptr<CowLayer>> CreateWithId(
      std::shared_ptr<FileIo> file, DiskId id, uint64_t virtual_bytes,
      std::shared_ptr<BlockIo> parent, CowLayerOptions options);
  // As Create(), as large as the parent.
  static absl::StatusOr<std::shared_ptr<CowLayer>> CreateOnTop(
      std::shared_ptr<FileIo> file, std::shared_ptr<BlockIo> parent,
      CowLayerOptions options);

  // Opens a layer file, which may be damaged or hostile, as its last complete
  // commit left it. A frozen one is read-only. Blocks on the disk.
  // Errors: as LoadLayer(); FAILED_PRECONDITION, `parent` is not the disk that
  // the layer was made on (ReadHeader() tells which), or can be written.
  static absl::StatusOr<std::shared_ptr<CowLayer>> Open(
      std::shared_ptr<FileIo> file, std::shared_ptr<BlockIo> parent,
      CowLayerOptions options);
  // The same of a frozen layer that was read from the file already, maybe for
  // others. Errors: as Open().
  static absl::StatusOr<std::shared_ptr<CowLayer>> OpenFrozen(
      std::shared_ptr<FileIo> file, std::shared_ptr<const LoadedLayer> loaded,
      std::shared_ptr<BlockIo> parent, CowLayerOptions options);
  // What the file says of itself and its parent. Errors: as Open().
  static absl::StatusOr<LayerHeader> ReadHeader(FileIo* file);

  // Parked requests complete with CANCELLED. Nothing else can be in flight:
  // requests with the kernel keep the layer alive.
  ~CowLayer() override;

  uint64_t capacity() const override;
  bool read_only() const override;
  DiskId id() const override { return header_.id; }
  const LayerHeader& header() const { return header_; }
  // Bytes of the file that are not free: what the layer costs at most.
  uint64_t allocated_bytes() const;
  // Whether requests wait because the host's disk is full.
  bool parked() const;

  // What the layer itself has: the first cluster not before `from` that may
  // differ from the parent, and which blocks of a cluster do. Behind the end
  // there is nothing.
  std::optional<uint64_t> NextCluster(uint64_t from) const;
  MapEntry EntryOf(uint64_t cluster) const;

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

  // Refuses further writes, waits for those in flight, makes all durable and
  // the layer immutable. After an error the layer is as before.
  // Errors: RESOURCE_EXHAUSTED, the host's disk is full: requests that are
  // parked, or would be, are not waited for.
  void Freeze(BlockCompletion done);

  // As Flush(), but never parked. Errors: RESOURCE_EXHAUSTED, the host's disk
  // is full.
  void FlushOrFail(BlockCompletion done);

  // Tries parked requests again now, or ends them with CANCELLED. Take effect
  // soon, on the loop's thread.
  void RetryParked();
  void CancelParked();

 private:
  // A commit in progress: the way of the map into the file. See
  // cow_commit.cc.
  struct Commit;

  // Of one that was opened frozen, `frozen` and nothing in `loaded` but what is
  // copied from it.
  CowLayer(std::shared_ptr<FileIo> file, std::shared_ptr<BlockIo> parent,
           CowLayerOptions options, LoadedLayer loaded,
           std::shared_ptr<const LoadedLayer> frozen = nullptr);

  const LayerMap& MapLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return frozen_ != nullptr ? *frozen_->map : *map_;
  }

  // Requests: cow_requests.cc. Each runs in steps, on the loop's thread.
  void Start(std::shared_ptr<LayerRequest> request);
  absl::Status CheckLocked(const LayerRequest& request) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool MayRunLocked(const LayerRequest& request) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Begins a request that may run, or one that was parked.
  void Run(const std::shared_ptr<LayerRequest>& request);
  void RunRead(const std::shared_ptr<LayerRequest>& request);
  void ReadParentEdges(const std::shared_ptr<LayerRequest>& request);
  void WriteData(const std::shared_ptr<LayerRequest>& request);
  void ApplyToMap(const std::shared_ptr<LayerRequest>& request);
  // Starts the I/O of a step; `next` runs when all of it has ended.
  void Issue(const std::shared_ptr<LayerRequest>& request,
             std::vector<LayerPart> parts, LayerStep next);
  void IssueOne(const std::shared_ptr<LayerRequest>& request, LayerPart part);
  void EndPart(const std::shared_ptr<LayerRequest>& request,
               absl::Status status);
  void EndStep(const std::shared_ptr<LayerRequest>& request);
  void Finish(const std::shared_ptr<LayerRequest>& request,
              absl::Status status);
  void PlanWriteLocked(LayerTransfer* transfer, std::vector<LayerPart>* parts)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status PlanDataLocked(const LayerTransfer& transfer,
                              std::vector<LayerPart>* parts)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ZeroBlocksLocked(const LayerRequest& request,
                        std::vector<LayerPart>* holes)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool OtherWriterInLocked(const LayerRequest& request, uint64_t cluster) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AddParentLocked(Buffers buffers, uint64_t offset,
                       std::vector<LayerPart>* parts) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void CallAll(std::vector<DrainCompletion> calls);

  // Parking: cow_parking.cc.
  void Park(const std::shared_ptr<LayerRequest>& request,
            const absl::Status& why);
  void RetryParkedNow();
  void CancelParkedNow();
  void ArmTimerLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Tells the owner when the first request was parked or the last one is not
  // any more.
  void ReportParking();

  // Commits: cow_commit.cc.
  struct FlushWaiter {
    uint64_t number = 0;
    BlockCompletion done;
    bool parks = true;  // On a full disk.
  };
  // The freeze of that number: makes it durable, and ends it if it has not
  // been given up.
  void CommitFreeze(uint64_t number);
  void EndFreeze(uint64_t number, absl::Status status);
  void GiveUpFreeze(const absl::Status& why);
  void StartCommit();
  void CommitNextBatch(const std::shared_ptr<Commit>& commit);
  void EndBatch(const std::shared_ptr<Commit>& commit);
  void CommitSync(const std::shared_ptr<Commit>& commit, bool record_written);
  void WriteRecord(const std::shared_ptr<Commit>& commit);
  void EndCommit(const std::shared_ptr<Commit>& commit,
                 const absl::Status& status);
  void FinishFlushes(std::vector<FlushWaiter> flushes,
                     const absl::Status& status);
  void QueueFlush(BlockCompletion done, bool parks);
  void Reclaim();

  const std::shared_ptr<FileIo> file_;
  const std::shared_ptr<BlockIo> parent_;  // Null: zeroes.
  const LayerHeader header_;

  const std::chrono::milliseconds first_retry_;
  const std::chrono::milliseconds last_retry_;
  const bool park_;
  // Called on the loop's thread only.
  absl::AnyInvocable<void(const std::string& reason)> on_parked_;

  mutable base::Mutex mutex_;  // Never held while a callback is called.
  CommitRecord committed_ ABSL_GUARDED_BY(mutex_);  // The last durable one.
  uint64_t capacity_ ABSL_GUARDED_BY(mutex_);
  bool freezing_ ABSL_GUARDED_BY(mutex_) = false;
  BlockCompletion freeze_done_ ABSL_GUARDED_BY(mutex_);
  uint64_t freeze_number_ ABSL_GUARDED_BY(mutex_) = 0;
  bool freeze_now_ ABSL_GUARDED_BY(mutex_) = false;  // The next commit does.
  // What a layer that was opened frozen says, which others may share. Goes
  // before the file does (LayerCache).
  const std::shared_ptr<const LoadedLayer> frozen_;
  // Of other layers.
  const std::unique_ptr<LayerMap> map_ ABSL_PT_GUARDED_BY(mutex_);
  const std::unique_ptr<SpaceMap> space_ ABSL_PT_GUARDED_BY(mutex_);
  InFlight in_flight_ ABSL_GUARDED_BY(mutex_);
  // In the order of their calls. One runs when none before it overlaps.
  std::list<std::shared_ptr<LayerRequest>> requests_ ABSL_GUARDED_BY(mutex_);
  size_t waiting_ ABSL_GUARDED_BY(mutex_) = 0;

  std::vector<FlushWaiter> flushes_ ABSL_GUARDED_BY(mutex_);
  bool commit_running_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status sync_error_ ABSL_GUARDED_BY(mutex_);  // Stays.
  bool reclaiming_ ABSL_GUARDED_BY(mutex_) = false;

  std::vector<std::shared_ptr<LayerRequest>> parked_ ABSL_GUARDED_BY(mutex_);
  bool commit_parked_ ABSL_GUARDED_BY(mutex_) = false;
  // Parked, or being tried again.
  size_t unable_ ABSL_GUARDED_BY(mutex_) = 0;
  bool commit_unable_ ABSL_GUARDED_BY(mutex_) = false;
  bool timer_armed_ ABSL_GUARDED_BY(mutex_) = false;
  std::chrono::milliseconds retry_delay_ ABSL_GUARDED_BY(mutex_);
  std::string parked_reason_ ABSL_GUARDED_BY(mutex_);
  bool parking_reported_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace catnap::disk

#endif  // CATNAP_LIB_DISK_COW_LAYER_H_
