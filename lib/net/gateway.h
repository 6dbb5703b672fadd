#ifndef CATNAP_LIB_NET_GATEWAY_H_
#define CATNAP_LIB_NET_GATEWAY_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "net/address.h"
#include "net/frame.h"

namespace catnap::net {

// What the gateway of a guest's link says by itself: with it the link works
// when nothing may leave and nobody is there to pass frames on. Functions of
// the frame alone; nullopt: there is nothing to answer. Frames are the guest's
// and hostile.

// Whether the address is one of the gateway's or the resolver's.
bool IsGateway(const IpAddress& address);
bool IsResolver(const IpAddress& address);

// "Who has the gateway's or the resolver's address?"
std::optional<std::vector<uint8_t>> AnswerArp(const Frame& frame,
                                              const MacAddress& guest_mac);

// Whether an ICMPv6 message belongs to the link: neighbour discovery and
// multicast listeners. It never leaves the link.
bool IsLinkIcmp(const Frame& frame);
// Neighbour and router solicitations (RFC 4861, with RFC 8106).
std::optional<std::vector<uint8_t>> AnswerNeighbor(const Frame& frame,
                                                   const MacAddress& guest_mac,
                                                   uint16_t mtu);

// A ping of the gateway or the resolver.
std::optional<std::vector<uint8_t>> AnswerPing(const Frame& frame);

// Tells the sender of a frame that may not leave: a reset for TCP, else
// "administratively prohibited".
std::optional<std::vector<uint8_t>> AnswerRefused(const Frame& frame);

// The guest's DHCP request, if the frame is one that is for us.
std::optional<std::vector<uint8_t>> AnswerDhcpFrame(const Frame& frame,
                                                    const MacAddress& guest_mac,
                                                    uint16_t mtu);

}  // namespace catnap::net

#endif  // CATNAP_LIB_NET_GATEWAY_H_
