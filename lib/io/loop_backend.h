#ifndef CATNAP_LIB_IO_LOOP_BACKEND_H_
#define CATNAP_LIB_IO_LOOP_BACKEND_H_

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "io/operation.h"

namespace catnap::io {

// What a backend tells its loop, on the loop's thread, inside Dispatch(), and
// inside Start() and Cancel() when an operation ends at once.
class BackendEvents {
 public:
  virtual ~BackendEvents() = default;
  // A watched descriptor became ready (POLLIN, POLLOUT, POLLERR, POLLHUP).
  virtual void OnReady(Operation* watch, uint32_t events) = 0;
  // The operation ended with a byte count or -errno. The backend, the kernel
  // and the workers are done with it and with its buffers. Exactly once.
  virtual void OnFinished(Operation* operation, int64_t result) = 0;
};

// Runs files and watches for an EventLoop; the loop itself does the rest.
// Thread-hostile: made, used and destroyed on the loop's thread.
class LoopBackend {
 public:
  virtual ~LoopBackend() = default;

  // Takes a file operation or a watch.
  virtual void Start(Operation* operation) = 0;
  // Makes an operation that was started end soon, with -ECANCELED or with its
  // own result. Idempotent.
  virtual void Cancel(Operation* operation) = 0;
  // Hands over what was started and waits for events: not at all for 0, without
  // end for none. May return early. Reports nothing.
  virtual void Wait(std::optional<std::chrono::nanoseconds> timeout) = 0;
  // Reports the events that have come.
  virtual void Dispatch() = 0;
  // For people.
  virtual std::string Description() const = 0;
};

}  // namespace catnap::io

#endif  // CATNAP_LIB_IO_LOOP_BACKEND_H_
