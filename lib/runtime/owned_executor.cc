#include "runtime/owned_executor.h"

#include <utility>

#include "base/status.h"
#include "runtime/completion.h"

namespace catnap::runtime {
namespace {

// Whose task this thread runs.
thread_local const OwnedExecutor* current = nullptr;

}  // namespace

absl::StatusOr<std::shared_ptr<OwnedExecutor>> OwnedExecutor::Create(
    const std::string& thread_name) {
  CATNAP_ASSIGN_OR_RETURN(auto executor,
                          base::ThreadExecutor::Create(thread_name));
  return std::shared_ptr<OwnedExecutor>(new OwnedExecutor(std::move(executor)));
}

bool OwnedExecutor::IsCurrent() const { return current == this; }

void OwnedExecutor::Post(absl::AnyInvocable<void() &&> task) {
  const base::MutexLock lock(&mutex_);
  if (executor_ == nullptr) return;
  executor_->Post([this, task = std::move(task)]() mutable {
    current = this;
    std::move(task)();
    task = nullptr;
    current = nullptr;
  });
}

bool OwnedExecutor::WaitIdle(std::chrono::steady_clock::time_point deadline) {
  if (IsCurrent()) return true;
  struct Idle {
    base::Mutex mutex;
    base::CondVar changed;
    bool reached ABSL_GUARDED_BY(mutex) = false;
  };
  const auto idle = std::make_shared<Idle>();
  {
    const base::MutexLock lock(&mutex_);
    if (executor_ == nullptr) return true;
    executor_->Post([idle] {
      const base::MutexLock idle_lock(&idle->mutex);
      idle->reached = true;
      idle->changed.NotifyAll();
    });
  }
  const base::MutexLock lock(&idle->mutex);
  while (!idle->reached) {
    if (!idle->changed.WaitUntil(&idle->mutex, deadline) &&
        std::chrono::steady_clock::now() >= deadline) {
      return idle->reached;
    }
  }
  return true;
}

void OwnedExecutor::Join() {
  std::unique_ptr<base::ThreadExecutor> ending;
  const base::MutexLock lock(&mutex_);
  if (IsCurrent()) {
    // What waits behind the caller's task is still run, and what follows of it.
    if (executor_ != nullptr) executor_->Shutdown();
    return;
  }
  ending.swap(executor_);
  // Its tasks may post: to nobody any more.
  mutex_.Unlock();
  ending.reset();
  mutex_.Lock();
}

}  // namespace catnap::runtime
