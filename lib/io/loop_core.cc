#include "io/loop_core.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>

#include "base/checked.h"
#include "base/status.h"
#include "io/plain_backend.h"
#include "io/uring_backend.h"

namespace catnap::io {
namespace {

using std::chrono::nanoseconds;
using std::chrono::steady_clock;

// Longer waits are cut, so that no deadline overflows the kernel's clock.
constexpr nanoseconds kLongestWait = std::chrono::hours(1);
// Between two looks when the wake-up could not be watched.
constexpr nanoseconds kBlind = std::chrono::milliseconds(10);

absl::Status CheckRange(const Operation& operation) {
  const auto end =
      base::CheckedAdd<uint64_t>(operation.offset, operation.length);
  if (end.has_value() && base::CheckedCast<off_t>(*end).has_value()) {
    return absl::OkStatus();
  }
  return Error(absl::StatusCode::kInvalidArgument,
               "{} bytes at offset {} leave the range of files",
               operation.length, operation.offset);
}

absl::Status CheckWatch(const Operation& watch) {
  struct stat info {};
  if (::fstat(watch.fd, &info) != 0) {
    return ErrnoError(errno, "watch descriptor {}", watch.fd);
  }
  // Left to the backends, a regular file would be always ready or an error.
  if (S_ISREG(info.st_mode) || S_ISDIR(info.st_mode)) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "descriptor {} is a file, which is never waited for",
                 watch.fd);
  }
  if (watch.drains && (::fcntl(watch.fd, F_GETFL) & O_NONBLOCK) == 0) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "eventfd {} is blocking, must be non-blocking", watch.fd);
  }
  return absl::OkStatus();
}

