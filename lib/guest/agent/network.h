#ifndef CATNAP_LIB_GUEST_AGENT_NETWORK_H_
#define CATNAP_LIB_GUEST_AGENT_NETWORK_H_

#include <array>
#include <cstdint>

namespace catnap::guest {

// The addresses of every guest's link (agent/PROTOCOL.md, "The network").
struct LinkAddresses {
  std::array<uint8_t, 4> guest_v4 = {10, 233, 117, 2};
  std::array<uint8_t, 4> gateway_v4 = {10, 233, 117, 1};
  uint8_t bits_v4 = 29;
  std::array<uint8_t, 16> guest_v6 = {
      0xfd, 0x63, 0x61, 0x74, 0x6e, 0x61, 0x70, 0, 0, 0, 0, 0, 0, 0, 0, 2};
  std::array<uint8_t, 16> gateway_v6 = {
      0xfd, 0x63, 0x61, 0x74, 0x6e, 0x61, 0x70, 0, 0, 0, 0, 0, 0, 0, 0, 1};
  uint8_t bits_v6 = 64;
  const char* resolver = "10.233.117.3";
};

// Gives the first Ethernet interface its addresses, a route to everywhere and a
// name server in /etc/resolv.conf. Without an interface nothing happens; what
// fails is said on the console and left out.
void SetUpNetwork();

// Gives that interface another hardware address. Returns 0 or the errno: ENODEV
// without an interface.
int SetMacAddress(const std::array<uint8_t, 6>& address);

}  // namespace catnap::guest

#endif  // CATNAP_LIB_GUEST_AGENT_NETWORK_H_
