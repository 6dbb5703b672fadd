#ifndef CATNAP_LIB_BASE_UNIQUE_FD_H_
#define CATNAP_LIB_BASE_UNIQUE_FD_H_

#include <string>
#include <utility>

#include "absl/status/statusor.h"

namespace catnap::base {

// Owns a file descriptor. Thread-compatible.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept;
  UniqueFd(const UniqueFd&) = delete;
  UniqueFd& operator=(const UniqueFd&) = delete;
  ~UniqueFd() { Reset(); }

  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  int Release() { return std::exchange(fd_, -1); }
  void Reset();

 private:
  int fd_ = -1;
};

// An eventfd, close-on-exec and non-blocking, with counter 0.
absl::StatusOr<UniqueFd> CreateEventFd();

// Adds 1 to an eventfd. Never blocks: a counter that is full stays readable,
// which is all a waiter needs.
void SignalEventFd(int fd);

// Takes the counter of a non-blocking eventfd back to 0.
// Returns whether it had been signalled.
bool DrainEventFd(int fd);

// An anonymous memory file of `size` bytes, close-on-exec, sealable. `name` is
// seen in /proc only.
absl::StatusOr<UniqueFd> CreateMemFd(const std::string& name, uint64_t size);

}  // namespace catnap::base

#endif  // CATNAP_LIB_BASE_UNIQUE_FD_H_
