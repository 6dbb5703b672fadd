#ifndef CATNAP_LIB_NET_DHCP_H_
#define CATNAP_LIB_NET_DHCP_H_

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "net/address.h"

namespace catnap::net {

inline constexpr uint16_t kDhcpServerPort = 67;
inline constexpr uint16_t kDhcpClientPort = 68;

// Answers a DHCP message of the guest (RFC 2131) as a server that has one
// lease for one client: the link's addresses. nullopt: there is nothing to
// answer. `message` is hostile; `mac` is the guest's. The answer is to be
// broadcast.
std::optional<std::vector<uint8_t>> AnswerDhcp(std::span<const uint8_t> message,
                                               const MacAddress& mac,
                                               uint16_t mtu);

}  // namespace catnap::net

#endif  // CATNAP_LIB_NET_DHCP_H_
