#ifndef CATNAP_LIB_RUNTIME_OWNED_EXECUTOR_H_
#define CATNAP_LIB_RUNTIME_OWNED_EXECUTOR_H_

#include <chrono>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "base/thread_executor.h"
#include "catnap/executor.h"

namespace catnap::runtime {

// A thread that runs tasks, shared by objects that may live longer than it:
// after Join() tasks are destroyed without running. Thread-safe.
class OwnedExecutor final : public Executor {
 public:
  // Errors: RESOURCE_EXHAUSTED (threads).
  static absl::StatusOr<std::shared_ptr<OwnedExecutor>> Create(
      const std::string& thread_name);

  void Post(absl::AnyInvocable<void() &&> task) override;
  // Waits until what was posted before has run; returns whether it has by
  // `deadline`. True at once on the thread itself.
  bool WaitIdle(std::chrono::steady_clock::time_point deadline);
  // Takes no more tasks, runs those that wait and ends the thread. On the
  // thread itself it does not wait, and tasks may post more; the thread ends
  // with this object. Idempotent.
  void Join();

 private:
  explicit OwnedExecutor(std::unique_ptr<base::ThreadExecutor> executor)
      : executor_(std::move(executor)) {}
  bool IsCurrent() const;

  base::Mutex mutex_;
  std::unique_ptr<base::ThreadExecutor> executor_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace catnap::runtime

#endif  // CATNAP_LIB_RUNTIME_OWNED_EXECUTOR_H_
