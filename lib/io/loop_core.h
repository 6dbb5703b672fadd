#ifndef CATNAP_LIB_IO_LOOP_CORE_H_
#define CATNAP_LIB_IO_LOOP_CORE_H_

#include <sys/uio.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "base/thread.h"
#include "base/unique_fd.h"
#include "io/event_loop.h"
#include "io/loop_backend.h"
#include "io/operation.h"
#include "io/operation_pool.h"
#include "io/timer_queue.h"

namespace catnap::io {

// What an EventLoop is behind its face, whichever backend runs it: the thread,
// the queue that other threads fill, timers, and the rule that every operation
// ends once. Thread safety: as EventLoop.
class LoopCore final : public BackendEvents {
 public:
  LoopCore() = default;
  ~LoopCore() override;

  // Starts the thread and waits until its backend runs.
  absl::Status Launch(const EventLoopOptions& options);
  void Stop();

  // Queues an operation that `fill` describes, for the loop's thread.
  template <typename Fill>
  OperationId Start(OperationKind kind, Fill&& fill);
  OperationId StartTransfer(OperationKind kind, int fd,
                            std::span<const iovec> buffers, uint64_t offset,
                            Completion done);
  void Cancel(OperationId id);

  void OnReady(Operation* watch, uint32_t events) override;
  void OnFinished(Operation* operation, int64_t result) override;

  // Constant once launched.
  LoopBackendKind kind() const { return kind_; }
  const std::string& text() const { return text_; }
  // Adds why it is not the other one. Before anybody else sees the loop.
  void AddReason(const absl::Status& refused);

 private:
  // An operation as it was when somebody meant it.
  struct Reference {
    Operation* operation;
    uint32_t generation;
  };

  void ThreadMain(const EventLoopOptions& options);
  void Run();
  // Takes over what other threads queued. Returns whether Stop() was called.
  bool TakeBatch();
  void Begin(Operation* operation);
  void CancelNow(Reference target);
  void CancelEverything();
  void FireTimers();
  // How long to wait, with the promise that whoever queues something from now
  // on wakes the thread.
  std::optional<std::chrono::nanoseconds> PrepareToWait();
  bool NothingLeft();
  // Ends the operation and calls back, last of all.
  void End(Operation* operation, absl::StatusOr<size_t> outcome);
  void Recycle(Operation* operation);
  void WakeIf(bool needed) {
    if (needed) base::SignalEventFd(wake_fd_.get());
  }
  bool TakeWakeLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return std::exchange(sleeping_, false);
  }

  LoopBackendKind kind_ = LoopBackendKind::kPlain;
  std::string text_;
  base::UniqueFd wake_fd_;

  base::Mutex mutex_;
  base::CondVar launched_;
  std::optional<absl::Status> launch_ ABSL_GUARDED_BY(mutex_);
  OperationPool pool_ ABSL_GUARDED_BY(mutex_);
  std::vector<Operation*> incoming_ ABSL_GUARDED_BY(mutex_);
  std::vector<OperationId> cancels_ ABSL_GUARDED_BY(mutex_);
  bool stop_requested_ ABSL_GUARDED_BY(mutex_) = false;
  // The thread waits, or is about to, and nobody has signalled it yet.
  bool sleeping_ ABSL_GUARDED_BY(mutex_) = false;

  // The loop's thread only (and the destructor's, once that has ended).
  std::unique_ptr<LoopBackend> backend_;
  Operation wake_;  // The watch of wake_fd_. Not of the pool, not counted.
  TimerQueue timers_;
  std::vector<Operation*> batch_;
  std::vector<Reference> cancel_batch_;
  std::vector<Operation*> recycled_;  // On their way back to the pool.
  size_t outstanding_ = 0;
  bool stopping_ = false;
  bool wake_armed_ = false;

  base::Thread thread_;  // Last: joined first.
};

template <typename Fill>
OperationId LoopCore::Start(OperationKind kind, Fill&& fill) {
  OperationId id;
  bool wake = false;
  {
    const base::MutexLock lock(&mutex_);
    Operation* const operation = pool_.Acquire();
    operation->kind = kind;
    fill(operation);
    id = {operation->slot, operation->generation};
    incoming_.push_back(operation);
    wake = TakeWakeLocked();
  }
  WakeIf(wake);
  return id;
}

}  // namespace catnap::io

#endif  // CATNAP_LIB_IO_LOOP_CORE_H_
