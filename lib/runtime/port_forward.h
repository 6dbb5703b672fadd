#ifndef CATNAP_LIB_RUNTIME_PORT_FORWARD_H_
#define CATNAP_LIB_RUNTIME_PORT_FORWARD_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "agent/client.h"
#include "base/log.h"
#include "io/event_loop.h"
#include "runtime/traffic.h"

namespace catnap::runtime {

// What a ClientSource answers, once, on any thread, now or later. To destroy it
// instead says that there is no guest.
using ClientDone =
    absl::AnyInvocable<void(absl::StatusOr<std::shared_ptr<agent::Client>>) &&>;
// Asks for the guest's current client, which may have to be woken first. Runs
// on the loop's thread and must not block.
using ClientSource = absl::AnyInvocable<void(ClientDone)>;

struct PortForwardOptions {
  io::EventLoop* loop = nullptr;       // Not owned; outlives the forward.
  std::shared_ptr<Traffic> traffic{};  // Not null.
  std::string host = "127.0.0.1";      // An IPv4 or IPv6 address.
  uint16_t port = 0;                   // 0: any that is free.
  uint16_t guest_port = 0;             // Of the guest's loopback.
  ClientSource clients{};
  // More wait to be accepted.
  size_t max_connections = 1024;
  base::Logger log{};
};

// Listens on an address of the host and joins each TCP connection that comes
// with one to a port of the guest. A connection that the guest does not take is
// reset.
class PortForward {
 public:
  // "::" takes IPv6 only. Errors:
  //   INVALID_ARGUMENT     not an address, not one of this machine, guest_port
  //                        or max_connections 0
  //   UNAVAILABLE          somebody listens there
  //   FAILED_PRECONDITION  a port for which this user has no right
  //   RESOURCE_EXHAUSTED   descriptors
  static absl::StatusOr<std::unique_ptr<PortForward>> Create(
      PortForwardOptions options);
  PortForward(const PortForward&) = delete;
  PortForward& operator=(const PortForward&) = delete;
  // Ends the listener and all connections; `clients` is not called, or kept,
  // any more. REQUIRES: not on the loop's thread.
  ~PortForward();

  // Where it listens; the address as the system writes it.
  const std::string& host() const { return host_; }
  uint16_t port() const { return port_; }
  // Connections now.
  size_t size() const;

 private:
  class Acceptor;
  PortForward(std::shared_ptr<Acceptor> acceptor, std::string host,
              uint16_t port);

  const std::shared_ptr<Acceptor> acceptor_;
  const std::string host_;
  const uint16_t port_;
};

}  // namespace catnap::runtime

#endif  // CATNAP_LIB_RUNTIME_PORT_FORWARD_H_
