#ifndef CATNAP_LIB_RUNTIME_SERVICE_TABLE_H_
#define CATNAP_LIB_RUNTIME_SERVICE_TABLE_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "agent/client.h"
#include "base/log.h"
#include "base/unique_fd.h"
#include "catnap/executor.h"
#include "io/event_loop.h"
#include "runtime/traffic.h"

namespace catnap::runtime {

struct ServiceTableOptions {
  io::EventLoop* loop = nullptr;         // Not owned; outlives the table.
  std::shared_ptr<Executor> executor{};  // Not null. Runs the callbacks.
  std::shared_ptr<Traffic> traffic{};    // Not null.
  base::Logger log{};
};

// The services that the host offers to one guest: while the agent is connected
// it listens on each port of the table at 127.0.0.2, and every connection there
// comes out here as a connected local stream socket (blocking, close-on-exec).
// A connection to a port that is not in the table is refused.
//
// Thread-safe. Does not block, except at its end.
class ServiceTable {
 public:
  // Runs on the executor, never two of one table at once, and never after the
  // table is gone.
  using OnConnection = absl::AnyInvocable<void(base::UniqueFd)>;

  static constexpr size_t kMaxServices = 256;

  explicit ServiceTable(ServiceTableOptions options);
  ServiceTable(const ServiceTable&) = delete;
  ServiceTable& operator=(const ServiceTable&) = delete;
  // Ends all connections and waits for a callback that runs, unless that is
  // the caller. REQUIRES: not on the loop's thread, no lock held that a
  // callback takes.
  ~ServiceTable();

  // For AgentConnection. May outlive the table; then it refuses everything.
  std::shared_ptr<agent::ServiceListener> listener() const;

  // Adds a service or takes the place of one, whose connections go on. That the
  // guest cannot listen there, because a program of its own does, is logged.
  // Errors: INVALID_ARGUMENT, port 0; RESOURCE_EXHAUSTED, kMaxServices.
  absl::Status Set(uint16_t port, OnConnection on_connection);
  // Its connections go on; those that are not handed out yet are closed. One
  // callback may be running when this returns.
  void Remove(uint16_t port);

  // Connections now.
  size_t size() const;

 private:
  class Core;
  const std::shared_ptr<Core> core_;
};

}  // namespace catnap::runtime

#endif  // CATNAP_LIB_RUNTIME_SERVICE_TABLE_H_
