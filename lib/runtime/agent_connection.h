#ifndef CATNAP_LIB_RUNTIME_AGENT_CONNECTION_H_
#define CATNAP_LIB_RUNTIME_AGENT_CONNECTION_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "agent/client.h"
#include "base/clock.h"
#include "io/event_loop.h"
#include "vmm/guest_sockets.h"

namespace catnap::runtime {

// The port that the guest's agent connects to, unless its kernel's command
// line has `catnap.port=`.
inline constexpr uint32_t kAgentPort = 1;

// Waits for the agent of one guest and carries its connection: the guest's
// socket feeds an agent::Client, an event loop brings it the time.
//
// The agent has one connection. When it asks for another, the one before is
// over: its streams end with UNAVAILABLE.
//
// Thread safety: thread-safe. What the client's handlers do runs on the thread
// that brought the bytes, mostly the loop's: they must not block.
class AgentConnection {
 public:
  // `loop` and `clock` are borrowed and must outlive this and all clients that
  // were handed out. The sockets live as long as those do.
  AgentConnection(std::shared_ptr<vmm::GuestSockets> sockets,
                  io::EventLoop* loop, base::Clock* clock,
                  std::shared_ptr<agent::ServiceListener> services = nullptr);
  ~AgentConnection() { Close(); }
  AgentConnection(const AgentConnection&) = delete;
  AgentConnection& operator=(const AgentConnection&) = delete;

  // The connection's client, which stays usable, though not connected, as long
  // as the caller keeps it. Blocks until the agent has connected, or `give_up`
  // (may be null; called with a lock held) says so at the start or after a
  // Wake().
  // Errors: UNAVAILABLE with kAgentUnresponsive, not by `deadline`; CANCELLED.
  absl::StatusOr<std::shared_ptr<agent::Client>> WaitForClient(
      std::chrono::steady_clock::time_point deadline,
      const std::function<bool()>& give_up = nullptr);
  // Has those who wait ask their `give_up` again.
  void Wake();

  // The guest falls asleep: lets go of its sockets, which must be quiesced for
  // good. Clients stay: what they send waits, in their own bounded memory.
  void Detach();
  // The guest is back: these are its sockets, with their state loaded and not
  // yet serving. The connection goes on where it was, without a byte lost or
  // sent twice; if the guest does not have it, the clients' streams end with
  // UNAVAILABLE. REQUIRES: Detach() came before.
  void Attach(std::shared_ptr<vmm::GuestSockets> sockets);
  // The guest runs: sends what waited since Detach().
  void Continue();
  // Ends the present connection, whose streams end with `why`; the agent may
  // make another.
  void Break(const absl::Status& why);

  // Ends the connection, and takes no other: streams end with CANCELLED.
  // Idempotent. Not from a handler.
  void Close();

 private:
  class Link;
  struct Shared;

  void Listen(vmm::GuestSockets* sockets);

  // Also of the acceptor, which may run while this goes.
  const std::shared_ptr<Shared> shared_;
};

}  // namespace catnap::runtime

#endif  // CATNAP_LIB_RUNTIME_AGENT_CONNECTION_H_
