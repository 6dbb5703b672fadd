#include "net/frame_builder.h"

#include <algorithm>
#include <array>

#include "net/wire.h"

namespace catnap::net {
namespace {

std::vector<uint8_t> StartFrame(const MacAddress& to, const MacAddress& from,
                                uint16_t type) {
  std::vector<uint8_t> bytes;
  AppendBytes(&bytes, to);
  AppendBytes(&bytes, from);
  Append16(&bytes, type);
  return bytes;
}

// Where the checksum is in a segment.
size_t ChecksumAt(IpProtocol protocol) {
  switch (protocol) {
    case IpProtocol::kTcp:
      return 16;
    case IpProtocol::kUdp:
      return 6;
    case IpProtocol::kIcmp:
    case IpProtocol::kIcmpV6:
      break;
  }
  return 2;
}

uint32_t PseudoHeaderSum(const Ends& ends, IpProtocol protocol, size_t length) {
  uint32_t sum = AddToSum(0, ends.from.span());
  sum = AddToSum(sum, ends.to.span());
  std::array<uint8_t, 4> rest{};
  Store16(rest, 0, static_cast<uint16_t>(protocol));
  Store16(rest, 2, static_cast<uint16_t>(length));
  return AddToSum(sum, rest);
}

}  // namespace

std::vector<uint8_t> BuildIpFrame(const Ends& ends, IpProtocol protocol,
                                  std::vector<uint8_t> segment,
                                  uint8_t hop_limit) {
  const uint32_t sum = protocol == IpProtocol::kIcmp
                           ? 0
                           : PseudoHeaderSum(ends, protocol, segment.size());
  uint16_t checksum = Checksum(AddToSum(sum, segment));
  // 0 says that a UDP segment has none.
  if (protocol == IpProtocol::kUdp && checksum == 0) checksum = 0xffff;
  Store16(segment, ChecksumAt(protocol), checksum);

  std::vector<uint8_t> bytes =
      StartFrame(ends.to_mac, ends.from_mac, ends.to.v6 ? 0x86dd : 0x0800);
  if (ends.to.v6) {
    Append32(&bytes, 6u << 28);
    Append16(&bytes, static_cast<uint16_t>(segment.size()));
    Append8(&bytes, static_cast<uint8_t>(protocol));
    Append8(&bytes, hop_limit);
    AppendBytes(&bytes, ends.from.span());
    AppendBytes(&bytes, ends.to.span());
  } else {
    Append16(&bytes, 0x4500);
    Append16(&bytes, static_cast<uint16_t>(20 + segment.size()));
    Append16(&bytes, 0);
    Append16(&bytes, 0x4000);  // Never in fragments.
    Append8(&bytes, hop_limit);
    Append8(&bytes, static_cast<uint8_t>(protocol));
    Append16(&bytes, 0);
    AppendBytes(&bytes, ends.from.span());
    AppendBytes(&bytes, ends.to.span());
    const std::span<uint8_t> header =
        std::span(bytes).subspan(kEthernetHeaderBytes);
    Store16(header, 10, Checksum(AddToSum(0, header)));
  }
  AppendBytes(&bytes, segment);
  return bytes;
}

std::vector<uint8_t> BuildUdpFrame(const Ends& ends, uint16_t from_port,
                                   uint16_t to_port,
                                   std::span<const uint8_t> payload) {
  std::vector<uint8_t> segment;
  segment.reserve(8 + payload.size());
  Append16(&segment, from_port);
  Append16(&segment, to_port);
  Append16(&segment, static_cast<uint16_t>(8 + payload.size()));
  Append16(&segment, 0);
  AppendBytes(&segment, payload);
  return BuildIpFrame(ends, IpProtocol::kUdp, std::move(segment));
}

ArpBody ReadArp(std::span<const uint8_t> packet) {
  ArpBody body;
  body.operation = Load16(packet, 6);
  std::copy_n(packet.begin() + 8, 6, body.sender_mac.begin());
  body.sender = IpAddress::V4(packet.subspan(14, 4));
  std::copy_n(packet.begin() + 18, 6, body.target_mac.begin());
  body.target = IpAddress::V4(packet.subspan(24, 4));
  return body;
}

std::vector<uint8_t> BuildArpFrame(const MacAddress& to_mac,
                                   const ArpBody& body) {
  std::vector<uint8_t> bytes = StartFrame(to_mac, body.sender_mac, 0x0806);
  Append16(&bytes, 1);
  Append16(&bytes, 0x0800);
  Append8(&bytes, 6);
  Append8(&bytes, 4);
  Append16(&bytes, body.operation);
  AppendBytes(&bytes, body.sender_mac);
  AppendBytes(&bytes, body.sender.span());
  AppendBytes(&bytes, body.target_mac);
  AppendBytes(&bytes, body.target.span());
  return bytes;
}

}  // namespace catnap::net
