#include "net/gateway.h"

#include <algorithm>
#include <array>
#include <utility>

#include "net/dhcp.h"
#include "net/frame_builder.h"
#include "net/link_addresses.h"
#include "net/wire.h"

namespace catnap::net {
namespace {

constexpr uint16_t kArpRequest = 1;
constexpr uint16_t kArpReply = 2;
constexpr uint8_t kEchoRequestV4 = 8;
constexpr uint8_t kEchoReplyV4 = 0;
constexpr uint8_t kUnreachableV4 = 3;
constexpr uint8_t kProhibitedV4 = 13;
constexpr uint8_t kEchoRequestV6 = 128;
constexpr uint8_t kEchoReplyV6 = 129;
constexpr uint8_t kUnreachableV6 = 1;
constexpr uint8_t kProhibitedV6 = 1;

constexpr uint8_t kListenerQuery = 130;
constexpr uint8_t kListenerReport = 131;
constexpr uint8_t kListenerDone = 132;
constexpr uint8_t kRouterSolicitation = 133;
constexpr uint8_t kRouterAdvertisement = 134;
constexpr uint8_t kNeighborSolicitation = 135;
constexpr uint8_t kNeighborAdvertisement = 136;
constexpr uint8_t kRedirect = 137;
constexpr uint8_t kListenerReportV2 = 143;

constexpr uint8_t kOptionSourceMac = 1;
constexpr uint8_t kOptionTargetMac = 2;
constexpr uint8_t kOptionPrefix = 3;
constexpr uint8_t kOptionMtu = 5;
constexpr uint8_t kOptionDns = 25;
constexpr uint8_t kLinkHops = 255;  // Nobody beyond the link can send it.

constexpr uint16_t kRouterSeconds = 9000;  // The most that there is.
constexpr uint32_t kForEver = 0xffffffff;

constexpr IpAddress kAllNodes = {
    .v6 = true, .bytes = {0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}};

// Of what an error quotes: what fits into the least MTU of IPv6, and what
// RFC 792 wants at least of IPv4.
constexpr size_t kMaxQuoted = 512;

// The ends of an answer to the frame.
Ends Back(const Frame& frame) {
  return {.to_mac = frame.from_mac,
          .from_mac = kGatewayMac,
          .to = frame.from,
          .from = frame.to};
}

void AppendMacOption(std::vector<uint8_t>* to, uint8_t option) {
  Append8(to, option);
  Append8(to, 1);
  AppendBytes(to, kGatewayMac);
}

std::vector<uint8_t> BuildRouterAdvertisement(const Frame& frame,
                                              const MacAddress& guest_mac,
                                              uint16_t mtu) {
  std::vector<uint8_t> body;
  Append8(&body, kRouterAdvertisement);
  Append8(&body, 0);
  Append16(&body, 0);
  Append8(&body, 64);  // Hop limit.
  Append8(&body, 0);   // No DHCPv6.
  Append16(&body, kRouterSeconds);
  Append32(&body, 0);
  Append32(&body, 0);
  AppendMacOption(&body, kOptionSourceMac);
  Append8(&body, kOptionMtu);
  Append8(&body, 1);
  Append16(&body, 0);
  Append32(&body, mtu);
  // On the link, but not to make an address from: the guest has one.
  Append8(&body, kOptionPrefix);
  Append8(&body, 4);
  Append8(&body, kLinkBitsV6);
  Append8(&body, 0x80);
  Append32(&body, kForEver);
  Append32(&body, kForEver);
  Append32(&body, 0);
  AppendBytes(&body, LinkV6(0).span());
  Append8(&body, kOptionDns);
  Append8(&body, 3);
  Append16(&body, 0);
  Append32(&body, kForEver);
  AppendBytes(&body, kDnsV6.span());
  const bool known = !frame.from.IsUnspecified();
  return BuildIpFrame({.to_mac = guest_mac,
                       .from_mac = kGatewayMac,
                       .to = known ? frame.from : kAllNodes,
                       .from = kGatewayLinkLocal},
                      IpProtocol::kIcmpV6, std::move(body), kLinkHops);
}

std::optional<std::vector<uint8_t>> AnswerSolicitation(
    const Frame& frame, const MacAddress& guest_mac) {
  if (frame.segment.size() < 24) return std::nullopt;
  const IpAddress target = IpAddress::V6(frame.segment.subspan(8, 16));
  if (!IsGateway(target) && !IsResolver(target)) return std::nullopt;
  const bool known = !frame.from.IsUnspecified();
  std::vector<uint8_t> body;
  Append8(&body, kNeighborAdvertisement);
  Append8(&body, 0);
  Append16(&body, 0);
  // Router, solicited (an answer to a duplicate check is not), override.
  Append32(&body, (IsGateway(target) ? 0x80000000u : 0) |
                      (known ? 0x40000000u : 0) | 0x20000000u);
  AppendBytes(&body, target.span());
  AppendMacOption(&body, kOptionTargetMac);
  return BuildIpFrame({.to_mac = guest_mac,
                       .from_mac = kGatewayMac,
                       .to = known ? frame.from : kAllNodes,
                       .from = target},
                      IpProtocol::kIcmpV6, std::move(body), kLinkHops);
}

std::optional<std::vector<uint8_t>> BuildReset(const Frame& frame) {
  if ((frame.tcp_flags & kTcpRst) != 0) return std::nullopt;
  const auto& segment = frame.segment;
  std::vector<uint8_t> body;
  Append16(&body, frame.to_port);
  Append16(&body, frame.from_port);
  if ((frame.tcp_flags & kTcpAck) != 0) {
    Append32(&body, Load32(segment, 8));
    Append32(&body, 0);
    Append16(&body, 5 << 12 | kTcpRst);
  } else {
    const size_t header = size_t{4} * (segment[12] >> 4);
    uint32_t length = static_cast<uint32_t>(segment.size() - header);
    if ((frame.tcp_flags & kTcpSyn) != 0) ++length;
    if ((frame.tcp_flags & kTcpFin) != 0) ++length;
    Append32(&body, 0);
    Append32(&body, Load32(segment, 4) + length);
    Append16(&body, 5 << 12 | kTcpRst | kTcpAck);
  }
  Append16(&body, 0);
  Append32(&body, 0);
  return BuildIpFrame(Back(frame), IpProtocol::kTcp, std::move(body));
}

}  // namespace

bool IsGateway(const IpAddress& address) {
  return address == kGatewayV4 || address == kGatewayV6 ||
         address == kGatewayLinkLocal;
}

bool IsResolver(const IpAddress& address) {
  return address == kDnsV4 || address == kDnsV6;
}

std::optional<std::vector<uint8_t>> AnswerArp(const Frame& frame,
                                              const MacAddress& guest_mac) {
  const ArpBody asked = ReadArp(frame.packet);
  if (asked.operation != kArpRequest ||
      (!IsGateway(asked.target) && !IsResolver(asked.target))) {
    return std::nullopt;
  }
  return BuildArpFrame(guest_mac, {.operation = kArpReply,
                                   .sender_mac = kGatewayMac,
                                   .sender = asked.target,
                                   .target_mac = guest_mac,
                                   .target = asked.sender});
}

bool IsLinkIcmp(const Frame& frame) {
  return frame.protocol == IpProtocol::kIcmpV6 &&
         ((frame.icmp_type >= kListenerQuery && frame.icmp_type <= kRedirect) ||
          frame.icmp_type == kListenerReportV2);
}

std::optional<std::vector<uint8_t>> AnswerNeighbor(const Frame& frame,
                                                   const MacAddress& guest_mac,
                                                   uint16_t mtu) {
  if (frame.hop_limit != kLinkHops || frame.icmp_code != 0) {
    return std::nullopt;
  }
  switch (frame.icmp_type) {
    case kRouterSolicitation:
      return BuildRouterAdvertisement(frame, guest_mac, mtu);
    case kNeighborSolicitation:
      return AnswerSolicitation(frame, guest_mac);
    case kListenerReport:  // Nobody sends to groups here.
    case kListenerDone:
    default:
      return std::nullopt;
  }
}

std::optional<std::vector<uint8_t>> AnswerPing(const Frame& frame) {
  const bool v6 = frame.protocol == IpProtocol::kIcmpV6;
  if (!v6 && frame.protocol != IpProtocol::kIcmp) return std::nullopt;
  if (frame.icmp_type != (v6 ? kEchoRequestV6 : kEchoRequestV4)) {
    return std::nullopt;
  }
  std::vector<uint8_t> body(frame.segment.begin(), frame.segment.end());
  body[0] = v6 ? kEchoReplyV6 : kEchoReplyV4;
  Store16(body, 2, 0);
  return BuildIpFrame(Back(frame), frame.protocol, std::move(body));
}

std::optional<std::vector<uint8_t>> AnswerRefused(const Frame& frame) {
  if (frame.kind != EtherKind::kIp || frame.from.IsUnspecified() ||
      frame.to.IsMulticast()) {
    return std::nullopt;
  }
  if (frame.protocol == IpProtocol::kTcp) return BuildReset(frame);
  const bool v6 = frame.to.v6;
  // Never about another error.
  const bool ping = frame.icmp_type == (v6 ? kEchoRequestV6 : kEchoRequestV4);
  if (frame.protocol != IpProtocol::kUdp && !ping) return std::nullopt;
  std::vector<uint8_t> body;
  Append8(&body, v6 ? kUnreachableV6 : kUnreachableV4);
  Append8(&body, v6 ? kProhibitedV6 : kProhibitedV4);
  Append16(&body, 0);
  Append32(&body, 0);
  AppendBytes(&body,
              frame.packet.first(std::min(frame.packet.size(), kMaxQuoted)));
  Ends ends = Back(frame);
  ends.from = v6 ? kGatewayV6 : kGatewayV4;
  return BuildIpFrame(ends, v6 ? IpProtocol::kIcmpV6 : IpProtocol::kIcmp,
                      std::move(body));
}

std::optional<std::vector<uint8_t>> AnswerDhcpFrame(const Frame& frame,
                                                    const MacAddress& guest_mac,
                                                    uint16_t mtu) {
  constexpr IpAddress kEverybody = IpAddress::V4(255, 255, 255, 255);
  auto answer = AnswerDhcp(frame.payload, guest_mac, mtu);
  if (!answer.has_value()) return std::nullopt;
  return BuildUdpFrame({.to_mac = guest_mac,
                        .from_mac = kGatewayMac,
                        .to = kEverybody,
                        .from = kGatewayV4},
                       kDhcpServerPort, kDhcpClientPort, *answer);
}

}  // namespace catnap::net
