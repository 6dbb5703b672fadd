#ifndef CATNAP_LIB_RUNTIME_CONNECT_TO_GUEST_H_
#define CATNAP_LIB_RUNTIME_CONNECT_TO_GUEST_H_

#include <chrono>
#include <cstdint>
#include <memory>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "agent/client.h"
#include "base/unique_fd.h"
#include "runtime/relay_group.h"

namespace catnap::runtime {

using ConnectDone = absl::AnyInvocable<void(absl::StatusOr<base::UniqueFd>) &&>;

// Connects to `port` of the guest's loopback (127.0.0.1). `done` gets our end
// as a connected local stream socket: blocking, close-on-exec, with half-close
// both ways. When the connection breaks, a reader sees its end and a writer
// EPIPE: local sockets know no reset.
//
// Does not block. `done` is called exactly once, on the loop's thread: it must
// not block. `group` ends the connection when it goes.
// Errors:
//   INVALID_ARGUMENT    port 0
//   UNAVAILABLE         nothing listens there, or the agent is gone
//   DEADLINE_EXCEEDED   not connected by `deadline`
//   RESOURCE_EXHAUSTED  descriptors, the group's bound, the agent's streams
//   CANCELLED           the group was closed
void ConnectToGuest(RelayGroup* group,
                    const std::shared_ptr<agent::Client>& client, uint16_t port,
                    std::chrono::steady_clock::time_point deadline,
                    ConnectDone done);

// A connected pair of local stream sockets, close-on-exec: `ours` does not
// block, `theirs` does.
struct LocalSocketPair {
  base::UniqueFd ours, theirs;
};
// Errors: RESOURCE_EXHAUSTED, descriptors or memory.
absl::StatusOr<LocalSocketPair> CreateLocalSocketPair();

}  // namespace catnap::runtime

#endif  // CATNAP_LIB_RUNTIME_CONNECT_TO_GUEST_H_
