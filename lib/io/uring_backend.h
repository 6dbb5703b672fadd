#ifndef CATNAP_LIB_IO_URING_BACKEND_H_
#define CATNAP_LIB_IO_URING_BACKEND_H_

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "io/loop_backend.h"
#include "io/operation.h"
#include "io/operation_list.h"
#include "io/ring.h"

namespace catnap::io {

// Files and watches through one io_uring.
class UringBackend final : public LoopBackend {
 public:
  // `events` must outlive the backend. Errors: as Ring::Create.
  static absl::StatusOr<std::unique_ptr<LoopBackend>> Create(
      unsigned queue_entries, BackendEvents* events);

  void Start(Operation* operation) override;
  void Cancel(Operation* operation) override;
  void Wait(std::optional<std::chrono::nanoseconds> timeout) override;
  void Dispatch() override;
  std::string Description() const override { return ring_->Description(); }

 private:
  UringBackend(std::unique_ptr<Ring> ring, BackendEvents* events)
      : ring_(std::move(ring)), events_(events) {}

  // Hands over what waits. Returns false when the kernel takes no more now.
  bool Submit();
  void OnCompletion(Operation* operation, int32_t result, uint32_t flags);
  void OnWatchEnd(Operation* watch, int32_t result);

  const std::unique_ptr<Ring> ring_;
  BackendEvents* const events_;
  OperationList watches_;     // To hand over.
  OperationList files_;       // To hand over, as the bound allows.
  OperationList cancelling_;  // Running, to cancel.
  unsigned files_running_ = 0;
};

}  // namespace catnap::io

#endif  // CATNAP_LIB_IO_URING_BACKEND_H_
