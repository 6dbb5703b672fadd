#include "base/serial_queue.h"

#include <deque>
#include <thread>
#include <utility>

#include "base/mutex.h"

namespace catnap::base {

struct SerialQueue::State {
  explicit State(std::shared_ptr<Executor> executor_in)
      : executor(std::move(executor_in)) {}

  const std::shared_ptr<Executor> executor;
  // Never held while a task runs or is destroyed, nor over the executor's
  // Post().
  Mutex mutex;
  CondVar returned;
  std::deque<absl::AnyInvocable<void() &&>> tasks ABSL_GUARDED_BY(mutex);
  // RunOne() was given to the executor and has not returned. While it is set,
  // nobody else schedules: that makes the queue serial.
  bool scheduled ABSL_GUARDED_BY(mutex) = false;
  bool cancelled ABSL_GUARDED_BY(mutex) = false;
  // The thread that is inside a task, or none.
  std::thread::id running ABSL_GUARDED_BY(mutex);
};

SerialQueue::SerialQueue(std::shared_ptr<Executor> executor)
    : state_(std::make_shared<State>(std::move(executor))) {}

SerialQueue::~SerialQueue() { Cancel(); }

void SerialQueue::Post(absl::AnyInvocable<void() &&> task) {
  {
    const MutexLock lock(&state_->mutex);
    // What is not taken is destroyed by the caller, after the lock.
    if (state_->cancelled) return;
    state_->tasks.push_back(std::move(task));
    if (state_->scheduled) return;
    state_->scheduled = true;
  }
  Schedule(state_);
}

void SerialQueue::Schedule(const std::shared_ptr<State>& state) {
  state->executor->Post([state] { RunOne(state); });
}

void SerialQueue::RunOne(const std::shared_ptr<State>& state) {
  absl::AnyInvocable<void() &&> task;
  {
    const MutexLock lock(&state->mutex);
    // Empty only when Cancel() came first.
    if (state->tasks.empty()) return;
    task = std::move(state->tasks.front());
    state->tasks.pop_front();
    state->running = std::this_thread::get_id();
  }
  std::move(task)();
  // What it captured goes too before Cancel() returns.
  task = nullptr;
  bool more = false;
  {
    const MutexLock lock(&state->mutex);
    state->running = std::thread::id();
    more = !state->tasks.empty();
    state->scheduled = more;
    state->returned.NotifyAll();
  }
  if (more) Schedule(state);
}

void SerialQueue::Cancel() {
  std::deque<absl::AnyInvocable<void() &&>> dropped;
  {
    const MutexLock lock(&state_->mutex);
    state_->cancelled = true;
    dropped.swap(state_->tasks);
    while (state_->running != std::thread::id() &&
           state_->running != std::this_thread::get_id()) {
      state_->returned.Wait(&state_->mutex);
    }
  }
}

}  // namespace catnap::base
