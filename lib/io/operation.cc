#include "io/operation.h"

#include <cerrno>

#include "base/status.h"

namespace catnap::io {
namespace {

// Longer vectors are given back when an operation ends, so that one long
// request does not cost memory for ever.
constexpr size_t kKeptSegments = 128;

}  // namespace

std::optional<int64_t> Operation::Progress(int64_t call_result) {
  if (call_result < 0) {
    if (call_result == -EINTR && !cancel_requested) return std::nullopt;
    // A cancelled call that slept in the kernel is woken like by a signal.
    return call_result == -EINTR ? -ECANCELED : call_result;
  }
  if (!is_transfer()) return 0;
  if (call_result == 0) {
    // The end of the file. A write without progress would repeat for ever.
    if (kind == OperationKind::kWrite) return -EIO;
    return static_cast<int64_t>(transferred);
  }
  auto count = static_cast<uint64_t>(call_result);
  transferred += count;
  if (transferred >= length) return static_cast<int64_t>(transferred);
  for (iovec& segment : segments()) {
    if (count < segment.iov_len) {
      segment.iov_base = static_cast<uint8_t*>(segment.iov_base) + count;
      segment.iov_len -= count;
      break;
    }
    count -= segment.iov_len;
    ++next_segment;
  }
  if (cancel_requested) return -ECANCELED;
  return std::nullopt;
}

absl::Status Operation::ErrorFor(int error) const {
  if (error == ECANCELED) {
    return absl::CancelledError("the operation was cancelled");
  }
  std::string what;
  switch (kind) {
    case OperationKind::kRead:
    case OperationKind::kWrite:
      what = fmt::format("{} {} bytes at offset {}, descriptor {}",
                         kind == OperationKind::kRead ? "read" : "write",
                         length, offset, fd);
      break;
    case OperationKind::kFsync:
      what = fmt::format("fsync of descriptor {}", fd);
      break;
    case OperationKind::kFdatasync:
      what = fmt::format("fdatasync of descriptor {}", fd);
      break;
    case OperationKind::kFallocate:
      what = fmt::format(
          "fallocate mode {:#x}, {} bytes at offset {}, "
          "descriptor {}",
          mode, length, offset, fd);
      break;
    case OperationKind::kWatch:
      what = fmt::format("watch descriptor {}", fd);
      // Of epoll; not the disk.
      if (error == ENOSPC) {
        return Error(absl::StatusCode::kResourceExhausted,
                     "{}: the user is at its limit of watched descriptors "
                     "(fs.epoll.max_user_watches)",
                     what);
      }
      break;
    case OperationKind::kPost:
    case OperationKind::kTimer:
      what = "wait";
      break;
  }
  // Here it is not about threads, as the general text for it says.
  if (error == EAGAIN) {
    return Error(absl::StatusCode::kUnavailable, "{}: it would block", what);
  }
  return ErrnoStatus(error, what);
}

void Operation::ResetForReuse() {
  std::vector<iovec> kept = std::move(many);
  kept.clear();
  if (kept.capacity() > kKeptSegments) kept = {};
  drains = false;
  fd = -1;
  mode = 0;
  events = 0;
  offset = 0;
  length = 0;
  one = {};
  many = std::move(kept);
  deadline = {};
  post = nullptr;
  completion = nullptr;
  on_ready = nullptr;
  active = false;
  stage = Stage::kIdle;
  cancel_requested = false;
  forced_async = false;
  transferred = 0;
  next_segment = 0;
  result = 0;
  sequence = 0;
  heap_index = 0;
  own_fd.Reset();
}

}  // namespace catnap::io
