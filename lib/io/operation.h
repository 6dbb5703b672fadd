#ifndef CATNAP_LIB_IO_OPERATION_H_
#define CATNAP_LIB_IO_OPERATION_H_

#include <sys/uio.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "base/unique_fd.h"
#include "io/event_loop.h"

namespace catnap::io {

enum class OperationKind : uint8_t {
  kPost,
  kTimer,
  kRead,
  kWrite,
  kFsync,
  kFdatasync,
  kFallocate,
  kWatch,
};

// One operation of an EventLoop, from its start to its last callback. It
// belongs to the loop's thread from when that has taken it; a file worker has
// it in between. Pooled: ResetForReuse() keeps memory worth keeping.
struct Operation {
  // Where it is. The backend that runs it changes it.
  enum class Stage : uint8_t {
    kIdle,        // With the loop (a timer, a post) or with nobody.
    kWaiting,     // In a list of the backend, not with the kernel.
    kRunning,     // With the kernel or a file worker.
    kCancelling,  // With the kernel, and in the list of those to cancel.
    kCancelSent,  // With the kernel, which knows that it is to be cancelled.
  };

  bool is_transfer() const {
    return kind == OperationKind::kRead || kind == OperationKind::kWrite;
  }

  // What is left of a transfer, for the next call to the kernel.
  std::span<iovec> segments() {
    return std::span<iovec>(many.empty() ? &one : many.data(),
                            many.empty() ? 1 : many.size())
        .subspan(next_segment);
  }
  uint64_t next_offset() const { return offset + transferred; }

  // Takes what one call to the kernel returned (a byte count or -errno).
  // Returns the result of the whole operation, or nothing when it needs
  // another call.
  std::optional<int64_t> Progress(int64_t result);

  // What an errno value means for this operation.
  absl::Status ErrorFor(int error) const;

  // Sheds everything but the identity.
  void ResetForReuse();

  // Identity; `generation` changes whenever the object is re-used.
  uint32_t slot = 0;
  uint32_t generation = 1;

  // Request.
  OperationKind kind = OperationKind::kPost;
  bool drains = false;  // A watch that takes an eventfd back to 0.
  int fd = -1;
  int mode = 0;         // Of fallocate.
  uint32_t events = 0;  // POLLIN | POLLOUT, of a watch.
  uint64_t offset = 0;
  uint64_t length = 0;
  iovec one{};
  std::vector<iovec> many;  // Used instead of `one` unless empty.
  std::chrono::steady_clock::time_point deadline{};
  PostFunction post;
  Completion completion;
  WatchCallback on_ready;

  // Progress.
  bool active = false;  // The loop has begun it and not finished it.
  Stage stage = Stage::kIdle;
  // Read by file workers between two calls to the kernel.
  std::atomic<bool> cancel_requested{false};
  bool forced_async = false;
  uint64_t transferred = 0;
  size_t next_segment = 0;
  int64_t result = 0;  // From a file worker.
  // Order among timers of one deadline, and place in their queue.
  uint64_t sequence = 0;
  size_t heap_index = 0;
  base::UniqueFd own_fd;  // A second watch of one descriptor needs its own.

  Operation* previous = nullptr;  // In an OperationList.
  Operation* next = nullptr;
};
static_assert(sizeof(Operation) <= 500, "event_loop.h promises it");

}  // namespace catnap::io

#endif  // CATNAP_LIB_IO_OPERATION_H_
