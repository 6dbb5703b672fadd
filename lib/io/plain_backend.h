#ifndef CATNAP_LIB_IO_PLAIN_BACKEND_H_
#define CATNAP_LIB_IO_PLAIN_BACKEND_H_

#include <sys/epoll.h>

#include <array>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "base/unique_fd.h"
#include "io/event_loop.h"
#include "io/file_workers.h"
#include "io/loop_backend.h"
#include "io/operation.h"

namespace catnap::io {

// Watches through epoll, files through threads that block.
class PlainBackend final : public LoopBackend {
 public:
  // `events` and the eventfd `wake_fd`, which the loop watches, must outlive
  // the backend.
  // Errors: RESOURCE_EXHAUSTED, descriptors or threads.
  static absl::StatusOr<std::unique_ptr<LoopBackend>> Create(
      const EventLoopOptions& options, int wake_fd, BackendEvents* events);

  void Start(Operation* operation) override;
  void Cancel(Operation* operation) override;
  void Wait(std::optional<std::chrono::nanoseconds> timeout) override;
  void Dispatch() override;
  std::string Description() const override {
    return "plain (epoll and file threads)";
  }

 private:
  PlainBackend(base::UniqueFd epoll, std::unique_ptr<FileWorkers> workers,
               BackendEvents* events)
      : epoll_(std::move(epoll)),
        workers_(std::move(workers)),
        events_(events) {}

  // 0 or -errno.
  int AddWatch(Operation* watch);

  // How many events one turn of the loop takes; the rest stays in the kernel.
  static constexpr int kEventsPerTurn = 64;

  const base::UniqueFd epoll_;
  const std::unique_ptr<FileWorkers> workers_;
  BackendEvents* const events_;
  std::array<epoll_event, kEventsPerTurn> ready_{};
  int ready_count_ = 0;               // Of `ready_`; -1 after an error.
  std::vector<Operation*> finished_;  // Kept for its memory.
};

}  // namespace catnap::io

#endif  // CATNAP_LIB_IO_PLAIN_BACKEND_H_
