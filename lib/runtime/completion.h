#ifndef CATNAP_LIB_RUNTIME_COMPLETION_H_
#define CATNAP_LIB_RUNTIME_COMPLETION_H_

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>
#include <utility>

#include "agent/client.h"
#include "base/mutex.h"
#include "catnap/call.h"

namespace catnap::runtime {

// A value that one thread waits for and another brings, by a callback that may
// come after the waiter is gone. Copies share it. Thread-safe.
template <typename T>
class Completion {
 public:
  // The first value counts.
  void Set(T value) const {
    const base::MutexLock lock(&shared_->mutex);
    if (!shared_->value.has_value()) shared_->value.emplace(std::move(value));
    shared_->set.NotifyAll();
  }
  // Blocks. REQUIRES: called once.
  T Wait() const {
    const base::MutexLock lock(&shared_->mutex);
    while (!shared_->value.has_value()) shared_->set.Wait(&shared_->mutex);
    return std::move(*shared_->value);
  }

 private:
  struct Shared {
    base::Mutex mutex;
    base::CondVar set;
    std::optional<T> value ABSL_GUARDED_BY(mutex);
  };
  std::shared_ptr<Shared> shared_ = std::make_shared<Shared>();
};

// When a call that starts now has to end, for the layers below.
// Errors: INVALID_ARGUMENT, a timeout that is not positive.
inline absl::StatusOr<agent::CallLimits> LimitsOf(const CallOptions& call) {
  if (!call.timeout.has_value()) return agent::CallLimits({}, call.stop);
  if (call.timeout->count() <= 0) {
    return absl::InvalidArgumentError(
        "CallOptions::timeout must be at least 1 ms");
  }
  // Beyond this the clock's arithmetic ends, and nobody waits so long.
  constexpr Millis kLongest = std::chrono::hours(24 * 365);
  return agent::CallLimits(
      std::chrono::steady_clock::now() + std::min(*call.timeout, kLongest),
      call.stop);
}

}  // namespace catnap::runtime

#endif  // CATNAP_LIB_RUNTIME_COMPLETION_H_
