#ifndef CATNAP_LIB_GUEST_AGENT_HOSTS_H_
#define CATNAP_LIB_GUEST_AGENT_HOSTS_H_

#include <string>

namespace catnap::guest {

// Adds the host's name, host.catnap for 127.0.0.2, to the file of names at
// `path`, unless a line has that name already; the rest stays as it is. A file
// that is not there is made, with the names of the loopback, too.
//
// False: it cannot be read or written (a read-only root, no folder, a file of
// another kind or beyond any size of such a file), and is as it was.
bool NameTheHost(const std::string& path = "/etc/hosts");

}  // namespace catnap::guest

#endif  // CATNAP_LIB_GUEST_AGENT_HOSTS_H_
