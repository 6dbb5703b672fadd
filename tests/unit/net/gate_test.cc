#include "net/gate.h"

#include <catch2/catch.hpp>
#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include "support/guest_frames.h"

namespace catnap::net {
namespace {

using namespace std::chrono_literals;
using test::FrameBytes;
using test::FromGuest;
using test::IcmpFrame;
using test::TcpFrame;
using test::ToGuest;
using test::UdpFrame;

constexpr IpAddress kPublic = IpAddress::V4(1, 2, 3, 4);
constexpr IpAddress kPublicV6 = {.v6 = true, .bytes = {0x26, 0x06, 1}};
constexpr IpAddress kPrivate = IpAddress::V4(10, 1, 2, 3);
constexpr uint16_t kGuestPort = 4000;

// A gate, its guest and its world.
class Link final : public GateOutput {
 public:
  explicit Link(const PolicySpec& spec = {}, const GateOptions& options = {})
      : gate(options, this) {
    Set(spec);
  }
  void Set(const PolicySpec& spec) {
    auto policy = Policy::Compile(spec);
    REQUIRE(policy.ok());
    gate.SetPolicy(*std::move(policy));
  }

  void ToGuest(std::span<const uint8_t> frame) override {
    to_guest.emplace_back(frame.begin(), frame.end());
  }
  Refusal ToOutside(std::span<const uint8_t> frame) override {
    outside.emplace_back(frame.begin(), frame.end());
    return Refusal::kNone;
  }
  void Ask(uint64_t token, const DnsQuery& query) override {
    asked.emplace_back(token, query);
  }

  // Whether the frame went through; nothing else may.
  bool Leaves(const FrameBytes& frame) {
    outside.clear();
    gate.FromGuest(frame, now);
    if (outside.empty()) return false;
    CHECK(outside == std::vector<FrameBytes>{frame});
    return true;
  }
  bool Enters(const FrameBytes& frame) {
    to_guest.clear();
    gate.FromOutside(frame, now);
    if (to_guest.empty()) return false;
    CHECK(to_guest == std::vector<FrameBytes>{frame});
    return true;
  }
  // What the gateway answers; an empty frame: nothing.
  Frame Answer(const FrameBytes& frame) {
    to_guest.clear();
    outside.clear();
    gate.FromGuest(frame, now);
    CHECK(outside.empty());
    Frame answer;
    if (to_guest.empty()) return answer;
    CHECK(to_guest.size() == 1);
    CHECK(ParseFrame(to_guest[0], &answer) == Refusal::kNone);
    CHECK(answer.from_mac == kGatewayMac);
    return answer;
  }
  uint64_t Refused(Refusal why) const {
    return gate.stats().refused_out[static_cast<size_t>(why)];
  }

  bool Connects(const IpAddress& to, uint16_t port) {
    return Leaves(TcpFrame(FromGuest(to), kGuestPort, port, kTcpSyn));
  }

  // The guest asks for a name; returns whether the question was passed on.
  bool Asks(const std::string& name, uint16_t type = 1) {
    asked.clear();
    question = test::DnsQuestion(77, name, type);
    gate.FromGuest(UdpFrame(FromGuest(kDnsV4), 5000, 53,
                            std::string(question.begin(), question.end())),
                   now);
    return !asked.empty();
  }
  void Reply(const std::vector<test::DnsRecord>& records) {
    const FrameBytes reply = test::DnsReply(question, records);
    REQUIRE(asked.size() == 1);
    const auto answer = ParseDnsAnswer(reply, asked[0].second, 77);
    REQUIRE(answer.has_value());
    to_guest.clear();
    gate.OnAnswer(asked[0].first, reply, *answer, now);
  }
  // The code of the last answer by DNS.
  int DnsCodeToGuest() {
    Frame frame;
    if (to_guest.empty() ||
        ParseFrame(to_guest.back(), &frame) != Refusal::kNone ||
        frame.from_port != 53 || frame.payload.size() < 12) {
      return -1;
    }
    CHECK(Load16(frame.payload, 0) == 77);
    return frame.payload[3] & 0xf;
  }

