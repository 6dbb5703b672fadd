#include "base/thread_executor.h"

#include <deque>
#include <utility>

#include "base/mutex.h"
#include "base/status.h"

namespace catnap::base {

struct ThreadExecutor::State {
  Mutex mutex;  // Never held while a task runs or is destroyed.
  CondVar changed;
  std::deque<absl::AnyInvocable<void() &&>> tasks ABSL_GUARDED_BY(mutex);
  bool stopping ABSL_GUARDED_BY(mutex) = false;
};

namespace {

// The executor whose thread this is: how Post() and the destructor know that
// a task calls them. A thread id would not do, the system gives it out again.
thread_local const void* current_executor = nullptr;

}  // namespace

absl::StatusOr<std::unique_ptr<ThreadExecutor>> ThreadExecutor::Create(
    const std::string& thread_name) {
  auto state = std::make_shared<State>();
  CATNAP_ASSIGN_OR_RETURN(
      Thread thread,
      Thread::Start(
          thread_name, [state] { Run(state.get()); }, Thread::kUserStackBytes));
  // new: the constructor is private.
  return std::unique_ptr<ThreadExecutor>(
      new ThreadExecutor(std::move(state), std::move(thread)));
}

ThreadExecutor::ThreadExecutor(std::shared_ptr<State> state, Thread thread)
    : state_(std::move(state)), thread_(std::move(thread)) {}

ThreadExecutor::~ThreadExecutor() {
  Shutdown();
  if (current_executor == state_.get()) {
    thread_.Detach();
  } else {
    thread_.Join();
  }
}

void ThreadExecutor::Post(absl::AnyInvocable<void() &&> task) {
  const MutexLock lock(&state_->mutex);
  // What is not taken is destroyed by the caller, after the lock is released.
  if (state_->stopping && current_executor != state_.get()) return;
  state_->tasks.push_back(std::move(task));
  state_->changed.NotifyOne();
}

void ThreadExecutor::Shutdown() {
  const MutexLock lock(&state_->mutex);
  state_->stopping = true;
  state_->changed.NotifyOne();
}

void ThreadExecutor::Run(State* state) {
  current_executor = state;
  while (true) {
    absl::AnyInvocable<void() &&> task;
    {
      const MutexLock lock(&state->mutex);
      while (state->tasks.empty() && !state->stopping) {
        state->changed.Wait(&state->mutex);
      }
      if (state->tasks.empty()) return;
      task = std::move(state->tasks.front());
      state->tasks.pop_front();
    }
    std::move(task)();
  }
}

}  // namespace catnap::base
