#include "net/frame.h"

#include <algorithm>

#include "net/wire.h"

namespace catnap::net {
namespace {

constexpr uint16_t kEtherIpv4 = 0x0800;
constexpr uint16_t kEtherArp = 0x0806;
constexpr uint16_t kEtherIpv6 = 0x86dd;

constexpr size_t kArpBytes = 28;
constexpr size_t kIpv4Bytes = 20;
constexpr size_t kIpv6Bytes = 40;
constexpr size_t kTcpBytes = 20;
constexpr size_t kUdpBytes = 8;
constexpr size_t kIcmpBytes = 8;

// IPv6 extension headers.
constexpr uint8_t kHopByHop = 0;
constexpr uint8_t kFragmentHeader = 44;
constexpr uint8_t kDestinationOptions = 60;
constexpr int kMaxExtensions = 4;

using Bytes = std::span<const uint8_t>;

Refusal ParseArp(Bytes body, Frame* frame) {
  frame->kind = EtherKind::kArp;
  if (body.size() < kArpBytes) return Refusal::kMalformed;
  // Ethernet, IPv4, lengths 6 and 4.
  if (Load16(body, 0) != 1 || Load16(body, 2) != kEtherIpv4 || body[4] != 6 ||
      body[5] != 4) {
    return Refusal::kUnsupported;
  }
  frame->packet = body.first(kArpBytes);
  return Refusal::kNone;
}

Refusal ParseSegment(uint8_t protocol, Bytes segment, Frame* frame) {
  frame->protocol = static_cast<IpProtocol>(protocol);
  frame->segment = segment;
  switch (frame->protocol) {
    case IpProtocol::kTcp: {
      if (segment.size() < kTcpBytes) return Refusal::kMalformed;
      const size_t header = size_t{4} * (segment[12] >> 4);
      if (header < kTcpBytes || header > segment.size()) {
        return Refusal::kMalformed;
      }
      frame->tcp_flags = segment[13];
      break;
    }
    case IpProtocol::kUdp: {
      if (segment.size() < kUdpBytes) return Refusal::kMalformed;
      const size_t length = Load16(segment, 4);
      if (length < kUdpBytes || length > segment.size()) {
        return Refusal::kMalformed;
      }
      frame->payload = segment.first(length).subspan(kUdpBytes);
      break;
    }
    case IpProtocol::kIcmp:
    case IpProtocol::kIcmpV6:
      // Each belongs to its own version of IP.
      if ((frame->protocol == IpProtocol::kIcmpV6) != frame->from.v6) {
        return Refusal::kUnsupported;
      }
      if (segment.size() < kIcmpBytes) return Refusal::kMalformed;
      frame->icmp_type = segment[0];
      frame->icmp_code = segment[1];
      return Refusal::kNone;
    default:
      return Refusal::kUnsupported;
  }
  frame->from_port = Load16(segment, 0);
  frame->to_port = Load16(segment, 2);
  return Refusal::kNone;
}

Refusal ParseIpv4(Bytes packet, Frame* frame) {
  frame->kind = EtherKind::kIp;
  if (packet.size() < kIpv4Bytes || packet[0] >> 4 != 4) {
    return Refusal::kMalformed;
  }
  const size_t header = size_t{4} * (packet[0] & 0xf);
  const size_t total = Load16(packet, 2);
  if (header < kIpv4Bytes || total < header || total > packet.size()) {
    return Refusal::kMalformed;
  }
  if (Checksum(AddToSum(0, packet.first(header))) != 0) {
    return Refusal::kMalformed;
  }
  if (header != kIpv4Bytes) return Refusal::kUnsupported;
  // "More fragments" or an offset. Nobody puts them together here, and a part
  // cannot be checked.
  if ((Load16(packet, 6) & 0x3fff) != 0) return Refusal::kFragment;
  frame->packet = packet.first(total);
  frame->hop_limit = packet[8];
  frame->from = IpAddress::V4(packet.subspan(12, 4));
  frame->to = IpAddress::V4(packet.subspan(16, 4));
  return ParseSegment(packet[9], frame->packet.subspan(header), frame);
}

Refusal ParseIpv6(Bytes packet, Frame* frame) {
  frame->kind = EtherKind::kIp;
  if (packet.size() < kIpv6Bytes || packet[0] >> 4 != 6) {
    return Refusal::kMalformed;
  }
  const size_t length = Load16(packet, 4);
  if (length > packet.size() - kIpv6Bytes) return Refusal::kMalformed;
  frame->packet = packet.first(kIpv6Bytes + length);
  frame->hop_limit = packet[7];
  frame->from = IpAddress::V6(packet.subspan(8, 16));
  frame->to = IpAddress::V6(packet.subspan(24, 16));
  uint8_t next = packet[6];
  Bytes rest = frame->packet.subspan(kIpv6Bytes);
  for (int i = 0; next == kHopByHop || next == kDestinationOptions; ++i) {
    if (i == kMaxExtensions) return Refusal::kUnsupported;
    if (rest.size() < 8) return Refusal::kMalformed;
    const size_t bytes = 8 + size_t{8} * rest[1];
    if (bytes > rest.size()) return Refusal::kMalformed;
    next = rest[0];
    rest = rest.subspan(bytes);
    frame->plain = false;
  }
  if (next == kFragmentHeader) return Refusal::kFragment;
  return ParseSegment(next, rest, frame);
}

}  // namespace

const char* RefusalText(Refusal refusal) {
  switch (refusal) {
    case Refusal::kNone:
      return "let through";
    case Refusal::kMalformed:
      return "malformed";
    case Refusal::kUnsupported:
      return "unsupported protocol";
    case Refusal::kFragment:
      return "fragment";
    case Refusal::kSpoofed:
      return "spoofed address";
    case Refusal::kPolicy:
      return "not allowed by the policy";
    case Refusal::kUninvited:
      return "uninvited";
    case Refusal::kQueueFull:
      return "queue full";
    case Refusal::kNoBackend:
      return "no way out";
    case Refusal::kCount:
      break;
  }
  return "";
}

Refusal ParseFrame(std::span<const uint8_t> bytes, Frame* frame) {
  *frame = {};
  if (bytes.size() < kEthernetHeaderBytes || bytes.size() > kMaxFrameBytes) {
    return Refusal::kMalformed;
  }
  std::copy_n(bytes.begin(), 6, frame->to_mac.begin());
  std::copy_n(bytes.begin() + 6, 6, frame->from_mac.begin());
  const Bytes body = bytes.subspan(kEthernetHeaderBytes);
  switch (Load16(bytes, 12)) {
    case kEtherArp:
      return ParseArp(body, frame);
    case kEtherIpv4:
      return ParseIpv4(body, frame);
    case kEtherIpv6:
      return ParseIpv6(body, frame);
    default:
      return Refusal::kUnsupported;
  }
}

bool ParseQuotedPacket(std::span<const uint8_t> bytes, bool v6, Frame* frame) {
  *frame = {};
  frame->kind = EtherKind::kIp;
  const size_t header = v6 ? kIpv6Bytes : kIpv4Bytes;
  // With as much of the segment as every error quotes.
  if (bytes.size() < header + 8 || bytes[0] >> 4 != (v6 ? 6 : 4)) return false;
  if (!v6 && (bytes[0] & 0xf) != kIpv4Bytes / 4) return false;
  frame->from = v6 ? IpAddress::V6(bytes.subspan(8, 16))
                   : IpAddress::V4(bytes.subspan(12, 4));
  frame->to = v6 ? IpAddress::V6(bytes.subspan(24, 16))
                 : IpAddress::V4(bytes.subspan(16, 4));
  frame->protocol = static_cast<IpProtocol>(v6 ? bytes[6] : bytes[9]);
  if (frame->protocol == IpProtocol::kTcp ||
      frame->protocol == IpProtocol::kUdp) {
    frame->from_port = Load16(bytes, header);
    frame->to_port = Load16(bytes, header + 2);
  } else if (frame->protocol == IpProtocol::kIcmp ||
             frame->protocol == IpProtocol::kIcmpV6) {
    frame->icmp_type = bytes[header];
  } else {
    return false;
  }
  return true;
}

}  // namespace catnap::net
