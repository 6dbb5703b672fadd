#ifndef CATNAP_LIB_IO_EVENT_LOOP_H_
#define CATNAP_LIB_IO_EVENT_LOOP_H_

#include <sys/uio.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace catnap::io {

class LoopCore;

// Which machinery runs an EventLoop.
enum class LoopBackendKind {
  kAuto,     // io_uring where the kernel lets us, else plain.
  kIoUring,  // io_uring or an error.
  kPlain,    // epoll, and a few threads that block on files.
};

struct EventLoopOptions {
  // The thread's name, at most 15 bytes; file workers share it.
  std::string name = "catnap-io";
  LoopBackendKind backend = LoopBackendKind::kAuto;
  // Submission queue of the ring, 1 to 4,096. Twice as many file operations
  // are with the kernel at once; more wait in the loop.
  unsigned queue_entries = 256;
  // Threads that the plain backend starts for files when there is work for
  // them, 1 to 64.
  unsigned plain_workers = 4;
};

// Names an operation until it has ended; afterwards it names nothing.
struct OperationId {
  uint32_t slot = 0;
  uint32_t generation = 0;  // 0 is never used.

  friend bool operator==(OperationId, OperationId) = default;
};

// The end of an operation: the bytes transferred (0 where nothing is), or why
// not. CANCELLED: by Cancel() or because the loop stopped.
using Completion = absl::AnyInvocable<void(absl::StatusOr<size_t>) &&>;

// Called with POLLIN, POLLOUT, POLLERR or POLLHUP bits each time, and with an
// error once, as the last call (CANCELLED, as above).
using WatchCallback = absl::AnyInvocable<void(absl::StatusOr<uint32_t>)>;

using PostFunction = absl::AnyInvocable<void() &&>;

// One thread that serves files, descriptors and timers of many VMs.
//
// Callbacks run on the loop's thread, one at a time, never inside the call that
// started the operation. They must be set, must not block and must not throw;
// they may call everything but Stop() and the destructor. Each operation ends
// with exactly one completion, whatever happens, and only then are its buffers
// and its descriptor the caller's again: keep both valid until then. What is
// outstanding when the loop is destroyed completes in its destructor, so what
// callbacks refer to outlives the loop or ends its operations first.
//
// Thread safety: Post() and all that start or cancel an operation are
// thread-safe, do not block and take effect in the order of their calls. Stop()
// and the destructor must not overlap with other calls.
//
// Memory: under 500 bytes for each operation outstanding at the busiest time,
// and kept; plus 16 bytes for each buffer of a vector. Operations beyond the
// queue's size wait here, so callers bound how many they start. The kernel
// holds at most 2 * queue_entries file operations.
class EventLoop {
 public:
  // Starts the thread. With kAuto a refused io_uring is not an error.
  // Errors: INVALID_ARGUMENT, options out of range; RESOURCE_EXHAUSTED,
  // threads, descriptors or memory; with kIoUring also what Ring::Create says.
  static absl::StatusOr<std::unique_ptr<EventLoop>> Create(
      const EventLoopOptions& options);

  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;
  // Stop(). What was started after it completes here, on this thread.
  ~EventLoop();

  // Cancels what is outstanding, runs every function posted before, waits for
  // the completions and joins the thread. Blocks until the kernel is done with
  // every buffer. What callbacks start meanwhile is cancelled too: one that
  // starts itself anew must not do so on CANCELLED. Idempotent.
  void Stop();

  // What runs: kIoUring or kPlain.
  LoopBackendKind backend() const;
  // The same for people, with the reason when io_uring was wanted and refused.
  const std::string& backend_text() const;

  // Files: regular files and block devices. A transfer goes on until the whole
  // range is done, so a smaller count than asked for is the end of the file
  // (Read). After an error or CANCELLED, any part may have been transferred.
  // Errors: INVALID_ARGUMENT, a range that no file has, or what the device
  // refuses; RESOURCE_EXHAUSTED, disk, quota; others as the kernel says.
  OperationId Read(int fd, void* data, size_t length, uint64_t offset,
                   Completion done);
  OperationId Write(int fd, const void* data, size_t length, uint64_t offset,
                    Completion done);
  // Any number of buffers; the array itself is copied.
  OperationId ReadVector(int fd, std::span<const iovec> buffers,
                         uint64_t offset, Completion done);
  OperationId WriteVector(int fd, std::span<const iovec> buffers,
                          uint64_t offset, Completion done);
  // These wait for no other operation: start them after the completion of the
  // writes that they are to cover.
  OperationId Fsync(int fd, Completion done);
  OperationId Fdatasync(int fd, Completion done);
  // fallocate(2); `mode` is FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, ...
  OperationId Fallocate(int fd, int mode, uint64_t offset, uint64_t length,
                        Completion done);

  // Calls back when `fd` (a socket, pipe, eventfd, tap, ...) becomes ready for
  // `events` (POLLIN, POLLOUT), and whenever it becomes so again: the callback
  // reads or writes until EAGAIN, or nothing more comes. Calls may be spurious.
  // A second watch of one descriptor may cost a descriptor.
  // Errors: INVALID_ARGUMENT, `fd` cannot be waited for (a regular file).
  OperationId Watch(int fd, uint32_t events, WatchCallback on_ready);
  // Calls back after each time the eventfd was signalled; signals that come
  // before the call are one. The loop takes the counter back to 0 first, so two
  // watches of one eventfd share its signals.
  // Errors: INVALID_ARGUMENT, it is not non-blocking.
  OperationId WatchEventFd(int fd, WatchCallback on_signal);

  // Completes with 0 at `deadline` or as soon after as the thread is free;
  // timers that are due complete in the order of their deadlines.
  OperationId StartTimer(std::chrono::steady_clock::time_point deadline,
                         Completion done);

  // Makes an operation end soon, with CANCELLED or with its own result when it
  // was faster. Nothing happens when it has ended. The completion tells when
  // the buffers are free; this call does not wait for it.
  void Cancel(OperationId id);

  // Runs `function` on the loop's thread.
  void Post(PostFunction function);

 private:
  explicit EventLoop(std::unique_ptr<LoopCore> core);
  const std::unique_ptr<LoopCore> core_;
};

}  // namespace catnap::io

#endif  // CATNAP_LIB_IO_EVENT_LOOP_H_
