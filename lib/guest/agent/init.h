#ifndef CATNAP_LIB_GUEST_AGENT_INIT_H_
#define CATNAP_LIB_GUEST_AGENT_INIT_H_

#include <cstdint>
#include <string>

namespace catnap::guest {

// The duties of process 1, which tests do not have.

struct GuestConfig {
  uint32_t port = 1;  // `catnap.port=` of the kernel command line.
  std::string cgroup_root{};
  std::string run_directory{};
};

// Mounts what a guest needs, makes the root disk "/", brings the loopback up,
// loads the modules that /etc/catnap/modules of the initramfs lists, and
// protects this process. What fails is said on the console and left out.
GuestConfig SetUpGuest();

// Ends the machine; what the disk's cache holds is written first.
[[noreturn]] void PowerOff();

// Begins to connect a vsock stream with the host, without blocking. The
// descriptor can be written to when it is connected; ConnectError() is not 0
// when that failed, after a second at the latest. Below 0: not now.
int ConnectToHost(uint32_t port);
int ConnectError(int fd);

}  // namespace catnap::guest

#endif  // CATNAP_LIB_GUEST_AGENT_INIT_H_
