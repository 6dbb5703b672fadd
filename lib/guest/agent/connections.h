#ifndef CATNAP_LIB_GUEST_AGENT_CONNECTIONS_H_
#define CATNAP_LIB_GUEST_AGENT_CONNECTIONS_H_

namespace catnap::guest {

// Destroys all TCP connections, also half made ones, and the peers of UDP
// sockets, where the other end is not this machine itself: who waits for one
// gets ECONNABORTED. Listening sockets, and those of other network name
// spaces, are left alone. Needs CONFIG_INET_DIAG_DESTROY.
// Returns 0, or the errno of the first that could not be.
int DestroyOutsideConnections();

}  // namespace catnap::guest

#endif  // CATNAP_LIB_GUEST_AGENT_CONNECTIONS_H_