absl::Status Check(const Operation& operation) {
  switch (operation.kind) {
    case OperationKind::kRead:
    case OperationKind::kWrite:
    case OperationKind::kFallocate:
      return CheckRange(operation);
    case OperationKind::kWatch:
      return CheckWatch(operation);
    case OperationKind::kPost:
    case OperationKind::kTimer:
    case OperationKind::kFsync:
    case OperationKind::kFdatasync:
      break;
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status LoopCore::Launch(const EventLoopOptions& options) {
  CATNAP_ASSIGN_OR_RETURN(wake_fd_, base::CreateEventFd());
  CATNAP_ASSIGN_OR_RETURN(
      thread_, base::Thread::Start(options.name,
                                   [this, options] { ThreadMain(options); }));
  const base::MutexLock lock(&mutex_);
  while (!launch_.has_value()) launched_.Wait(&mutex_);
  return *launch_;
}

LoopCore::~LoopCore() {
  Stop();
  // What was started after the thread had ended. Nobody else calls any more.
  stopping_ = true;
  while (true) {
    TakeBatch();
    if (batch_.empty()) break;
    for (Operation* const operation : batch_) Begin(operation);
  }
}

void LoopCore::Stop() {
  bool wake = false;
  {
    const base::MutexLock lock(&mutex_);
    stop_requested_ = true;
    wake = TakeWakeLocked();
  }
  WakeIf(wake);
  thread_.Join();
}

OperationId LoopCore::StartTransfer(OperationKind kind, int fd,
                                    std::span<const iovec> buffers,
                                    uint64_t offset, Completion done) {
  return Start(kind, [&](Operation* operation) {
    operation->fd = fd;
    operation->offset = offset;
    operation->completion = std::move(done);
    for (const iovec& buffer : buffers) {
      // A call for empty buffers only would look like the end of the file.
      if (buffer.iov_len == 0) continue;
      if (buffers.size() == 1) {
        operation->one = buffer;
      } else {
        operation->many.push_back(buffer);
      }
      // A sum that wraps becomes one that no range allows.
      operation->length =
          base::CheckedAdd<uint64_t>(operation->length, buffer.iov_len)
              .value_or(UINT64_MAX);
    }
  });
}

void LoopCore::Cancel(OperationId id) {
  bool wake = false;
  {
    const base::MutexLock lock(&mutex_);
    cancels_.push_back(id);
    wake = TakeWakeLocked();
  }
  WakeIf(wake);
}

void LoopCore::AddReason(const absl::Status& refused) {
  text_ = fmt::format("{}, because {}", text_, std::string(refused.message()));
}

void LoopCore::ThreadMain(const EventLoopOptions& options) {
  kind_ = options.backend;
  auto backend = kind_ == LoopBackendKind::kIoUring
                     ? UringBackend::Create(options.queue_entries, this)
                     : PlainBackend::Create(options, wake_fd_.get(), this);
  absl::Status launch;
  if (backend.ok()) {
    backend_ = *std::move(backend);
    text_ = backend_->Description();
  } else {
    launch = std::move(backend).status();
  }
  {
    const base::MutexLock lock(&mutex_);
    // Moved, not copied: the other thread may be the last to hold it.
    launch_ = std::move(launch);
  }
  launched_.NotifyOne();
  if (backend_ == nullptr) return;
  wake_.kind = OperationKind::kWatch;
  wake_.fd = wake_fd_.get();
  wake_.events = POLLIN;
  Run();
  backend_.reset();
}

void LoopCore::Run() {
  while (true) {
    const bool stop = TakeBatch();
    for (Operation* const operation : batch_) Begin(operation);
    for (const Reference& target : cancel_batch_) CancelNow(target);
    if (stop && !stopping_) {
      stopping_ = true;
      CancelEverything();
    }
    FireTimers();
    if (stopping_ && NothingLeft()) return;
    if (!std::exchange(wake_armed_, true)) backend_->Start(&wake_);
    backend_->Wait(PrepareToWait());
    {
      // Callbacks that start something need not wake their own thread.
      const base::MutexLock lock(&mutex_);
      sleeping_ = false;
    }
    backend_->Dispatch();
  }
}

bool LoopCore::TakeBatch() {
  batch_.clear();
  cancel_batch_.clear();
  const base::MutexLock lock(&mutex_);
  for (Operation* const operation : recycled_) pool_.Release(operation);
  recycled_.clear();
  batch_.swap(incoming_);
  // Looked up here, where the pool cannot grow; what has ended meanwhile, or
  // was never started, is not found.
  for (const OperationId id : cancels_) {
    if (Operation* const operation = pool_.Find(id)) {
      cancel_batch_.push_back({operation, id.generation});
    }
  }
  cancels_.clear();
  return stop_requested_;
}

void LoopCore::Begin(Operation* operation) {
  operation->active = true;
  ++outstanding_;
  if (operation->kind == OperationKind::kPost) {
    PostFunction post = std::move(operation->post);
    Recycle(operation);
    std::move(post)();
    return;
  }
  if (stopping_) {
    OnFinished(operation, -ECANCELED);
  } else if (absl::Status status = Check(*operation); !status.ok()) {
    End(operation, std::move(status));
  } else if (operation->kind == OperationKind::kTimer) {
    timers_.Add(operation);
  } else if (operation->is_transfer() && operation->length == 0) {
    End(operation, 0);
  } else {
    backend_->Start(operation);
  }
}

void LoopCore::CancelNow(Reference target) {
  Operation* const operation = target.operation;
  if (operation->generation != target.generation) return;
  if (operation->kind == OperationKind::kTimer) {
    timers_.Remove(operation);
    OnFinished(operation, -ECANCELED);
  } else {
    backend_->Cancel(operation);
  }
}

void LoopCore::CancelEverything() {
  std::vector<Reference> targets;
  {
    const base::MutexLock lock(&mutex_);
    pool_.ForEach([&targets](Operation* operation) {
      if (operation->active) {
        targets.push_back({operation, operation->generation});
      }
    });
  }
  for (const Reference& target : targets) CancelNow(target);
}

void LoopCore::FireTimers() {
  if (!timers_.NextDeadline().has_value()) return;
  const auto now = steady_clock::now();
  while (Operation* const timer = timers_.PopDue(now)) OnFinished(timer, 0);
}

std::optional<nanoseconds> LoopCore::PrepareToWait() {
  std::optional<nanoseconds> timeout;
  if (const auto deadline = timers_.NextDeadline()) {
    const auto now = steady_clock::now();
    timeout = *deadline <= now
                  ? nanoseconds(0)
                  : std::min<nanoseconds>(*deadline - now, kLongestWait);
  }
  // The kernel would not watch the wake-up: look often until it does.
  if (!wake_armed_) timeout = std::min(timeout.value_or(kBlind), kBlind);
  const base::MutexLock lock(&mutex_);
  if (!incoming_.empty() || !cancels_.empty() ||
      (stop_requested_ && !stopping_)) {
    return nanoseconds(0);
  }
  sleeping_ = true;
  return timeout;
}

bool LoopCore::NothingLeft() {
  if (outstanding_ != 0) return false;
  const base::MutexLock lock(&mutex_);
  return incoming_.empty();
}

void LoopCore::OnReady(Operation* watch, uint32_t events) {
  if (watch == &wake_) {
    base::DrainEventFd(wake_.fd);
    return;
  }
  // Another watch of the same eventfd may have been faster.
  if (watch->drains && !base::DrainEventFd(watch->fd)) return;
  watch->on_ready(events);
}

void LoopCore::OnFinished(Operation* operation, int64_t result) {
  if (operation == &wake_) {
    wake_armed_ = false;
  } else if (result < 0) {
    End(operation, operation->ErrorFor(static_cast<int>(-result)));
  } else {
    End(operation, static_cast<size_t>(result));
  }
}

void LoopCore::End(Operation* operation, absl::StatusOr<size_t> outcome) {
  if (operation->kind == OperationKind::kWatch) {
    WatchCallback on_ready = std::move(operation->on_ready);
    Recycle(operation);
    on_ready(outcome.status());  // Never OK: no backend ends a watch so.
  } else {
    Completion completion = std::move(operation->completion);
    Recycle(operation);
    std::move(completion)(std::move(outcome));
  }
}

void LoopCore::Recycle(Operation* operation) {
  operation->ResetForReuse();
  if (++operation->generation == 0) operation->generation = 1;
  recycled_.push_back(operation);
  --outstanding_;
}

}  // namespace catnap::io