  std::vector<FrameBytes> to_guest;
  std::vector<FrameBytes> outside;
  std::vector<std::pair<uint64_t, DnsQuery>> asked;
  FrameBytes question;
  Gate::TimePoint now = Gate::TimePoint() + 1h;
  Gate gate;
};

PolicySpec Allow(std::vector<RuleSpec> rules) {
  return {.mode = PolicyMode::kAllow, .rules = std::move(rules)};
}

TEST_CASE("The link works while nothing may leave") {
  Link link;
  const IpAddress target = GENERATE(kGatewayV4, kDnsV4);
  const Frame arp = link.Answer(test::ArpRequest(target));
  REQUIRE(arp.kind == EtherKind::kArp);
  const ArpBody body = ReadArp(arp.packet);
  CHECK(body.operation == 2);
  CHECK(body.sender == target);
  CHECK(body.sender_mac == kGatewayMac);
  CHECK(body.target_mac == kDefaultGuestMac);
  // Nobody has the other addresses.
  CHECK(link.Answer(test::ArpRequest(IpAddress::V4(10, 233, 117, 4)))
            .packet.empty());

  const bool v6 = GENERATE(false, true);
  const Frame pong = link.Answer(IcmpFrame(FromGuest(v6 ? kGatewayV6 : target),
                                           v6 ? 128 : 8, 0, {1, 2, 3, 4}));
  CHECK(pong.icmp_type == (v6 ? 129 : 0));
  CHECK(pong.segment.size() == 8);
}

TEST_CASE("Neighbours and routers are found") {
  Link link;
  FrameBytes body = {0, 0, 0, 0};
  AppendBytes(&body, kGatewayV6.span());
  Frame answer =
      link.Answer(IcmpFrame(FromGuest(kGatewayV6), 135, 0, body, 255));
  CHECK(answer.icmp_type == 136);
  CHECK(answer.hop_limit == 255);
  CHECK(answer.to == kGuestV6);
  // From beyond the link.
  CHECK(link.Answer(IcmpFrame(FromGuest(kGatewayV6), 135, 0, body, 254))
            .packet.empty());
  // Cut short.
  CHECK(link.Answer(IcmpFrame(FromGuest(kGatewayV6), 135, 0, {0, 0, 0, 0}, 255))
            .packet.empty());
  Ends ends = FromGuest(kGatewayV6);
  ends.from = IpAddress{.v6 = true};
  answer = link.Answer(IcmpFrame(ends, 133, 0, {0, 0, 0, 0}, 255));
  CHECK(answer.icmp_type == 134);
  CHECK(answer.from == kGatewayLinkLocal);
  CHECK(answer.to.IsMulticast());
}

TEST_CASE("DenyAll lets nothing out, and says so at once") {
  Link link;
  Frame answer =
      link.Answer(TcpFrame(FromGuest(kPublic), kGuestPort, 80, kTcpSyn));
  CHECK(answer.protocol == IpProtocol::kTcp);
  CHECK(answer.tcp_flags == (kTcpRst | kTcpAck));
  CHECK(Load32(answer.segment, 8) == 1001);
  CHECK(answer.from == kPublic);
  answer = link.Answer(TcpFrame(FromGuest(kPublicV6), kGuestPort, 80, kTcpAck));
  CHECK(answer.tcp_flags == kTcpRst);
  CHECK(Load32(answer.segment, 4) == 2000);
  answer = link.Answer(UdpFrame(FromGuest(kPublic), kGuestPort, 80, "x"));
  CHECK(answer.icmp_type == 3);
  CHECK(answer.icmp_code == 13);
  answer = link.Answer(UdpFrame(FromGuest(kPublicV6), kGuestPort, 80, "x"));
  CHECK(answer.icmp_type == 1);
  CHECK(link.Answer(TcpFrame(FromGuest(kPublic), kGuestPort, 80, kTcpRst))
            .packet.empty());
  CHECK(link.Refused(Refusal::kPolicy) == 5);
  CHECK_FALSE(link.Asks("example.org"));
  CHECK(link.DnsCodeToGuest() == 3);
  CHECK(link.gate.stats().names_refused == 1);
}

TEST_CASE("A flood of refused frames is answered in part only") {
  Link link;
  const FrameBytes frame =
      TcpFrame(FromGuest(kPublic), kGuestPort, 80, kTcpSyn);
  for (int i = 0; i < 10'000; ++i) link.gate.FromGuest(frame, link.now);
  CHECK(link.to_guest.size() == 200);
  CHECK(link.Refused(Refusal::kPolicy) == 10'000);
}

TEST_CASE("Nobody sends under another's address") {
  Link link({.mode = PolicyMode::kUnrestricted});
  CHECK(link.Connects(kPublic, 80));
  Ends ends = FromGuest(kPublic);
  ends.from_mac[5] ^= 1;
  CHECK_FALSE(link.Leaves(TcpFrame(ends, kGuestPort, 80, kTcpSyn)));
  ends = FromGuest(kPublic);
  ends.to_mac[5] ^= 1;
  CHECK_FALSE(link.Leaves(TcpFrame(ends, kGuestPort, 80, kTcpSyn)));
  ends = FromGuest(kPublic);
  ends.from = kPrivate;
  CHECK_FALSE(link.Leaves(TcpFrame(ends, kGuestPort, 80, kTcpSyn)));
  ends = FromGuest(kPublicV6);
  ends.from = kGatewayLinkLocal;
  CHECK_FALSE(link.Leaves(TcpFrame(ends, kGuestPort, 80, kTcpSyn)));
  CHECK(link.Answer(test::ArpRequest(kGatewayV4, kPrivate)).packet.empty());
  CHECK(link.Refused(Refusal::kSpoofed) == 5);
}

TEST_CASE("The host's loopback is never reached") {
  Link link({.mode = PolicyMode::kUnrestricted});
  CHECK(link.Connects(kPrivate, 80));
  for (const char* address :
       {"127.0.0.1", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1"}) {
    CAPTURE(address);
    CHECK_FALSE(link.Connects(*ParseIp(address), 80));
  }
  // The link's own addresses are not the host's.
  CHECK_FALSE(link.Connects(kGatewayV4, 80));
  CHECK_FALSE(link.Connects(kDnsV4, 53));
  CHECK_FALSE(link.Connects(kGatewayV6, 80));
}

TEST_CASE("What the policy allows leaves, and its answers enter") {
  Link link(Allow({{.to = "1.2.3.4", .ports = {{80, 80}}},
                   {.to = "1.2.3.4", .protocol = RuleProtocol::kUdp}}));
  CHECK(link.Connects(kPublic, 80));
  CHECK_FALSE(link.Connects(kPublic, 81));
  CHECK_FALSE(link.Leaves(IcmpFrame(FromGuest(kPublic), 8, 0, {0, 0, 0, 0})));
  const FrameBytes in = TcpFrame(ToGuest(kPublic), 80, kGuestPort, kTcpAck);
  CHECK(link.Enters(in));
  CHECK_FALSE(link.Enters(TcpFrame(ToGuest(kPublic), 81, kGuestPort, kTcpAck)));
  CHECK_FALSE(
      link.Enters(TcpFrame(ToGuest(kPrivate), 80, kGuestPort, kTcpAck)));
  // A connection to the guest.
  CHECK_FALSE(link.Enters(TcpFrame(ToGuest(kPublic), 80, kGuestPort, kTcpSyn)));
  // UDP enters when the guest has sent there, from that port.
  const FrameBytes datagram = UdpFrame(ToGuest(kPublic), 9, kGuestPort, "x");
  CHECK_FALSE(link.Enters(datagram));
  CHECK(link.Leaves(UdpFrame(FromGuest(kPublic), kGuestPort, 9, "x")));
  CHECK(link.Enters(datagram));
  CHECK_FALSE(link.Enters(UdpFrame(ToGuest(kPublic), 9, kGuestPort + 1, "x")));
  link.now += Flows::kUdpIdle;
  CHECK_FALSE(link.Enters(datagram));
}

TEST_CASE("A frame that comes in is for the guest, from somebody else") {
  Link link({.mode = PolicyMode::kUnrestricted});
  const auto enters = [&](const Ends& ends) {
    return link.Enters(TcpFrame(ends, 80, kGuestPort, kTcpAck));
  };
  CHECK(enters(ToGuest(kPublic)));
  Ends ends = ToGuest(kPublic);
  ends.to_mac[5] ^= 1;
  CHECK_FALSE(enters(ends));
  ends = ToGuest(kPublic);
  ends.to = kPrivate;
  CHECK_FALSE(enters(ends));
  CHECK_FALSE(enters(ToGuest(kGuestV4)));
  CHECK_FALSE(enters(ToGuest(kDnsV4)));
  CHECK_FALSE(enters(ToGuest(IpAddress::V4(127, 0, 0, 1))));
  CHECK_FALSE(link.Enters(test::ArpRequest(kGuestV4)));
}

TEST_CASE("Errors enter when they are about what the guest sent") {
  Link link(Allow({{.to = "1.2.3.4"}}));
  const auto error = [&](const FrameBytes& about) {
    FrameBytes body = {0, 0, 0, 0};
    AppendBytes(&body, std::span(about).subspan(kEthernetHeaderBytes));
    return IcmpFrame(ToGuest(kPrivate), 3, 1, body);
  };
  CHECK(link.Enters(
      error(TcpFrame(FromGuest(kPublic), kGuestPort, 80, kTcpSyn))));
  CHECK_FALSE(link.Enters(
      error(TcpFrame(FromGuest(kPrivate), kGuestPort, 80, kTcpSyn))));
  CHECK_FALSE(
      link.Enters(error(TcpFrame(ToGuest(kPublic), kGuestPort, 80, kTcpSyn))));
  CHECK_FALSE(
      link.Enters(IcmpFrame(ToGuest(kPublic), 3, 1, {0, 0, 0, 0, 0x45})));
  CHECK_FALSE(link.Enters(IcmpFrame(ToGuest(kPublic), 5, 1, {0, 0, 0, 0})));
}

TEST_CASE("A policy change holds from the next frame on") {
  Link link({.mode = PolicyMode::kUnrestricted});
  const FrameBytes out =
      TcpFrame(FromGuest(kPublic), kGuestPort, 80, kTcpAck, "data");
  const FrameBytes in = TcpFrame(ToGuest(kPublic), 80, kGuestPort, kTcpAck);
  CHECK(link.Leaves(out));
  link.Set({});
  CHECK_FALSE(link.Leaves(out));
  CHECK_FALSE(link.Enters(in));
  link.Set(Allow({{.to = "1.2.3.4"}}));
  CHECK(link.Leaves(out));
  CHECK(link.Enters(in));
}

TEST_CASE("An answer opens its addresses, for the rule's ports") {
  Link link(Allow({{.to = "example.org", .ports = {{443, 443}}}}));
  CHECK_FALSE(link.Connects(kPublic, 443));
  CHECK_FALSE(link.Asks("evil.org"));
  CHECK(link.DnsCodeToGuest() == 3);
  REQUIRE(link.Asks("Example.org"));
  CHECK_FALSE(link.Connects(kPublic, 443));  // Not before the answer.
  link.Reply({test::AliasRecord("example.org", "cdn.net"),
              test::AddressRecord("cdn.net", kPublic),
              test::AddressRecord("other.net", IpAddress::V4(8, 8, 8, 8))});
  CHECK(link.DnsCodeToGuest() == 0);
  CHECK(link.Connects(kPublic, 443));
  CHECK_FALSE(link.Connects(kPublic, 80));
  CHECK_FALSE(link.Connects(IpAddress::V4(8, 8, 8, 8), 443));
  // The alias's own name is outside the rules.
  CHECK_FALSE(link.Asks("cdn.net"));
}

TEST_CASE("An answer opens no special address, whatever it says") {
  Link link(Allow({{.to = "*.example.org"}, {.to = "192.168.0.0/16"}}));
  REQUIRE(link.Asks("x.example.org"));
  std::vector<test::DnsRecord> records;
  const std::vector<std::string> targets = {"127.0.0.1",       "10.1.2.3",
                                            "169.254.169.254", "172.16.0.1",
                                            "0.0.0.0",         "100.64.0.1"};
  records.reserve(targets.size() + 1);
  for (const std::string& target : targets) {
    records.push_back(test::AddressRecord("x.example.org", *ParseIp(target)));
  }
  records.push_back(test::AddressRecord("x.example.org", kPublic));
  link.Reply(records);
  for (const std::string& target : targets) {
    CAPTURE(target);
    CHECK_FALSE(link.Connects(*ParseIp(target), 80));
  }
  CHECK(link.Connects(kPublic, 80));
  // What a range names is open in any case.
  CHECK(link.Connects(IpAddress::V4(192, 168, 1, 1), 80));
}

TEST_CASE("An opened address closes in time, but for what uses it") {
  Link link(Allow({{.to = "example.org"}}));
  REQUIRE(link.Asks("example.org"));
  link.Reply({test::AddressRecord("example.org", kPublic, 60)});
  CHECK(link.Connects(kPublic, 80));
  link.now += 59s;
  CHECK(link.Connects(kPublic, 80));
  link.now += 1s;
  // The connection that is there goes on; another does not start.
  const FrameBytes data =
      TcpFrame(FromGuest(kPublic), kGuestPort, 80, kTcpAck, "data");
  CHECK(link.Leaves(data));
  CHECK(link.Enters(TcpFrame(ToGuest(kPublic), 80, kGuestPort, kTcpAck)));
  CHECK_FALSE(link.Connects(kPublic, 80));
  CHECK_FALSE(link.Leaves(
      TcpFrame(FromGuest(kPublic), kGuestPort + 1, 80, kTcpAck, "data")));
  // Until the policy lets the name go.
  link.Set(Allow({{.to = "other.org"}}));
  CHECK_FALSE(link.Leaves(data));
}

TEST_CASE("Times to live are held within bounds") {
  Link link(Allow({{.to = "example.org"}}));
  REQUIRE(link.Asks("example.org"));
  link.Reply({test::AddressRecord("example.org", kPublic, 0)});
  link.now += Flows::kLeastOpen - 1s;
  CHECK(link.Connects(kPublic, 80));
  link.now += 1s;
  CHECK_FALSE(link.Connects(kPublic, 80));
  REQUIRE(link.Asks("example.org"));
  link.Reply({test::AddressRecord("example.org", kPublic, 0xffffffff)});
  link.now += Flows::kMostOpen;
  CHECK_FALSE(link.Connects(kPublic, 80));
}

TEST_CASE("The number of opened addresses is bounded, the oldest go") {
  Link link(Allow({{.to = "example.org"}}));
  const auto address = [](size_t i) {
    return IpAddress::V4(1, 0, static_cast<uint8_t>(i >> 8),
                         static_cast<uint8_t>(i));
  };
  for (size_t i = 0; i <= Flows::kMaxAddresses; ++i) {
    REQUIRE(link.Asks("example.org"));
    link.Reply({test::AddressRecord("example.org", address(i), 3600)});
  }
  CHECK_FALSE(link.Connects(address(0), 80));
  CHECK(link.Connects(address(1), 80));
  CHECK(link.Connects(address(Flows::kMaxAddresses), 80));
}

TEST_CASE("A resolver that fails, and a guest that asks too much, are told") {
  Link link({.mode = PolicyMode::kPublicInternet});
  REQUIRE(link.Asks("example.org"));
  link.gate.OnAnswer(link.asked[0].first, {}, {}, link.now);
  CHECK(link.DnsCodeToGuest() == 2);
  link.gate.OnAnswer(link.asked[0].first, {}, {}, link.now);  // Once only.
  CHECK(link.gate.stats().names_failed == 1);
  for (size_t i = 0; i < Gate::kMaxQuestions; ++i) {
    REQUIRE(link.Asks("example.org"));
  }
  CHECK_FALSE(link.Asks("example.org"));
  CHECK(link.DnsCodeToGuest() == 2);
}

TEST_CASE("A bridged link leaves the gateway to the network") {
  Link link({.mode = PolicyMode::kUnrestricted},
            {.outside = Outside::kBridged});
  CHECK(link.Leaves(test::ArpRequest(kGatewayV4)));
  const ArpBody reply{.operation = 2,
                      .sender_mac = {2, 0, 0, 0, 0, 9},
                      .sender = kGatewayV4,
                      .target_mac = kDefaultGuestMac,
                      .target = kGuestV4};
  CHECK(link.Enters(BuildArpFrame(kDefaultGuestMac, reply)));
  ArpBody spoofed = reply;
  spoofed.sender = kDnsV4;
  CHECK_FALSE(link.Enters(BuildArpFrame(kDefaultGuestMac, spoofed)));
  Ends ends = FromGuest(kPublic);
  ends.to_mac = {2, 0, 0, 0, 0, 9};
  CHECK(link.Leaves(TcpFrame(ends, kGuestPort, 80, kTcpSyn)));
  // The resolver is ours all the same.
  CHECK(link.Answer(test::ArpRequest(kDnsV4)).kind == EtherKind::kArp);
  CHECK(link.Asks("example.org"));
  link.Set({});
  CHECK_FALSE(link.Leaves(test::ArpRequest(kGatewayV4)));
  CHECK_FALSE(link.Enters(BuildArpFrame(kDefaultGuestMac, reply)));
}

TEST_CASE("Frames longer than the link's MTU are refused both ways") {
  Link link({.mode = PolicyMode::kUnrestricted}, {.mtu = 1500});
  const std::string most(1500 - 28, 'x');
  CHECK(link.Leaves(UdpFrame(FromGuest(kPublic), kGuestPort, 9, most)));
  CHECK(link.Enters(UdpFrame(ToGuest(kPublic), 9, kGuestPort, most)));
  CHECK_FALSE(
      link.Leaves(UdpFrame(FromGuest(kPublic), kGuestPort, 9, most + "x")));
  CHECK_FALSE(
      link.Enters(UdpFrame(ToGuest(kPublic), 9, kGuestPort, most + "x")));
}

TEST_CASE("A connection's first frame leaves once until the guest goes on") {
  Link link({.mode = PolicyMode::kUnrestricted});
  const auto syn = [](uint16_t port) {
    return TcpFrame(FromGuest(kPublic), port, 80, kTcpSyn);
  };
  CHECK(link.Leaves(syn(kGuestPort)));
  CHECK_FALSE(link.Leaves(syn(kGuestPort)));
  CHECK(link.Leaves(syn(kGuestPort + 1)));  // Another connection.
  // A yes does not open it: the guest may not have seen that yet. What it sends
  // next, a no, or the time after which the helper has given up, does.
  CHECK(link.Enters(
      TcpFrame(ToGuest(kPublic), 80, kGuestPort, kTcpSyn | kTcpAck)));
  CHECK_FALSE(link.Leaves(syn(kGuestPort)));
  CHECK(link.Leaves(TcpFrame(FromGuest(kPublic), kGuestPort, 80, kTcpAck)));
  CHECK(link.Leaves(syn(kGuestPort)));
  CHECK_FALSE(link.Leaves(syn(kGuestPort)));
  CHECK(link.Enters(
      TcpFrame(ToGuest(kPublic), 80, kGuestPort, kTcpRst | kTcpAck)));
  CHECK(link.Leaves(syn(kGuestPort)));
  CHECK_FALSE(link.Leaves(syn(kGuestPort)));
  link.now += Flows::kConnectTime;
  CHECK(link.Leaves(syn(kGuestPort)));
  link.gate.OnOutsideChanged();
  CHECK(link.Leaves(syn(kGuestPort)));

  // Who asks for very many at once waits; those that were asked for go on.
  for (size_t i = 0; i < Flows::kMaxConnecting; ++i) {
    link.Leaves(syn(static_cast<uint16_t>(10'000 + i)));
  }
  CHECK_FALSE(link.Leaves(syn(9'000)));
  CHECK(link.Refused(Refusal::kQueueFull) >= 1);
  link.now += Flows::kConnectTime;
  CHECK(link.Leaves(syn(9'000)));
}

}  // namespace
}  // namespace catnap::net
