#ifndef CATNAP_LIB_BASE_THREAD_EXECUTOR_H_
#define CATNAP_LIB_BASE_THREAD_EXECUTOR_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "base/thread.h"
#include "catnap/executor.h"

namespace catnap::base {

// The library's own executor: one thread that runs tasks in the order of
// Post(). Thread-safe. Tasks may post, and may destroy the executor.
class ThreadExecutor final : public Executor {
 public:
  // `thread_name` is what /proc shows, at most 15 bytes of it.
  // Errors: RESOURCE_EXHAUSTED (threads).
  static absl::StatusOr<std::unique_ptr<ThreadExecutor>> Create(
      const std::string& thread_name);

  ThreadExecutor(const ThreadExecutor&) = delete;
  ThreadExecutor& operator=(const ThreadExecutor&) = delete;

  // Runs everything that was posted, and what those tasks post, then ends the
  // thread; blocks meanwhile. In a task it cannot wait for itself: it returns
  // at once, and the thread ends by itself when the rest has run.
  // REQUIRES: the caller holds no lock that a task takes.
  ~ThreadExecutor() override;

  void Post(absl::AnyInvocable<void() &&> task) override;

  // From now on a task is taken only from a task that runs here; any other is
  // destroyed in Post() without running. Does not block. Idempotent.
  void Shutdown();

 private:
  // Shared with the thread, which may outlive this object.
  struct State;

  ThreadExecutor(std::shared_ptr<State> state, Thread thread);
  static void Run(State* state);

  const std::shared_ptr<State> state_;
  Thread thread_;
};

}  // namespace catnap::base

#endif  // CATNAP_LIB_BASE_THREAD_EXECUTOR_H_
