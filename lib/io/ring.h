#ifndef CATNAP_LIB_IO_RING_H_
#define CATNAP_LIB_IO_RING_H_

#include <liburing.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace catnap::io {

// An io_uring of our own. Close-on-exec; its memory is not inherited by fork.
//
// Thread-hostile: the kernel binds the ring to the thread that creates it, so
// every call, the destructor included, belongs on that thread.
class Ring {
 public:
  static constexpr unsigned kMaxEntries = 4096;

  // A ring whose submission queue holds `entries` (1 to kMaxEntries, rounded
  // up to a power of two) and whose completion queue holds four times as many.
  // Takes the cheapest mode that the kernel offers, and proves the ring with
  // one round trip, since a filter may refuse the calls one by one.
  // Errors:
  //   INVALID_ARGUMENT     `entries` is out of range
  //   PERMISSION_DENIED    a seccomp filter or kernel.io_uring_disabled
  //   UNIMPLEMENTED        the kernel has no io_uring, or one before 5.13
  //   RESOURCE_EXHAUSTED   no descriptors or (locked) memory left
  static absl::StatusOr<std::unique_ptr<Ring>> Create(unsigned entries);

  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;
  // Does not wait for operations in flight: their buffers stay the kernel's
  // until their completions were seen.
  ~Ring();

  // Registers one range of memory, as buffer 0 of fixed reads and writes, until
  // the ring goes. Returns false when the kernel refuses it, as it does beyond
  // RLIMIT_MEMLOCK. At most once.
  bool RegisterBuffer(void* data, size_t size);

  // A zeroed entry of the submission queue, to be filled before the next call.
  // Submits when the queue is full. Returns nullptr when the kernel takes no
  // more until completions were reaped.
  io_uring_sqe* GetSqe();

  // Submits what was prepared and waits for a completion: not at all for a
  // timeout of 0, without end for none. May return early without one, also
  // when the kernel is short of memory; what it did not take stays queued.
  void Wait(std::optional<std::chrono::nanoseconds> timeout);

  // Calls `on_completion(user_data, result, flags)` for completions that have
  // arrived, at most as many as the queue holds, each after it was taken off
  // the queue: it may prepare new entries. Does not block.
  template <typename F>
  void Reap(F&& on_completion) {
    io_uring_cqe* cqe = nullptr;
    for (unsigned budget = completion_entries_;
         budget > 0 && io_uring_peek_cqe(&ring_, &cqe) == 0; --budget) {
      const uint64_t user_data = cqe->user_data;
      const int32_t result = cqe->res;
      const uint32_t flags = cqe->flags;
      io_uring_cqe_seen(&ring_, cqe);
      on_completion(user_data, result, flags);
    }
  }

  int fd() const { return ring_.ring_fd; }
  unsigned completion_entries() const { return completion_entries_; }
  // The mode it runs in, for people: "io_uring (deferred task work)".
  std::string Description() const;

 private:
  Ring() = default;
  absl::Status Prove();

  io_uring ring_{};
  bool open_ = false;
  unsigned completion_entries_ = 0;
};

}  // namespace catnap::io

#endif  // CATNAP_LIB_IO_RING_H_
