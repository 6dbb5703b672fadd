#include <algorithm>
#include <array>
#include <utility>

#include "base/crc32c.h"
#include "base/status.h"
#include "disk/cow_layer.h"

// How a CowLayer makes its map durable. Pages of the map that changed go to
// pages of the file that no durable commit names, from the leaves to the root;
// fdatasync; one sector that names the root; fdatasync. A crash before the last
// leaves the commit before, of which nothing was overwritten: what that names
// is given out again only after the new one is durable.

namespace catnap::disk {
namespace {

// Pages that are written at once, and the memory of a commit.
constexpr size_t kBatchPages = 64;
// Clusters that one call punches.
constexpr uint64_t kReclaimClusters = 1024;

struct BatchPage {
  uint32_t index = 0;
  PagePointer written;  // Page 0: it is empty and was not.
};

}  // namespace

struct CowLayer::Commit {
  std::vector<FlushWaiter> flushes;
  bool freeze = false;
  CommitRecord record;
  std::array<uint8_t, kCommitBytes> record_bytes{};

  // The level that is written, its pages, and how many were begun.
  int level = 0;
  std::vector<uint32_t> todo;
  size_t begun = 0;
  std::vector<BatchPage> batch;
  std::vector<std::array<uint8_t, kPageBytes>> bytes;  // Of the batch.
  size_t parts_left = 0;
  absl::Status status;
};

void CowLayer::Flush(BlockCompletion done) {
  QueueFlush(std::move(done), /*parks=*/true);
}

void CowLayer::FlushOrFail(BlockCompletion done) {
  QueueFlush(std::move(done), /*parks=*/false);
}

void CowLayer::QueueFlush(BlockCompletion done, bool parks) {
  {
    const base::MutexLock lock(&mutex_);
    flushes_.push_back({in_flight_.Begin(), std::move(done), parks && park_});
  }
  // By way of the loop: flushes that come together share a commit.
  file_->Post([self = shared_from_this()] { self->StartCommit(); });
}

void CowLayer::StartCommit() {
  const auto commit = std::make_shared<Commit>();
  absl::Status status;
  bool changed = false;
  {
    const base::MutexLock lock(&mutex_);
    if (commit_running_ || commit_parked_ || flushes_.empty()) return;
    commit->flushes.swap(flushes_);
    status = sync_error_;
    if (status.ok()) {
      commit_running_ = true;
      commit->freeze = freeze_now_ && !committed_.frozen;
      // Nothing can have changed in one that was opened frozen.
      changed = frozen_ == nullptr &&
                (commit->freeze || map_->AnyDirty() ||
                 capacity_ != committed_.virtual_bytes ||
                 map_->Pointer(MapLevel::kRoot, 0) != committed_.root);
      if (changed) {
        space_->BeginCommit();
        commit->todo = map_->TakeDirty(MapLevel::kMap);
      }
      commit->record = committed_;
    }
  }
  if (!status.ok()) return FinishFlushes(std::move(commit->flushes), status);
  if (!changed) return CommitSync(commit, /*record_written=*/true);
  CommitNextBatch(commit);
}

void CowLayer::CommitNextBatch(const std::shared_ptr<Commit>& commit) {
  bool all_written = false;
  {
    const base::MutexLock lock(&mutex_);
    while (commit->begun == commit->todo.size() &&
           commit->level < kMapLevels - 1) {
      ++commit->level;
      commit->todo = map_->TakeDirty(static_cast<MapLevel>(commit->level));
      commit->begun = 0;
    }
    const size_t count =
        std::min(kBatchPages, commit->todo.size() - commit->begun);
    all_written = count == 0;
    commit->batch.clear();
    commit->bytes.resize(count);
    commit->status = absl::OkStatus();
    for (size_t i = 0; i < count && commit->status.ok(); ++i) {
      BatchPage page;
      page.index = commit->todo[commit->begun++];
      if (map_->Serialize(static_cast<MapLevel>(commit->level), page.index,
                          commit->bytes[i])) {
        const auto at = space_->AllocatePage();
        if (at.has_value()) {
          page.written = {*at, base::Crc32c(commit->bytes[i])};
        } else {
          commit->status = absl::ResourceExhaustedError(
              "the layer file is as large as its format allows");
        }
      }
      commit->batch.push_back(page);
    }
    commit->parts_left = 1;  // For this function.
    if (commit->status.ok()) {
      for (const BatchPage& page : commit->batch) {
        if (page.written.page != 0) ++commit->parts_left;
      }
    }
  }
  if (all_written) return CommitSync(commit, /*record_written=*/false);
  const auto end_part = [self = shared_from_this(),
                         commit](const absl::StatusOr<size_t>& written) {
    {
      const base::MutexLock lock(&self->mutex_);
      if (!written.ok()) commit->status = written.status();
      --commit->parts_left;
      if (commit->parts_left != 0) return;
    }
    self->EndBatch(commit);
  };
  // Nothing of the batch changes while parts are left.
  const size_t writes = commit->parts_left - 1;
  for (size_t i = 0; writes != 0 && i < commit->batch.size(); ++i) {
    const uint64_t page = commit->batch[i].written.page;
    if (page == 0) continue;
    const iovec buffer{commit->bytes[i].data(), kPageBytes};
    file_->Write({&buffer, 1}, page * kPageBytes, end_part);
  }
  end_part(size_t{0});
}

void CowLayer::EndBatch(const std::shared_ptr<Commit>& commit) {
  const auto level = static_cast<MapLevel>(commit->level);
  {
    const base::MutexLock lock(&mutex_);
    for (const BatchPage& page : commit->batch) {
      if (commit->status.ok()) {
        const uint32_t old = map_->Pointer(level, page.index).page;
        if (old != 0) space_->FreePage(old);
        map_->SetPointer(level, page.index, page.written);
      } else {
        map_->MarkDirty(level, page.index);
        if (page.written.page != 0) space_->ReturnPage(page.written.page);
      }
    }
    if (!commit->status.ok()) {
      map_->PutBackDirty(level, std::span(commit->todo).subspan(commit->begun));
    }
  }
  if (!commit->status.ok()) return EndCommit(commit, commit->status);
  CommitNextBatch(commit);
}

void CowLayer::CommitSync(const std::shared_ptr<Commit>& commit,
                          bool record_written) {
  file_->Datasync([self = shared_from_this(), commit,
                   record_written](const absl::StatusOr<size_t>& synced) {
    if (!synced.ok()) {
      // Not parked even when the disk was full: the kernel has dropped what it
      // could not write, and a second fdatasync would succeed.
      const absl::Status status = Error(
          absl::IsCancelled(synced.status()) ? absl::StatusCode::kCancelled
                                             : absl::StatusCode::kDataLoss,
          "the host lost writes of the disk: {}", synced.status().ToString());
      if (!absl::IsCancelled(status)) {
        const base::MutexLock lock(&self->mutex_);
        self->sync_error_ = status;
      }
      return self->EndCommit(commit, status);
    }
    if (record_written) return self->EndCommit(commit, absl::OkStatus());
    self->WriteRecord(commit);
  });
}

void CowLayer::WriteRecord(const std::shared_ptr<Commit>& commit) {
  {
    const base::MutexLock lock(&mutex_);
    ++commit->record.sequence;
    // As it is now: pages may map what a later Resize() added.
    commit->record.virtual_bytes = capacity_;
    commit->record.root = map_->Pointer(MapLevel::kRoot, 0);
    commit->record.frozen = commit->record.frozen || commit->freeze;
  }
  EncodeCommit(commit->record, commit->record_bytes);
  const iovec buffer{commit->record_bytes.data(), kCommitBytes};
  file_->Write({&buffer, 1}, CommitOffset(commit->record.sequence),
               [self = shared_from_this(),
                commit](const absl::StatusOr<size_t>& written) {
                 if (!written.ok()) {
                   return self->EndCommit(commit, written.status());
                 }
                 self->CommitSync(commit, /*record_written=*/true);
               });
}

void CowLayer::EndCommit(const std::shared_ptr<Commit>& commit,
                         const absl::Status& status) {
  const bool full = absl::IsResourceExhausted(status);
  {
    const base::MutexLock lock(&mutex_);
    commit_running_ = false;
    commit_unable_ = false;
    if (status.ok() && commit->record.sequence != committed_.sequence) {
      committed_ = commit->record;
      space_->EndCommit();
    }
    const auto parked = std::stable_partition(
        commit->flushes.begin(), commit->flushes.end(),
        [&](const FlushWaiter& flush) { return !full || !flush.parks; });
    if (parked != commit->flushes.end()) {
      flushes_.insert(flushes_.begin(), std::make_move_iterator(parked),
                      std::make_move_iterator(commit->flushes.end()));
      commit->flushes.erase(parked, commit->flushes.end());
      commit_parked_ = true;
      commit_unable_ = true;
      parked_reason_ = status.ToString();
      ArmTimerLocked();
    }
  }
  if (full) GiveUpFreeze(status);
  FinishFlushes(std::move(commit->flushes), status);
  ReportParking();
  if (status.ok()) Reclaim();
  StartCommit();
}

void CowLayer::FinishFlushes(std::vector<FlushWaiter> flushes,
                             const absl::Status& status) {
  for (FlushWaiter& flush : flushes) {
    std::move(flush.done)(status);
    std::vector<DrainCompletion> drained;
    {
      const base::MutexLock lock(&mutex_);
      drained = in_flight_.End(flush.number);
    }
    CallAll(std::move(drained));
  }
}

// Gives the space of clusters that no commit names back to the host, a run
// after the other; only then are they given out again, so that a hole is never
// punched into new data.
void CowLayer::Reclaim() {
  std::optional<ClusterRun> run;
  {
    const base::MutexLock lock(&mutex_);
    if (reclaiming_ || frozen_ != nullptr) return;
    run = space_->TakeReclaim(kReclaimClusters);
    if (!run.has_value()) return;
    reclaiming_ = true;
  }
  file_->PunchHole(run->first * kClusterBytes, run->count * kClusterBytes,
                   [self = shared_from_this(),
                    run = *run](const absl::StatusOr<size_t>& punched) {
                     {
                       // Whether or not the file system can: it is free.
                       const base::MutexLock lock(&self->mutex_);
                       self->space_->Reclaimed(run);
                       self->reclaiming_ = false;
                     }
                     if (!absl::IsCancelled(punched.status())) self->Reclaim();
                   });
}

}  // namespace catnap::disk
