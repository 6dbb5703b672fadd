#ifndef CATNAP_TESTS_SUPPORT_GUEST_FRAMES_H_
#define CATNAP_TESTS_SUPPORT_GUEST_FRAMES_H_

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "net/dns_message.h"
#include "net/frame_builder.h"
#include "net/link_addresses.h"
#include "net/wire.h"

namespace catnap::test {

// Frames as a guest or its peers send them.
using FrameBytes = std::vector<uint8_t>;

inline net::Ends FromGuest(const net::IpAddress& to) {
  return {.to_mac = net::kGatewayMac,
          .from_mac = net::kDefaultGuestMac,
          .to = to,
          .from = to.v6 ? net::kGuestV6 : net::kGuestV4};
}

inline net::Ends ToGuest(const net::IpAddress& from) {
  return {.to_mac = net::kDefaultGuestMac,
          .from_mac = net::kGatewayMac,
          .to = from.v6 ? net::kGuestV6 : net::kGuestV4,
          .from = from};
}

inline FrameBytes TcpFrame(const net::Ends& ends, uint16_t from_port,
                           uint16_t to_port, uint8_t flags,
                           const std::string& data = "") {
  FrameBytes segment;
  net::Append16(&segment, from_port);
  net::Append16(&segment, to_port);
  net::Append32(&segment, 1000);  // Sequence number
  net::Append32(&segment, 2000);  // and acknowledgement.
  net::Append16(&segment, static_cast<uint16_t>(5 << 12 | flags));
  net::Append16(&segment, 0xffff);
  net::Append32(&segment, 0);
  segment.insert(segment.end(), data.begin(), data.end());
  return net::BuildIpFrame(ends, net::IpProtocol::kTcp, std::move(segment));
}

inline FrameBytes UdpFrame(const net::Ends& ends, uint16_t from_port,
                           uint16_t to_port, const std::string& data) {
  return net::BuildUdpFrame(
      ends, from_port, to_port,
      {reinterpret_cast<const uint8_t*>(data.data()), data.size()});
}

inline FrameBytes IcmpFrame(const net::Ends& ends, uint8_t type, uint8_t code,
                            const FrameBytes& body, uint8_t hops = 64) {
  FrameBytes segment = {type, code, 0, 0};
  segment.insert(segment.end(), body.begin(), body.end());
  return net::BuildIpFrame(
      ends, ends.to.v6 ? net::IpProtocol::kIcmpV6 : net::IpProtocol::kIcmp,
      std::move(segment), hops);
}

inline FrameBytes ArpRequest(const net::IpAddress& target,
                             const net::IpAddress& sender = net::kGuestV4) {
  return net::BuildArpFrame({0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
                            {.operation = 1,
                             .sender_mac = net::kDefaultGuestMac,
                             .sender = sender,
                             .target = target});
}

inline void AppendDnsName(FrameBytes* to, const std::string& name) {
  for (size_t at = 0; at < name.size();) {
    const size_t dot = std::min(name.find('.', at), name.size());
    to->push_back(static_cast<uint8_t>(dot - at));
    to->insert(to->end(), name.begin() + static_cast<std::ptrdiff_t>(at),
               name.begin() + static_cast<std::ptrdiff_t>(dot));
    at = dot + 1;
  }
  to->push_back(0);
}

inline FrameBytes DnsQuestion(uint16_t id, const std::string& name,
                              uint16_t type = 1) {
  FrameBytes message;
  net::Append16(&message, id);
  net::Append16(&message, 0x0100);
  net::Append16(&message, 1);
  net::Append32(&message, 0);
  net::Append16(&message, 0);
  AppendDnsName(&message, name);
  net::Append16(&message, type);
  net::Append16(&message, 1);
  return message;
}

// A record of an answer. `data` as it is on the wire.
struct DnsRecord {
  std::string owner;
  uint16_t type = 1;
  uint32_t seconds = 300;
  FrameBytes data{};
};

inline DnsRecord AddressRecord(const std::string& owner,
                               const net::IpAddress& address,
                               uint32_t seconds = 300) {
  return {.owner = owner,
          .type = address.v6 ? uint16_t{28} : uint16_t{1},
          .seconds = seconds,
          .data = {address.span().begin(), address.span().end()}};
}

inline DnsRecord AliasRecord(const std::string& owner,
                             const std::string& target,
                             uint32_t seconds = 300) {
  DnsRecord record{.owner = owner, .type = 5, .seconds = seconds};
  AppendDnsName(&record.data, target);
  return record;
}

// The answer to `question`, a message of DnsQuestion().
inline FrameBytes DnsReply(const FrameBytes& question,
                           const std::vector<DnsRecord>& records) {
  FrameBytes message = question;
  message[2] = 0x81;
  message[3] = 0x80;
  net::Store16(message, 6, static_cast<uint16_t>(records.size()));
  for (const DnsRecord& record : records) {
    AppendDnsName(&message, record.owner);
    net::Append16(&message, record.type);
    net::Append16(&message, 1);
    net::Append32(&message, record.seconds);
    net::Append16(&message, static_cast<uint16_t>(record.data.size()));
    net::AppendBytes(&message, record.data);
  }
  return message;
}

}  // namespace catnap::test

#endif  // CATNAP_TESTS_SUPPORT_GUEST_FRAMES_H_
