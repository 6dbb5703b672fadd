#ifndef CATNAP_LIB_NET_FRAME_BUILDER_H_
#define CATNAP_LIB_NET_FRAME_BUILDER_H_

#include <cstdint>
#include <span>
#include <vector>

#include "net/address.h"
#include "net/frame.h"

namespace catnap::net {

// The two ends of a packet that is built.
struct Ends {
  MacAddress to_mac{};
  MacAddress from_mac{};
  IpAddress to;
  IpAddress from;  // Of the same version.
};

// An IP packet in an Ethernet frame, checksums filled in. `segment` has a zero
// checksum field. `hop_limit` is 255 where a protocol of the link wants that.
std::vector<uint8_t> BuildIpFrame(const Ends& ends, IpProtocol protocol,
                                  std::vector<uint8_t> segment,
                                  uint8_t hop_limit = 64);

// At most 65,000 bytes of payload.
std::vector<uint8_t> BuildUdpFrame(const Ends& ends, uint16_t from_port,
                                   uint16_t to_port,
                                   std::span<const uint8_t> payload);

struct ArpBody {
  uint16_t operation = 0;  // 1: request, 2: reply.
  MacAddress sender_mac{};
  IpAddress sender;
  MacAddress target_mac{};
  IpAddress target;
};
ArpBody ReadArp(std::span<const uint8_t> packet);  // Frame::packet.
std::vector<uint8_t> BuildArpFrame(const MacAddress& to_mac,
                                   const ArpBody& body);

}  // namespace catnap::net

#endif  // CATNAP_LIB_NET_FRAME_BUILDER_H_
