#include "io/uring_backend.h"

#include <algorithm>
#include <cerrno>
#include <climits>

#include "base/status.h"

namespace catnap::io {
namespace {

// The kernel transfers at most 2 GiB at once; the rest follows.
constexpr size_t kMaxCallBytes = 1 << 30;

void Prepare(Operation* operation, io_uring_sqe* sqe) {
  const int fd = operation->fd;
  switch (operation->kind) {
    case OperationKind::kRead:
    case OperationKind::kWrite: {
      const bool read = operation->kind == OperationKind::kRead;
      const auto segments = operation->segments();
      if (segments.size() == 1) {
        const auto length =
            static_cast<unsigned>(std::min(segments[0].iov_len, kMaxCallBytes));
        io_uring_prep_rw(read ? IORING_OP_READ : IORING_OP_WRITE, sqe, fd,
                         segments[0].iov_base, length,
                         operation->next_offset());
      } else {
        const auto count =
            static_cast<unsigned>(std::min<size_t>(segments.size(), IOV_MAX));
        io_uring_prep_rw(read ? IORING_OP_READV : IORING_OP_WRITEV, sqe, fd,
                         segments.data(), count, operation->next_offset());
      }
      break;
    }
    case OperationKind::kFsync:
      io_uring_prep_fsync(sqe, fd, 0);
      break;
    case OperationKind::kFdatasync:
      io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
      break;
    case OperationKind::kFallocate:
      io_uring_prep_fallocate(sqe, fd, operation->mode,
                              static_cast<off_t>(operation->offset),
                              static_cast<off_t>(operation->length));
      break;
    case OperationKind::kWatch:
      io_uring_prep_poll_multishot(sqe, fd, operation->events);
      break;
    case OperationKind::kPost:
    case OperationKind::kTimer:
      io_uring_prep_nop(sqe);  // The loop keeps these to itself.
      break;
  }
  if (operation->forced_async) sqe->flags |= IOSQE_ASYNC;
  io_uring_sqe_set_data(sqe, operation);
}

}  // namespace

absl::StatusOr<std::unique_ptr<LoopBackend>> UringBackend::Create(
    unsigned queue_entries, BackendEvents* events) {
  CATNAP_ASSIGN_OR_RETURN(auto ring, Ring::Create(queue_entries));
  return std::unique_ptr<LoopBackend>(
      new UringBackend(std::move(ring), events));
}

void UringBackend::Start(Operation* operation) {
  operation->stage = Operation::Stage::kWaiting;
  (operation->kind == OperationKind::kWatch ? watches_ : files_)
      .PushBack(operation);
}

void UringBackend::Cancel(Operation* operation) {
  operation->cancel_requested = true;
  if (operation->stage == Operation::Stage::kRunning) {
    operation->stage = Operation::Stage::kCancelling;
    cancelling_.PushBack(operation);
  } else if (operation->stage == Operation::Stage::kWaiting) {
    (operation->kind == OperationKind::kWatch ? watches_ : files_)
        .Remove(operation);
    operation->stage = Operation::Stage::kIdle;
    events_->OnFinished(operation, -ECANCELED);
  }
}

bool UringBackend::Submit() {
  // A completion never gets lost, but more of them than the queue holds cost
  // kernel memory; so files leave half of the queue to watches and cancels.
  const unsigned files_limit = ring_->completion_entries() / 2;
  while (Operation* const watch = watches_.first()) {
    io_uring_sqe* const sqe = ring_->GetSqe();
    if (sqe == nullptr) return false;
    watches_.Remove(watch);
    Prepare(watch, sqe);
    watch->stage = Operation::Stage::kRunning;
  }
  while (files_running_ < files_limit && !files_.empty()) {
    io_uring_sqe* const sqe = ring_->GetSqe();
    if (sqe == nullptr) return false;
    Operation* const file = files_.PopFront();
    Prepare(file, sqe);
    file->stage = Operation::Stage::kRunning;
    ++files_running_;
  }
  // Entries are taken in order, so a cancel always finds its operation or
  // nothing, never a later one in the same place.
  while (Operation* const operation = cancelling_.first()) {
    io_uring_sqe* const sqe = ring_->GetSqe();
    if (sqe == nullptr) return false;
    cancelling_.Remove(operation);
    io_uring_prep_cancel(sqe, operation, 0);
    io_uring_sqe_set_data(sqe, nullptr);
    operation->stage = Operation::Stage::kCancelSent;
  }
  return true;
}

void UringBackend::Wait(std::optional<std::chrono::nanoseconds> timeout) {
  if (!Submit()) {
    // Most likely completions have to be reaped first, and then this returns at
    // once. If the kernel is out of memory, nothing else may wake us.
    constexpr std::chrono::nanoseconds kRetry = std::chrono::milliseconds(1);
    timeout = std::min(timeout.value_or(kRetry), kRetry);
  }
  ring_->Wait(timeout);
}

void UringBackend::Dispatch() {
  ring_->Reap([this](uint64_t data, int32_t result, uint32_t flags) {
    // The number is a pointer of ours that the kernel hands back.
    auto* const operation =  // NOLINTNEXTLINE(performance-no-int-to-ptr)
        reinterpret_cast<Operation*>(static_cast<uintptr_t>(data));
    // What a cancel itself returns says nothing that its target does not say.
    if (operation != nullptr) OnCompletion(operation, result, flags);
  });
}

void UringBackend::OnCompletion(Operation* operation, int32_t result,
                                uint32_t flags) {
  if (operation->kind == OperationKind::kWatch &&
      (flags & IORING_CQE_F_MORE) != 0) {
    events_->OnReady(operation, static_cast<uint32_t>(result));
    return;
  }
  if (operation->stage == Operation::Stage::kCancelling) {
    cancelling_.Remove(operation);
  }
  operation->stage = Operation::Stage::kIdle;
  if (operation->kind == OperationKind::kWatch) {
    OnWatchEnd(operation, result);
    return;
  }
  --files_running_;
  if (result == -EAGAIN && !operation->forced_async &&
      !operation->cancel_requested) {
    // The file system could not do it without blocking: let a kernel thread.
    operation->forced_async = true;
    Start(operation);
    return;
  }
  if (const auto end = operation->Progress(result)) {
    events_->OnFinished(operation, *end);
  } else {
    Start(operation);
  }
}

void UringBackend::OnWatchEnd(Operation* watch, int32_t result) {
  if (watch->cancel_requested) {
    events_->OnFinished(watch, -ECANCELED);
  } else if (result < 0) {
    events_->OnFinished(watch, result);
  } else {
    // The kernel ends a multishot poll when completions overflow. Arming it
    // again reports what became ready in between.
    Start(watch);
    events_->OnReady(watch, static_cast<uint32_t>(result));
  }
}

}  // namespace catnap::io
