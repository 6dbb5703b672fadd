#ifndef CATNAP_LIB_NET_LINK_ADDRESSES_H_
#define CATNAP_LIB_NET_LINK_ADDRESSES_H_

#include "net/address.h"

namespace catnap::net {

// Every guest has a link of its own to a gateway, with these addresses; part
// of what host and guest agree on (agent/PROTOCOL.md). So a guest finds its
// network as it left it, wherever it wakes up.
inline constexpr MacAddress kGatewayMac = {0x02, 0x63, 0x61, 0x74, 0x6e, 0x01};
inline constexpr MacAddress kDefaultGuestMac = {0x02, 0x63, 0x61,
                                                0x74, 0x6e, 0x02};

inline constexpr int kLinkBitsV4 = 29;
inline constexpr IpAddress kGatewayV4 = IpAddress::V4(10, 233, 117, 1);
inline constexpr IpAddress kGuestV4 = IpAddress::V4(10, 233, 117, 2);
inline constexpr IpAddress kDnsV4 = IpAddress::V4(10, 233, 117, 3);

// fd63:6174:6e61:7000::/64.
constexpr IpAddress LinkV6(uint8_t last) {
  return {.v6 = true,
          .bytes = {0xfd, 0x63, 0x61, 0x74, 0x6e, 0x61, 0x70, 0, 0, 0, 0, 0, 0,
                    0, 0, last}};
}
inline constexpr int kLinkBitsV6 = 64;
inline constexpr IpAddress kGatewayV6 = LinkV6(1);
inline constexpr IpAddress kGuestV6 = LinkV6(2);
inline constexpr IpAddress kDnsV6 = LinkV6(3);
// The gateway's link-local address, made from kGatewayMac.
inline constexpr IpAddress kGatewayLinkLocal = {
    .v6 = true,
    .bytes = {0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0x00, 0x63, 0x61, 0xff, 0xfe, 0x74,
              0x6e, 0x01}};

}  // namespace catnap::net

#endif  // CATNAP_LIB_NET_LINK_ADDRESSES_H_
