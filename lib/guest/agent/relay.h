#ifndef CATNAP_LIB_GUEST_AGENT_RELAY_H_
#define CATNAP_LIB_GUEST_AGENT_RELAY_H_

#include <cstdint>
#include <memory>

#include "guest/agent/server.h"

namespace catnap::guest {

// Joins a stream with a TCP connection to a port of the guest.
std::unique_ptr<Task> MakeConnectTask(Server* server, uint32_t stream,
                                      Bytes request);

// Accepts connections of the guest's programs to a service of the host, and
// opens a stream for each.
std::unique_ptr<Task> MakeListenTask(Server* server, uint32_t stream,
                                     Bytes request);

}  // namespace catnap::guest

#endif  // CATNAP_LIB_GUEST_AGENT_RELAY_H_
