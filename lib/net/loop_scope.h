#ifndef CATNAP_LIB_NET_LOOP_SCOPE_H_
#define CATNAP_LIB_NET_LOOP_SCOPE_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <unordered_map>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "base/mutex.h"
#include "base/unique_fd.h"
#include "io/event_loop.h"

namespace catnap::net {

// The operations that one object has on an event loop, which end with it:
// after Close() no callback runs, and none is running.
//
// Thread safety: thread-safe. Close() waits for the loop, so it must not run on
// the loop's thread; callbacks run there, with no lock held.
class LoopScope {
 public:
  // 0 names nothing.
  using Id = uint64_t;

  // `loop` is borrowed and must outlive this.
  explicit LoopScope(io::EventLoop* loop) : loop_(loop) {}
  ~LoopScope() { Close(); }
  LoopScope(const LoopScope&) = delete;
  LoopScope& operator=(const LoopScope&) = delete;

  // Runs `function` on the loop's thread, unless Close() comes first.
  void Post(absl::AnyInvocable<void() &&> function);
  // Calls back at `when`, unless it is cancelled.
  Id StartTimer(std::chrono::steady_clock::time_point when,
                absl::AnyInvocable<void() &&> on_time);
  // Calls back when `fd` becomes ready, until it is cancelled. Keeps `fd` open
  // for as long as the loop needs it.
  Id Watch(std::shared_ptr<base::UniqueFd> fd, uint32_t events,
           std::function<void()> on_ready);
  // No callback starts after this when it is called on the loop's thread.
  void Cancel(Id id);

  // Cancels everything and waits for what runs. Nothing starts afterwards.
  // Idempotent.
  void Close();

 private:
  bool IsLive(Id id);
  void End(Id id);

  io::EventLoop* const loop_;  // Not owned.
  base::Mutex mutex_;
  base::CondVar ended_;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  Id next_ ABSL_GUARDED_BY(mutex_) = 1;
  struct Operation {
    io::OperationId id{};
    bool live = true;  // Not cancelled.
  };
  std::unordered_map<Id, Operation> operations_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace catnap::net

#endif  // CATNAP_LIB_NET_LOOP_SCOPE_H_
