#include "net/frame.h"

#include <catch2/catch.hpp>

#include "support/guest_frames.h"

namespace catnap::net {
namespace {

using test::FrameBytes;

constexpr IpAddress kPeerV4 = IpAddress::V4(1, 2, 3, 4);
constexpr IpAddress kPeerV6 = {.v6 = true, .bytes = {0x26, 0x06, 1}};
constexpr size_t kIp = kEthernetHeaderBytes;  // Where the packet starts.

Refusal Parse(const FrameBytes& bytes) {
  Frame frame;
  return ParseFrame(bytes, &frame);
}

// With the checksum of the IPv4 header made right again.
FrameBytes Fixed(FrameBytes bytes) {
  Store16(bytes, kIp + 10, 0);
  const size_t header = size_t{4} * (bytes[kIp] & 0xf);
  Store16(bytes, kIp + 10,
          Checksum(AddToSum(0, std::span(bytes).subspan(kIp, header))));
  return bytes;
}

TEST_CASE("ParseFrame reads whole frames of both versions") {
  const auto peer = GENERATE(kPeerV4, kPeerV6);
  const FrameBytes tcp =
      test::TcpFrame(test::FromGuest(peer), 4000, 443, kTcpSyn, "data");
  Frame frame;
  REQUIRE(ParseFrame(tcp, &frame) == Refusal::kNone);
  CHECK(frame.to == peer);
  CHECK(frame.from == (peer.v6 ? kGuestV6 : kGuestV4));
  CHECK(frame.from_mac == kDefaultGuestMac);
  CHECK(frame.protocol == IpProtocol::kTcp);
  CHECK(frame.from_port == 4000);
  CHECK(frame.to_port == 443);
  CHECK(frame.tcp_flags == kTcpSyn);
  CHECK(frame.segment.size() == 24);

  const FrameBytes udp = test::UdpFrame(test::FromGuest(peer), 1, 2, "hello");
  REQUIRE(ParseFrame(udp, &frame) == Refusal::kNone);
  CHECK(frame.payload.size() == 5);
}

TEST_CASE("ParseFrame leaves out what lies behind the packet") {
  FrameBytes bytes = test::UdpFrame(test::FromGuest(kPeerV4), 1, 2, "hello");
  const size_t size = bytes.size();
  bytes.resize(size + 20, 0xee);
  Frame frame;
  REQUIRE(ParseFrame(bytes, &frame) == Refusal::kNone);
  CHECK(frame.packet.size() == size - kIp);
  CHECK(frame.payload.size() == 5);
}

TEST_CASE("ParseFrame refuses every frame that is cut short") {
  const auto peer = GENERATE(kPeerV4, kPeerV6);
  const FrameBytes whole =
      test::TcpFrame(test::FromGuest(peer), 4000, 443, kTcpSyn);
  for (size_t size = 0; size < whole.size(); ++size) {
    CAPTURE(size);
    // In memory of its own, so that a sanitizer sees the end.
    const FrameBytes part(whole.begin(),
                          whole.begin() + static_cast<std::ptrdiff_t>(size));
    CHECK(Parse(part) == Refusal::kMalformed);
  }
  const FrameBytes arp = test::ArpRequest(kGatewayV4);
  CHECK(Parse(arp) == Refusal::kNone);
  CHECK(Parse(FrameBytes(arp.begin(), arp.end() - 1)) == Refusal::kMalformed);
}

TEST_CASE("ParseFrame refuses wrong lengths and versions of IPv4") {
  const FrameBytes good = test::UdpFrame(test::FromGuest(kPeerV4), 1, 2, "hi");
  FrameBytes bad = good;
  bad[kIp] = 0x55;
  CHECK(Parse(Fixed(bad)) == Refusal::kMalformed);
  bad = good;
  bad[kIp] = 0x44;
  CHECK(Parse(Fixed(bad)) == Refusal::kMalformed);
  bad = good;
  Store16(bad, kIp + 2, 19);  // Shorter than the header.
  CHECK(Parse(Fixed(bad)) == Refusal::kMalformed);
  bad = good;
  Store16(bad, kIp + 2, static_cast<uint16_t>(good.size() - kIp + 1));
  CHECK(Parse(Fixed(bad)) == Refusal::kMalformed);
  bad = good;
  bad[kIp + 8] ^= 1;  // The checksum is wrong now.
  CHECK(Parse(bad) == Refusal::kMalformed);
  bad = good;
  Store16(bad, kIp + 24, 7);  // A UDP length below the header's,
  CHECK(Parse(bad) == Refusal::kMalformed);
  Store16(bad, kIp + 24, 11);  // and beyond the packet.
  CHECK(Parse(bad) == Refusal::kMalformed);
  bad = good;
  bad[kIp] = 0x46;  // A header with options.
  CHECK(Parse(Fixed(bad)) == Refusal::kUnsupported);
}

TEST_CASE("ParseFrame refuses fragments") {
  const FrameBytes good = test::UdpFrame(test::FromGuest(kPeerV4), 1, 2, "hi");
  const auto [field, why] = GENERATE(table<uint16_t, Refusal>({
      {0x4000, Refusal::kNone},  // Don't fragment.
      {0x2000, Refusal::kFragment},
      {0x0001, Refusal::kFragment},
      {0x1fff, Refusal::kFragment},
      {185, Refusal::kFragment},
  }));
  FrameBytes bytes = good;
  Store16(bytes, kIp + 6, field);
  CHECK(Parse(Fixed(bytes)) == why);
}

FrameBytes WithExtensions(const std::vector<FrameBytes>& headers,
                          uint8_t first) {
  FrameBytes bytes = test::UdpFrame(test::FromGuest(kPeerV6), 1, 2, "hi");
  FrameBytes all;
  for (const FrameBytes& header : headers) {
    all.insert(all.end(), header.begin(), header.end());
  }
  bytes[kIp + 6] = first;
  Store16(bytes, kIp + 4, static_cast<uint16_t>(10 + all.size()));
  bytes.insert(bytes.begin() + static_cast<std::ptrdiff_t>(kIp + 40),
               all.begin(), all.end());
  return bytes;
}

TEST_CASE("ParseFrame bounds IPv6 extension headers") {
  const FrameBytes to_udp = {17, 0, 1, 4, 0, 0, 0, 0};
  const FrameBytes to_more = {60, 0, 1, 4, 0, 0, 0, 0};
  Frame frame;
  const FrameBytes one = WithExtensions({to_udp}, 0);
  REQUIRE(ParseFrame(one, &frame) == Refusal::kNone);
  CHECK_FALSE(frame.plain);
  CHECK(frame.to_port == 2);
  CHECK(Parse(WithExtensions({to_more, to_more, to_more, to_udp}, 0)) ==
        Refusal::kNone);
  CHECK(Parse(WithExtensions({to_more, to_more, to_more, to_more, to_udp},
                             0)) == Refusal::kUnsupported);
  CHECK(Parse(WithExtensions({{17, 200, 0, 0, 0, 0, 0, 0}}, 60)) ==
        Refusal::kMalformed);
  CHECK(Parse(WithExtensions({to_udp}, 43)) == Refusal::kUnsupported);
  CHECK(Parse(WithExtensions({to_udp}, 44)) == Refusal::kFragment);
  CHECK(Parse(WithExtensions({}, 51)) == Refusal::kUnsupported);
}

TEST_CASE("ParseFrame refuses what it does not know") {
  FrameBytes bytes = test::TcpFrame(test::FromGuest(kPeerV4), 1, 2, 0);
  FrameBytes bad = bytes;
  bad[12] = 0x81;  // A VLAN tag.
  bad[13] = 0;
  CHECK(Parse(bad) == Refusal::kUnsupported);
  bad = bytes;
  bad[kIp + 9] = 47;  // GRE.
  CHECK(Parse(Fixed(bad)) == Refusal::kUnsupported);
  bad[kIp + 9] = 58;  // ICMP of the other version.
  CHECK(Parse(Fixed(bad)) == Refusal::kUnsupported);
  bad = bytes;
  bad[kIp + 20 + 12] = 4 << 4;  // TCP's header is too short,
  CHECK(Parse(bad) == Refusal::kMalformed);
  bad[kIp + 20 + 12] = 6 << 4;  // or longer than the packet.
  CHECK(Parse(bad) == Refusal::kMalformed);
  CHECK(Parse(FrameBytes(kMaxFrameBytes + 1)) == Refusal::kMalformed);
}

}  // namespace
}  // namespace catnap::net
