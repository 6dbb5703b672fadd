#include "io/transfer_queue.h"

#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "base/checked.h"
#include "base/status.h"
#include "io/ring.h"

namespace catnap::io {
namespace {

constexpr unsigned kMaxBuffers = 64;
constexpr size_t kMaxBufferBytes = size_t{16} << 20;
constexpr size_t kAlignment = 4096;

}  // namespace

TransferQueue::TransferQueue(const TransferQueueOptions& options)
    : options_(options), transfers_(options.buffers) {}

absl::StatusOr<std::unique_ptr<TransferQueue>> TransferQueue::Create(
    const TransferQueueOptions& options) {
  if (options.buffers == 0 || options.buffers > kMaxBuffers ||
      options.buffer_bytes == 0 || options.buffer_bytes > kMaxBufferBytes ||
      !base::IsAligned<size_t>(options.buffer_bytes, kAlignment)) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "{} buffers of {} bytes, must be 1 to {} of at most {}, a "
                 "multiple of {}",
                 options.buffers, options.buffer_bytes, kMaxBuffers,
                 kMaxBufferBytes, kAlignment);
  }
  std::unique_ptr<TransferQueue> queue(new TransferQueue(options));
  CATNAP_ASSIGN_OR_RETURN(
      queue->memory_,
      base::Mapping::Anonymous(options.buffers * options.buffer_bytes));
  // A hint: fewer page faults while the buffers are used first.
  ::madvise(queue->memory_.data(), queue->memory_.size(), MADV_HUGEPAGE);
  if (options.plain) {
    queue->backend_text_ = "plain";
    return queue;
  }
  auto ring = Ring::Create(options.buffers);
  if (!ring.ok()) {
    queue->backend_text_ = fmt::format("plain: {}", ring.status().ToString());
    return queue;
  }
  queue->ring_ = std::move(*ring);
  if (options.register_buffers) {
    queue->registered_ = queue->ring_->RegisterBuffer(queue->memory_.data(),
                                                      queue->memory_.size());
  }
  queue->backend_text_ = queue->ring_->Description();
  return queue;
}

TransferQueue::~TransferQueue() {
  while (in_flight_ > 0) Wait();
}

void TransferQueue::StartRead(int fd, unsigned buffer, size_t length,
                              uint64_t offset) {
  Start(buffer, {.fd = fd, .length = length, .offset = offset});
}

void TransferQueue::StartWrite(int fd, unsigned buffer, size_t length,
                               uint64_t offset) {
  Start(buffer, {.write = true, .fd = fd, .length = length, .offset = offset});
}

void TransferQueue::Start(unsigned buffer, const Transfer& transfer) {
  transfers_[buffer] = transfer;
  ++in_flight_;
  if (ring_ == nullptr) {
    RunPlain(buffer);
    return;
  }
  unsubmitted_.push_back(buffer);
  while (!unsubmitted_.empty()) {
    Submit(unsubmitted_.front());
    unsubmitted_.pop_front();
  }
  // The kernel starts now; completions are looked at in Wait().
  ring_->Wait(std::chrono::nanoseconds{0});
}

void TransferQueue::Submit(unsigned buffer) {
  const Transfer& transfer = transfers_[buffer];
  io_uring_sqe* sqe = ring_->GetSqe();
  if (sqe == nullptr) {
    // Cannot be: no more transfers than entries. The plain way works as well.
    RunPlain(buffer);
    return;
  }
  uint8_t* const data = this->buffer(buffer) + transfer.done;
  const auto length = static_cast<unsigned>(transfer.length - transfer.done);
  const uint64_t offset = transfer.offset + transfer.done;
  if (transfer.write && registered_) {
    io_uring_prep_write_fixed(sqe, transfer.fd, data, length, offset, 0);
  } else if (transfer.write) {
    io_uring_prep_write(sqe, transfer.fd, data, length, offset);
  } else if (registered_) {
    io_uring_prep_read_fixed(sqe, transfer.fd, data, length, offset, 0);
  } else {
    io_uring_prep_read(sqe, transfer.fd, data, length, offset);
  }
  io_uring_sqe_set_data64(sqe, buffer);
}

void TransferQueue::RunPlain(unsigned buffer) {
  bool ended = false;
  while (!ended) {
    const Transfer& transfer = transfers_[buffer];
    uint8_t* const data = this->buffer(buffer) + transfer.done;
    const size_t length = transfer.length - transfer.done;
    const auto offset = static_cast<off_t>(transfer.offset + transfer.done);
    const ssize_t result = transfer.write
                               ? ::pwrite(transfer.fd, data, length, offset)
                               : ::pread(transfer.fd, data, length, offset);
    ended = Progress(buffer, result < 0 ? -errno : result);
  }
}

bool TransferQueue::Progress(unsigned buffer, int64_t result) {
  Transfer& transfer = transfers_[buffer];
  if (result == -EINTR || result == -EAGAIN) return false;
  // A write without progress would repeat for ever.
  if (result == 0 && transfer.write) result = -EIO;
  if (result < 0) {
    Finish(buffer,
           ErrnoError(static_cast<int>(-result), "{} {} bytes at offset {}",
                      transfer.write ? "write" : "read", transfer.length,
                      transfer.offset));
    return true;
  }
  transfer.done += static_cast<size_t>(result);
  if (result > 0 && transfer.done < transfer.length) return false;
  Finish(buffer, transfer.done);
  return true;
}

void TransferQueue::Finish(unsigned buffer, absl::StatusOr<size_t> result) {
  finished_.push_back({buffer, std::move(result)});
}

TransferQueue::Finished TransferQueue::Wait() {
  while (finished_.empty()) {
    ring_->Wait(std::nullopt);
    ring_->Reap([this](uint64_t user_data, int32_t result, uint32_t /*flags*/) {
      const auto buffer = static_cast<unsigned>(user_data);
      if (!Progress(buffer, result)) Submit(buffer);
    });
  }
  Finished finished = std::move(finished_.front());
  finished_.pop_front();
  --in_flight_;
  return finished;
}

}  // namespace catnap::io
