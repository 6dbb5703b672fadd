#include "io/event_loop.h"

#include <poll.h>

#include <optional>
#include <utility>

#include "base/status.h"
#include "io/loop_core.h"
#include "io/operation.h"
#include "io/ring.h"

namespace catnap::io {
namespace {

constexpr unsigned kMaxPlainWorkers = 64;

absl::Status CheckOptions(const EventLoopOptions& options) {
  if (options.queue_entries == 0 || options.queue_entries > Ring::kMaxEntries) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "queue_entries is {}, must be 1 to {}", options.queue_entries,
                 Ring::kMaxEntries);
  }
  if (options.plain_workers == 0 || options.plain_workers > kMaxPlainWorkers) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "plain_workers is {}, must be 1 to {}", options.plain_workers,
                 kMaxPlainWorkers);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<EventLoop>> EventLoop::Create(
    const EventLoopOptions& options) {
  CATNAP_RETURN_IF_ERROR(CheckOptions(options));
  EventLoopOptions attempt = options;
  std::optional<absl::Status> refused;
  if (options.backend != LoopBackendKind::kPlain) {
    attempt.backend = LoopBackendKind::kIoUring;
    auto core = std::make_unique<LoopCore>();
    const absl::Status status = core->Launch(attempt);
    if (status.ok()) {
      return std::unique_ptr<EventLoop>(new EventLoop(std::move(core)));
    }
    if (options.backend == LoopBackendKind::kIoUring) return status;
    refused = status;
  }
  attempt.backend = LoopBackendKind::kPlain;
  auto core = std::make_unique<LoopCore>();
  CATNAP_RETURN_IF_ERROR(core->Launch(attempt));
  if (refused.has_value()) core->AddReason(*refused);
  return std::unique_ptr<EventLoop>(new EventLoop(std::move(core)));
}

EventLoop::EventLoop(std::unique_ptr<LoopCore> core) : core_(std::move(core)) {}
EventLoop::~EventLoop() = default;

void EventLoop::Stop() { core_->Stop(); }
LoopBackendKind EventLoop::backend() const { return core_->kind(); }
const std::string& EventLoop::backend_text() const { return core_->text(); }

OperationId EventLoop::Read(int fd, void* data, size_t length, uint64_t offset,
                            Completion done) {
  const iovec buffer{data, length};
  return ReadVector(fd, {&buffer, 1}, offset, std::move(done));
}

OperationId EventLoop::Write(int fd, const void* data, size_t length,
                             uint64_t offset, Completion done) {
  // The kernel's type for both directions; a write does not change the bytes.
  const iovec buffer{const_cast<void*>(data), length};
  return WriteVector(fd, {&buffer, 1}, offset, std::move(done));
}

OperationId EventLoop::ReadVector(int fd, std::span<const iovec> buffers,
                                  uint64_t offset, Completion done) {
  return core_->StartTransfer(OperationKind::kRead, fd, buffers, offset,
                              std::move(done));
}

OperationId EventLoop::WriteVector(int fd, std::span<const iovec> buffers,
                                   uint64_t offset, Completion done) {
  return core_->StartTransfer(OperationKind::kWrite, fd, buffers, offset,
                              std::move(done));
}

OperationId EventLoop::Fsync(int fd, Completion done) {
  return core_->Start(OperationKind::kFsync, [&](Operation* operation) {
    operation->fd = fd;
    operation->completion = std::move(done);
  });
}

OperationId EventLoop::Fdatasync(int fd, Completion done) {
  return core_->Start(OperationKind::kFdatasync, [&](Operation* operation) {
    operation->fd = fd;
    operation->completion = std::move(done);
  });
}

OperationId EventLoop::Fallocate(int fd, int mode, uint64_t offset,
                                 uint64_t length, Completion done) {
  return core_->Start(OperationKind::kFallocate, [&](Operation* operation) {
    operation->fd = fd;
    operation->mode = mode;
    operation->offset = offset;
    operation->length = length;
    operation->completion = std::move(done);
  });
}

OperationId EventLoop::Watch(int fd, uint32_t events, WatchCallback on_ready) {
  return core_->Start(OperationKind::kWatch, [&](Operation* operation) {
    operation->fd = fd;
    operation->events = events;
    operation->on_ready = std::move(on_ready);
  });
}

OperationId EventLoop::WatchEventFd(int fd, WatchCallback on_signal) {
  return core_->Start(OperationKind::kWatch, [&](Operation* operation) {
    operation->fd = fd;
    operation->events = POLLIN;
    operation->drains = true;
    operation->on_ready = std::move(on_signal);
  });
}

OperationId EventLoop::StartTimer(
    std::chrono::steady_clock::time_point deadline, Completion done) {
  return core_->Start(OperationKind::kTimer, [&](Operation* operation) {
    operation->deadline = deadline;
    operation->completion = std::move(done);
  });
}

void EventLoop::Cancel(OperationId id) { core_->Cancel(id); }

void EventLoop::Post(PostFunction function) {
  core_->Start(OperationKind::kPost, [&](Operation* operation) {
    operation->post = std::move(function);
  });
}

}  // namespace catnap::io
