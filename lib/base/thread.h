#ifndef CATNAP_LIB_BASE_THREAD_H_
#define CATNAP_LIB_BASE_THREAD_H_

#include <pthread.h>

#include <string>
#include <utility>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"

namespace catnap::base {

// A joining thread that starts with every signal blocked, so that the host
// program's handlers never run on a library thread, and that reports a failed
// start as a status (std::thread throws).
class Thread {
 public:
  static constexpr size_t kLibraryStackBytes = 512 << 10;
  static constexpr size_t kUserStackBytes = 8 << 20;

  Thread() = default;
  Thread(Thread&& other) noexcept
      : handle_(other.handle_),
        running_(std::exchange(other.running_, false)) {}
  Thread& operator=(Thread&& other) noexcept;
  Thread(const Thread&) = delete;
  Thread& operator=(const Thread&) = delete;
  ~Thread() { Join(); }

  // `name` is what /proc and debuggers show: at most 15 bytes are kept.
  // `stack_bytes` of address space count against RLIMIT_AS; library code needs
  // little, callbacks of the user get what other threads have.
  // Errors: RESOURCE_EXHAUSTED, the system or the user has no more threads.
  static absl::StatusOr<Thread> Start(const std::string& name,
                                      absl::AnyInvocable<void() &&> body,
                                      size_t stack_bytes = kLibraryStackBytes);

  // Blocks until the body returned. Idempotent.
  void Join();

  // Lets the thread run on without an owner. For a thread whose own body
  // destroys its owner and so cannot be joined; the body must touch nothing
  // that may be gone by then.
  void Detach();

  bool joinable() const { return running_; }
  // REQUIRES: joinable().
  pthread_t handle() const { return handle_; }

 private:
  pthread_t handle_{};
  bool running_ = false;
};

}  // namespace catnap::base

#endif  // CATNAP_LIB_BASE_THREAD_H_
