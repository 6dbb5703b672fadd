#ifndef CATNAP_LIB_DISK_AWAIT_H_
#define CATNAP_LIB_DISK_AWAIT_H_

#include <memory>
#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "base/mutex.h"
#include "disk/block_io.h"

namespace catnap::disk {

// The end of a request, for a thread that may block. Not one of the loops
// beneath the disk.
class AwaitedRequest {
 public:
  BlockCompletion completion() {
    return [state = state_](absl::Status status) {
      const base::MutexLock lock(&state->mutex);
      state->status = std::move(status);
      state->ended.NotifyAll();
    };
  }
  absl::Status Wait() {
    const base::MutexLock lock(&state_->mutex);
    while (!state_->status.has_value()) state_->ended.Wait(&state_->mutex);
    return *std::exchange(state_->status, std::nullopt);
  }

 private:
  struct State {
    base::Mutex mutex;
    base::CondVar ended;
    std::optional<absl::Status> status ABSL_GUARDED_BY(mutex);
  };
  const std::shared_ptr<State> state_ = std::make_shared<State>();
};

// Starts a request with `call(completion)` and waits for its end.
template <typename Call>
absl::Status Await(Call&& call) {
  AwaitedRequest request;
  std::forward<Call>(call)(request.completion());
  return request.Wait();
}

}  // namespace catnap::disk

#endif  // CATNAP_LIB_DISK_AWAIT_H_
