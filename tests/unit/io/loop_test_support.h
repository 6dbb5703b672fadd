#ifndef CATNAP_TESTS_UNIT_IO_LOOP_TEST_SUPPORT_H_
#define CATNAP_TESTS_UNIT_IO_LOOP_TEST_SUPPORT_H_

#include <catch2/catch.hpp>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "io/event_loop.h"

namespace catnap::io {

// The backends this host offers: each test of the loop runs on every one.
inline const std::vector<LoopBackendKind>& Backends() {
  static const std::vector<LoopBackendKind> backends = [] {
    std::vector<LoopBackendKind> found{LoopBackendKind::kPlain};
    if (EventLoop::Create({.backend = LoopBackendKind::kIoUring}).ok()) {
      found.push_back(LoopBackendKind::kIoUring);
    }
    return found;
  }();
  return backends;
}

inline std::unique_ptr<EventLoop> MakeLoop(const EventLoopOptions& options) {
  auto loop = EventLoop::Create(options);
  REQUIRE(loop.ok());
  return *std::move(loop);
}

// Values that callbacks bring in, in the order they came. Waiting ends only
// when they are there; the test's time-out is CTest's. Copies share the
// content: callbacks hold one, because a loop that is destroyed at the end of
// a test calls back once more.
template <typename T>
class Inbox {
 public:
  void Put(T value) const {
    const base::MutexLock lock(&state_->mutex);
    state_->values.push_back(std::move(value));
    state_->came.NotifyAll();
  }
  // A copy of all values, once there are `count` or more.
  std::vector<T> WaitFor(size_t count) const {
    const base::MutexLock lock(&state_->mutex);
    while (state_->values.size() < count) state_->came.Wait(&state_->mutex);
    return state_->values;
  }
  size_t size() const {
    const base::MutexLock lock(&state_->mutex);
    return state_->values.size();
  }

 private:
  struct State {
    base::Mutex mutex;
    base::CondVar came;
    std::vector<T> values ABSL_GUARDED_BY(mutex);
  };
  std::shared_ptr<State> state_ = std::make_shared<State>();
};

// What a callback was called with, as plain data: a status that two threads
// share looks like a race to ThreadSanitizer, because the library that counts
// its references is not built for it.
struct Outcome {
  template <typename T>
  explicit Outcome(const absl::StatusOr<T>& result)
      : code(result.status().code()), text(result.status().ToString()) {
    if (result.ok()) value = *result;
  }
  bool ok() const { return code == absl::StatusCode::kOk; }

  absl::StatusCode code;
  std::string text;
  size_t value = 0;
};

using Outcomes = Inbox<Outcome>;

inline auto Into(const Outcomes& outcomes) {
  return [outcomes](const auto& result) { outcomes.Put(Outcome(result)); };
}

// Starts one operation and waits for its end.
template <typename StartOperation>
Outcome Await(StartOperation&& start) {
  const Outcomes outcomes;
  start(Into(outcomes));
  return outcomes.WaitFor(1).front();
}

// Returns when the loop has taken everything that was started before.
inline void Settle(EventLoop* loop) {
  const Inbox<int> done;
  loop->Post([done] { done.Put(0); });
  done.WaitFor(1);
}

}  // namespace catnap::io

#endif  // CATNAP_TESTS_UNIT_IO_LOOP_TEST_SUPPORT_H_
