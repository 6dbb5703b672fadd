#include "io/file_workers.h"

#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>

#include "base/status.h"
#include "base/unique_fd.h"

namespace catnap::io {
namespace {

// One call to the kernel. Returns its result or -errno.
int64_t Call(Operation* operation) {
  const int fd = operation->fd;
  const auto offset = static_cast<off_t>(operation->next_offset());
  int64_t result = -EINVAL;
  switch (operation->kind) {
    case OperationKind::kRead:
    case OperationKind::kWrite: {
      const auto segments = operation->segments();
      const int count =
          static_cast<int>(std::min<size_t>(segments.size(), IOV_MAX));
      result = operation->kind == OperationKind::kRead
                   ? ::preadv(fd, segments.data(), count, offset)
                   : ::pwritev(fd, segments.data(), count, offset);
      break;
    }
    case OperationKind::kFsync:
      result = ::fsync(fd);
      break;
    case OperationKind::kFdatasync:
      result = ::fdatasync(fd);
      break;
    case OperationKind::kFallocate:
      result = ::fallocate(fd, operation->mode, offset,
                           static_cast<off_t>(operation->length));
      break;
    case OperationKind::kPost:
    case OperationKind::kTimer:
    case OperationKind::kWatch:
      return -EINVAL;  // Not for workers.
  }
  return result < 0 ? -errno : result;
}

int64_t RunToEnd(Operation* operation) {
  while (!operation->cancel_requested) {
    if (const auto end = operation->Progress(Call(operation))) return *end;
  }
  return -ECANCELED;
}

}  // namespace

absl::StatusOr<std::unique_ptr<FileWorkers>> FileWorkers::Create(
    const std::string& name, unsigned max_threads, int wake_fd) {
  std::unique_ptr<FileWorkers> workers(
      new FileWorkers(name, max_threads, wake_fd));
  CATNAP_RETURN_IF_ERROR(workers->StartThread());
  return workers;
}

FileWorkers::~FileWorkers() {
  {
    const base::MutexLock lock(&mutex_);
    stop_ = true;
  }
  work_.NotifyAll();
}

absl::Status FileWorkers::StartThread() {
  CATNAP_ASSIGN_OR_RETURN(auto thread,
                          base::Thread::Start(name_, [this] { Work(); }));
  threads_.push_back(std::move(thread));
  return absl::OkStatus();
}

void FileWorkers::Submit(Operation* operation) {
  bool busy = false;
  {
    const base::MutexLock lock(&mutex_);
    operation->stage = Operation::Stage::kWaiting;
    queue_.PushBack(operation);
    ++queued_;
    busy = queued_ > idle_;
  }
  work_.NotifyOne();
  // A system without more threads still has the first one.
  if (busy && threads_.size() < max_threads_) StartThread().IgnoreError();
}

bool FileWorkers::Cancel(Operation* operation) {
  const base::MutexLock lock(&mutex_);
  operation->cancel_requested = true;
  if (operation->stage != Operation::Stage::kWaiting) return false;
  operation->stage = Operation::Stage::kIdle;
  queue_.Remove(operation);
  --queued_;
  return true;
}

void FileWorkers::TakeFinished(std::vector<Operation*>* into) {
  const base::MutexLock lock(&mutex_);
  into->swap(finished_);
}

void FileWorkers::Work() {
  while (true) {
    Operation* operation = nullptr;
    {
      const base::MutexLock lock(&mutex_);
      ++idle_;
      while (queue_.empty() && !stop_) work_.Wait(&mutex_);
      --idle_;
      operation = queue_.PopFront();
      if (operation == nullptr) return;
      --queued_;
      operation->stage = Operation::Stage::kRunning;
    }
    operation->result = RunToEnd(operation);
    bool wake = false;
    {
      const base::MutexLock lock(&mutex_);
      wake = finished_.empty();
      finished_.push_back(operation);
    }
    // Not needed for more: the loop takes all that are there when it comes.
    if (wake) base::SignalEventFd(wake_fd_);
  }
}

}  // namespace catnap::io
