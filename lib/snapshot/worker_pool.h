#ifndef CATNAP_LIB_SNAPSHOT_WORKER_POOL_H_
#define CATNAP_LIB_SNAPSHOT_WORKER_POOL_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "base/scratch_buffer.h"
#include "base/thread.h"
#include "codec/zstd_codec.h"

namespace catnap::snapshot {

// What a job finds on the thread that runs it, kept from job to job.
// Thread-compatible; only the job that runs uses it.
class WorkerTools {
 public:
  // Errors: as ZstdCompressor::Create().
  absl::StatusOr<codec::ZstdCompressor*> Compressor(int level);
  absl::StatusOr<codec::ZstdDecompressor*> Decompressor();
  // Lets go of what only high levels need, some 10 MiB and more.
  bool holds_much() const;
  void DropMuch() { compressor_.reset(); }
  // `bytes` bytes with no particular content, until the next call.
  std::span<uint8_t> Scratch(size_t bytes) { return scratch_.Get(bytes); }

 private:
  std::optional<codec::ZstdCompressor> compressor_;
  int level_ = 0;
  std::optional<codec::ZstdDecompressor> decompressor_;
  base::ScratchBuffer scratch_;
};

// A few threads that compress and decompress for all snapshots of a Host.
// Each thread keeps what its jobs needed: a few MiB. Thread-safe.
class WorkerPool {
 public:
  using Job = absl::AnyInvocable<void(WorkerTools&) &&>;

  // One user's jobs. Users take turns job by job, so that a small snapshot
  // does not wait for the end of a large one. Thread-safe.
  class Client {
   public:
    // `pool` must outlive the client.
    explicit Client(WorkerPool* pool);
    Client(const Client&) = delete;
    Client& operator=(const Client&) = delete;
    // Drops jobs that have not begun, and waits for the others.
    ~Client();

    // Jobs begin in the order of their calls. They must not throw, nor wait
    // for other jobs.
    void Submit(Job job);

   private:
    friend class WorkerPool;
    WorkerPool* const pool_;
    // Guarded by the pool's mutex.
    std::deque<Job> jobs_;
    size_t running_ = 0;
    bool queued_ = false;  // In `turns_`.
  };

  // `threads` is 1 to 64; 0: one for each processor this process may use.
  // Errors: INVALID_ARGUMENT; RESOURCE_EXHAUSTED, not one thread could start.
  static absl::StatusOr<std::unique_ptr<WorkerPool>> Create(size_t threads);
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;
  // REQUIRES: no clients.
  ~WorkerPool();

  // Fewer than asked for when the system gave fewer.
  size_t threads() const { return threads_.size(); }

 private:
  WorkerPool() = default;
  void Run();

  base::Mutex mutex_;  // Not held while a job runs.
  base::CondVar work_;
  base::CondVar idle_;  // A job of a client ended.
  // Clients with jobs to begin, the next to be served first.
  std::deque<Client*> turns_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<base::Thread> threads_;  // Last: they use the rest.
};

}  // namespace catnap::snapshot

#endif  // CATNAP_LIB_SNAPSHOT_WORKER_POOL_H_
