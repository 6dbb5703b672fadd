#ifndef CATNAP_LIB_IO_TRANSFER_QUEUE_H_
#define CATNAP_LIB_IO_TRANSFER_QUEUE_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mapping.h"

namespace catnap::io {

class Ring;

struct TransferQueueOptions {
  // Buffers, and so transfers in flight: 1 to 64.
  unsigned buffers = 8;
  // Of each; a multiple of 4096, at most 16 MiB.
  size_t buffer_bytes = size_t{512} << 10;
  // Registered buffers spare the kernel the look-up of their pages for each
  // transfer and cost it once for all; not worth it for a handful. Where it is
  // refused (RLIMIT_MEMLOCK) transfers go without.
  bool register_buffers = true;
  // Never io_uring: transfers happen inside Start...().
  bool plain = false;
};

// Moves large pieces between files and a few buffers of its own, several at a
// time, for one thread that may block: io_uring where the kernel lets us, else
// plain reads and writes.
//
// Thread-hostile: the ring belongs to the thread that makes the queue, so all
// calls, the destructor included, belong there; others may use the content of
// buffers that are with the caller.
class TransferQueue {
 public:
  // A transfer that ended.
  struct Finished {
    unsigned buffer = 0;
    // Bytes moved. All that were asked for, or up to the end of the file.
    absl::StatusOr<size_t> result;
  };

  // Errors: INVALID_ARGUMENT, options out of range; RESOURCE_EXHAUSTED, memory.
  static absl::StatusOr<std::unique_ptr<TransferQueue>> Create(
      const TransferQueueOptions& options);
  TransferQueue(const TransferQueue&) = delete;
  TransferQueue& operator=(const TransferQueue&) = delete;
  // Waits for what is in flight.
  ~TransferQueue();

  // The bytes of a buffer, aligned to 4096. The kernel's from Start...() until
  // Wait() returns the transfer.
  uint8_t* buffer(unsigned index) const {
    return memory_.data() + index * options_.buffer_bytes;
  }
  size_t buffer_bytes() const { return options_.buffer_bytes; }
  unsigned buffers() const { return options_.buffers; }

  // Moves the first `length` bytes (1 to buffer_bytes) of a buffer. A transfer
  // that the kernel ends early is continued.
  // REQUIRES: the buffer is not in flight; `fd` stays open until it has ended.
  void StartRead(int fd, unsigned buffer, size_t length, uint64_t offset);
  void StartWrite(int fd, unsigned buffer, size_t length, uint64_t offset);

  // Blocks until a transfer has ended. REQUIRES: in_flight() > 0.
  Finished Wait();
  // Transfers that Wait() has not returned yet.
  unsigned in_flight() const { return in_flight_; }

  // Whether io_uring does the work; and for people.
  bool uses_ring() const { return ring_ != nullptr; }
  const std::string& backend_text() const { return backend_text_; }

 private:
  struct Transfer {
    bool write = false;
    int fd = -1;
    size_t length = 0;
    size_t done = 0;
    uint64_t offset = 0;
  };

  explicit TransferQueue(const TransferQueueOptions& options);
  void Start(unsigned buffer, const Transfer& transfer);
  void Submit(unsigned buffer);
  void RunPlain(unsigned buffer);
  // Takes what one call returned. Returns whether the transfer has ended.
  bool Progress(unsigned buffer, int64_t result);
  void Finish(unsigned buffer, absl::StatusOr<size_t> result);

  const TransferQueueOptions options_;
  base::Mapping memory_;  // Outlives the ring, which may refer to it.
  std::unique_ptr<Ring> ring_;
  bool registered_ = false;
  std::string backend_text_;
  std::vector<Transfer> transfers_;  // By buffer.
  std::deque<unsigned> unsubmitted_;
  std::deque<Finished> finished_;
  unsigned in_flight_ = 0;
};

}  // namespace catnap::io

#endif  // CATNAP_LIB_IO_TRANSFER_QUEUE_H_
