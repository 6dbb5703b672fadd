#include "runtime/task_threads.h"

#include <utility>

#include "base/status.h"

namespace catnap::runtime {

absl::StatusOr<std::shared_ptr<TaskThreads>> TaskThreads::Create(
    std::string name, size_t most) {
  std::shared_ptr<TaskThreads> made(new TaskThreads(std::move(name), most));
  const base::MutexLock lock(&made->mutex_);
  CATNAP_RETURN_IF_ERROR(made->AddThreadLocked());
  return made;
}

absl::Status TaskThreads::AddThreadLocked() {
  CATNAP_ASSIGN_OR_RETURN(auto thread,
                          base::Thread::Start(name_, [this] { Run(); }));
  threads_.push_back(std::move(thread));
  return absl::OkStatus();
}

void TaskThreads::Post(absl::AnyInvocable<void() &&> task) {
  const base::MutexLock lock(&mutex_);
  if (ending_) return;
  tasks_.push_back(std::move(task));
  if (tasks_.size() > idle_ && threads_.size() < most_) {
    // Without another thread it only waits longer.
    if (const absl::Status more = AddThreadLocked(); !more.ok()) {
      work_.NotifyOne();
      return;
    }
  }
  work_.NotifyOne();
}

void TaskThreads::Run() {
  for (;;) {
    absl::AnyInvocable<void() &&> task;
    {
      const base::MutexLock lock(&mutex_);
      ++idle_;
      while (tasks_.empty() && !ending_) work_.Wait(&mutex_);
      --idle_;
      if (tasks_.empty()) return;
      task = std::move(tasks_.front());
      tasks_.pop_front();
    }
    std::move(task)();
  }
}

void TaskThreads::Join() {
  std::vector<base::Thread> threads;
  {
    const base::MutexLock lock(&mutex_);
    ending_ = true;
    threads.swap(threads_);
    work_.NotifyAll();
  }
  threads.clear();
}

}  // namespace catnap::runtime
