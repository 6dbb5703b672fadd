#ifndef CATNAP_LIB_NET_FRAME_H_
#define CATNAP_LIB_NET_FRAME_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "net/address.h"

namespace catnap::net {

// Why a frame is not let through. The numbers index counters.
enum class Refusal : uint8_t {
  kNone,
  kMalformed,    // A length, a version or the header's checksum is wrong.
  kUnsupported,  // Another protocol, options, or extension headers.
  kFragment,
  kSpoofed,    // The sender's or the receiver's address is not its own.
  kPolicy,     // The policy does not open the peer.
  kUninvited,  // To the guest, and nothing of the guest's asked for it.
  kQueueFull,
  kNoBackend,  // There is no helper process, and no other way out.
  kCount,
};

const char* RefusalText(Refusal refusal);

inline constexpr size_t kEthernetHeaderBytes = 14;
// The largest MTU that the link can have, and the frame that goes with it.
inline constexpr size_t kMaxMtu = 65520;
inline constexpr size_t kMaxFrameBytes = kMaxMtu + kEthernetHeaderBytes;

enum class EtherKind : uint8_t { kArp, kIp };

enum class IpProtocol : uint8_t {
  kIcmp = 1,
  kTcp = 6,
  kUdp = 17,
  kIcmpV6 = 58,
};

// A frame's headers, checked: every span lies in the frame, and holds at least
// its protocol's fixed header. What came with the frame behind the packet is
// in no span.
struct Frame {
  MacAddress to_mac{};
  MacAddress from_mac{};
  EtherKind kind = EtherKind::kArp;
  std::span<const uint8_t> packet;  // ARP: the body. IP: with the header.

  // With kIp only.
  IpAddress from;
  IpAddress to;
  uint8_t hop_limit = 0;
  IpProtocol protocol{};
  std::span<const uint8_t> segment;  // TCP, UDP or ICMP, with the header.
  bool plain = true;                 // No IPv6 extension headers.
  uint16_t from_port = 0;            // TCP and UDP.
  uint16_t to_port = 0;
  uint8_t tcp_flags = 0;
  uint8_t icmp_type = 0;
  uint8_t icmp_code = 0;
  std::span<const uint8_t> payload;  // Of UDP.
};

inline constexpr uint8_t kTcpFin = 0x01;
inline constexpr uint8_t kTcpSyn = 0x02;
inline constexpr uint8_t kTcpRst = 0x04;
inline constexpr uint8_t kTcpAck = 0x10;

// Reads an Ethernet frame. Everything in it may be hostile. kNone: `frame` is
// filled, and borrows `bytes`; else it is unspecified.
//
// Takes ARP for IPv4, IPv4 without options and IPv6 with at most 4 hop-by-hop
// and destination options headers; in these TCP, UDP and ICMP, whole. The
// checksum of the IPv4 header is checked; those behind it are the business of
// whom they are for.
Refusal ParseFrame(std::span<const uint8_t> bytes, Frame* frame);

// The same for an IP packet without its Ethernet header, of which there may be
// only the start, as ICMP errors quote it. Fills addresses, protocol and
// ports; no spans.
bool ParseQuotedPacket(std::span<const uint8_t> bytes, bool v6, Frame* frame);

}  // namespace catnap::net

#endif  // CATNAP_LIB_NET_FRAME_H_
