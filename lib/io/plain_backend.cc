#include "io/plain_backend.h"

#include <fcntl.h>
#include <poll.h>

#include <cerrno>

#include "base/status.h"

namespace catnap::io {
namespace {

static_assert(EPOLLIN == POLLIN && EPOLLOUT == POLLOUT && EPOLLERR == POLLERR &&
                  EPOLLHUP == POLLHUP,
              "events go through unchanged");

}  // namespace

absl::StatusOr<std::unique_ptr<LoopBackend>> PlainBackend::Create(
    const EventLoopOptions& options, int wake_fd, BackendEvents* events) {
  base::UniqueFd epoll(::epoll_create1(EPOLL_CLOEXEC));
  if (!epoll.valid()) return ErrnoError(errno, "epoll_create1");
  CATNAP_ASSIGN_OR_RETURN(
      auto workers,
      FileWorkers::Create(options.name, options.plain_workers, wake_fd));
  return std::unique_ptr<LoopBackend>(
      new PlainBackend(std::move(epoll), std::move(workers), events));
}

void PlainBackend::Start(Operation* operation) {
  if (operation->kind != OperationKind::kWatch) {
    workers_->Submit(operation);
    return;
  }
  operation->stage = Operation::Stage::kRunning;
  if (const int result = AddWatch(operation); result != 0) {
    operation->stage = Operation::Stage::kIdle;
    events_->OnFinished(operation, result);
  }
}

int PlainBackend::AddWatch(Operation* watch) {
  epoll_event event{};
  // Edge-triggered, as a multishot poll is.
  event.events = watch->events | EPOLLET;
  event.data.ptr = watch;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, watch->fd, &event) == 0) {
    return 0;
  }
  if (errno != EEXIST) return errno == EPERM ? -EINVAL : -errno;
  // epoll takes a descriptor once.
  watch->own_fd = base::UniqueFd(::fcntl(watch->fd, F_DUPFD_CLOEXEC, 0));
  if (!watch->own_fd.valid()) return -errno;
  const int fd = watch->own_fd.get();
  return ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) == 0 ? 0 : -errno;
}

void PlainBackend::Cancel(Operation* operation) {
  if (operation->kind == OperationKind::kWatch) {
    const int fd =
        operation->own_fd.valid() ? operation->own_fd.get() : operation->fd;
    ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
    operation->stage = Operation::Stage::kIdle;
    events_->OnFinished(operation, -ECANCELED);
  } else if (workers_->Cancel(operation)) {
    events_->OnFinished(operation, -ECANCELED);
  }
}

void PlainBackend::Wait(std::optional<std::chrono::nanoseconds> timeout) {
  // epoll_wait() counts milliseconds; ppoll() on the epoll descriptor does
  // not, and every kernel has it.
  if (timeout.has_value() && timeout->count() > 0) {
    const auto seconds =
        std::chrono::duration_cast<std::chrono::seconds>(*timeout);
    const timespec limit{seconds.count(), (*timeout - seconds).count()};
    pollfd ready{epoll_.get(), POLLIN, 0};
    ::ppoll(&ready, 1, &limit, nullptr);
  }
  ready_count_ = ::epoll_wait(epoll_.get(), ready_.data(), kEventsPerTurn,
                              timeout.has_value() ? 0 : -1);
}

void PlainBackend::Dispatch() {
  // Nothing here ends a watch but Cancel(), which only the loop calls, so all
  // pointers stay good.
  for (int i = 0; i < ready_count_; ++i) {
    const epoll_event& event = ready_.at(static_cast<size_t>(i));
    events_->OnReady(static_cast<Operation*>(event.data.ptr), event.events);
  }
  // After the wake-up was taken back: one that comes now is for the next turn.
  workers_->TakeFinished(&finished_);
  for (Operation* const operation : finished_) {
    operation->stage = Operation::Stage::kIdle;
    events_->OnFinished(operation, operation->result);
  }
  finished_.clear();
}

}  // namespace catnap::io
