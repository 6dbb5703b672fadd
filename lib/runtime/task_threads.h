#ifndef CATNAP_LIB_RUNTIME_TASK_THREADS_H_
#define CATNAP_LIB_RUNTIME_TASK_THREADS_H_

#include <cstddef>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "base/thread.h"
#include "catnap/executor.h"

namespace catnap::runtime {

// Threads for tasks that block: one is always there, more come with the work up
// to a bound and stay. After Join() tasks are destroyed without running.
//
// Tasks may run at the same time and in any order. Thread-safe.
class TaskThreads final : public Executor {
 public:
  // Errors: RESOURCE_EXHAUSTED (threads).
  static absl::StatusOr<std::shared_ptr<TaskThreads>> Create(std::string name,
                                                             size_t most);
  ~TaskThreads() override { Join(); }

  void Post(absl::AnyInvocable<void() &&> task) override;
  // Takes no more tasks, runs those that wait and ends the threads. Idempotent.
  // REQUIRES: not in a task.
  void Join();

 private:
  TaskThreads(std::string name, size_t most)
      : name_(std::move(name)), most_(most) {}
  absl::Status AddThreadLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Run();

  const std::string name_;
  const size_t most_;
  base::Mutex mutex_;
  base::CondVar work_;
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;
  size_t idle_ ABSL_GUARDED_BY(mutex_) = 0;  // Threads that wait for work.
  std::deque<absl::AnyInvocable<void() &&>> tasks_ ABSL_GUARDED_BY(mutex_);
  std::vector<base::Thread> threads_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace catnap::runtime

#endif  // CATNAP_LIB_RUNTIME_TASK_THREADS_H_
