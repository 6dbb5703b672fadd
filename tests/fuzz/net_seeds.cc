#include "fuzz/seeds.h"
#include "support/guest_frames.h"

// Seeds of the fuzz targets of lib/net.

namespace catnap::fuzz {
namespace {

constexpr uint8_t kSetPolicy = 0;
constexpr uint8_t kAnswer = 2;
constexpr uint8_t kFromOutside = 3;
constexpr uint8_t kFromGuest = 5;
constexpr uint8_t kAllow = 1;
constexpr uint8_t kUnrestricted = 3;

const net::IpAddress kPeerV4 = net::IpAddress::V4(1, 2, 3, 4);
const net::IpAddress kPeerV6 = {.v6 = true, .bytes = {0x26, 0x06, 1}};

void PutStep(Bytes* to, uint8_t operation, uint8_t flags,
             const Bytes& bytes = {}) {
  Put(to, operation);
  Put(to, flags);
  Put(to, static_cast<uint16_t>(bytes.size()));
  to->insert(to->end(), bytes.begin(), bytes.end());
}

Bytes Ping(const net::IpAddress& to) {
  return test::IcmpFrame(test::FromGuest(to), to.v6 ? 128 : 8, 0, {1, 2, 3, 4});
}

Bytes Solicitation() {
  Bytes body = {0, 0, 0, 0};
  net::AppendBytes(&body, net::kGatewayV6.span());
  return test::IcmpFrame(test::FromGuest(net::kGatewayV6), 135, 0, body, 255);
}

Bytes Question(const std::string& name) {
  const Bytes question = test::DnsQuestion(7, name);
  return test::UdpFrame(test::FromGuest(net::kDnsV4), 5000, 53,
                        std::string(question.begin(), question.end()));
}

// The record that follows the question.
Bytes Record(const net::IpAddress& address) {
  Bytes record = {0xc0, 12};
  net::Append16(&record, 1);
  net::Append16(&record, 1);
  net::Append32(&record, 60);
  net::Append16(&record, 4);
  net::AppendBytes(&record, address.span());
  return record;
}

Bytes DhcpDiscover() {
  Bytes message(236);
  message[0] = 1;
  message[1] = 1;
  message[2] = 6;
  std::copy(net::kDefaultGuestMac.begin(), net::kDefaultGuestMac.end(),
            message.begin() + 28);
  net::Append32(&message, 0x63825363);
  net::AppendBytes(&message, Bytes{53, 1, 1, 50, 4, 10, 233, 117, 2, 255});
  return message;
}

}  // namespace

std::vector<Seed> NetGateSeeds() {
  Bytes link = {0};
  PutStep(&link, kFromGuest, 0, test::ArpRequest(net::kGatewayV4));
  PutStep(&link, kFromGuest, 0, Solicitation());
  PutStep(&link, kFromGuest, 0, Ping(net::kGatewayV4));
  PutStep(&link, kFromGuest, 0, Ping(net::kGatewayV6));
  const Bytes discover = DhcpDiscover();
  net::Ends everybody = test::FromGuest(net::IpAddress::V4(255, 255, 255, 255));
  everybody.from = {};
  PutStep(&link, kFromGuest, 0,
          test::UdpFrame(everybody, 68, 67,
                         std::string(discover.begin(), discover.end())));
  Bytes names = {0};
  PutStep(&names, kSetPolicy, kAllow);
  PutStep(&names, kFromGuest, 0, Question("example.org"));
  PutStep(&names, kFromGuest, 0, Question("example.com"));
  PutStep(&names, kAnswer, 0, Record(net::IpAddress::V4(9, 9, 9, 9)));
  PutStep(&names, kFromGuest, 0,
          test::TcpFrame(test::FromGuest(net::IpAddress::V4(9, 9, 9, 9)), 4000,
                         443, net::kTcpSyn));
  Bytes both = {0};
  PutStep(&both, kSetPolicy, kUnrestricted);
  for (const net::IpAddress& peer : {kPeerV4, kPeerV6}) {
    PutStep(&both, kFromGuest, 0,
            test::TcpFrame(test::FromGuest(peer), 4000, 80, net::kTcpSyn));
    PutStep(&both, kFromOutside, 0,
            test::TcpFrame(test::ToGuest(peer), 80, 4000,
                           net::kTcpSyn | net::kTcpAck));
    PutStep(&both, kFromGuest, 0,
            test::UdpFrame(test::FromGuest(peer), 4000, 53, "question"));
    PutStep(&both, kFromOutside, 0,
            test::UdpFrame(test::ToGuest(peer), 53, 4000, "answer"));
    PutStep(&both, kFromGuest, 0, Ping(peer));
  }
  Bytes quoted = {0, 0, 0, 0};
  const Bytes sent =
      test::TcpFrame(test::FromGuest(kPeerV4), 4000, 80, net::kTcpSyn);
  net::AppendBytes(&quoted, std::span(sent).subspan(net::kEthernetHeaderBytes));
  PutStep(&both, kFromOutside, 0,
          test::IcmpFrame(test::ToGuest(kPeerV4), 3, 1, quoted));
  Bytes bridged = both;
  bridged[0] = 1;
  PutStep(&bridged, kFromGuest, 0, test::ArpRequest(net::kGatewayV4));
  PutStep(&bridged, kFromGuest, 0, Solicitation());
  return {
      {"link", link}, {"names", names}, {"both", both}, {"bridged", bridged}};
}

std::vector<Seed> NetDnsSeeds() {
  const Bytes question = test::DnsQuestion(7, "a.org");
  const auto with = [&](const std::vector<test::DnsRecord>& records) {
    Bytes seed;
    Put(&seed, static_cast<uint16_t>(question.size()));
    net::AppendBytes(&seed, question);
    net::AppendBytes(&seed, test::DnsReply(question, records));
    return seed;
  };
  Bytes edns = question;
  net::Store16(edns, 10, 1);
  net::AppendBytes(&edns, Bytes{0, 0, 41, 4, 0xd0, 0, 0, 0, 0, 0, 0});
  Bytes edns_seed;
  Put(&edns_seed, static_cast<uint16_t>(edns.size()));
  net::AppendBytes(&edns_seed, edns);
  return {{"address", with({test::AddressRecord("a.org", kPeerV4),
                            test::AddressRecord("a.org", kPeerV6)})},
          {"aliases", with({test::AliasRecord("a.org", "b.org"),
                            test::AliasRecord("b.org", "c.org"),
                            test::AddressRecord("c.org", kPeerV4)})},
          {"ring", with({test::AliasRecord("a.org", "b.org"),
                         test::AliasRecord("b.org", "a.org")})},
          {"edns", edns_seed}};
}

std::vector<Seed> NetDhcpSeeds() {
  Bytes whole = {0};
  net::AppendBytes(&whole, DhcpDiscover());
  Bytes fixed = {1};
  fixed.resize(241);
  net::AppendBytes(&fixed, Bytes{53, 1, 3, 54, 4, 10, 233, 117, 1, 0, 255});
  return {{"discover", whole}, {"request", fixed}};
}

std::vector<Seed> NetStreamSeeds() {
  Bytes frames = {6};
  for (const size_t size : {0, 1, 60, 300}) {
    net::Append32(&frames, static_cast<uint32_t>(size));
    frames.insert(frames.end(), size, uint8_t{0xab});
  }
  Bytes broken = {200, 0xff, 0xff, 0xff, 0xff, 1};
  return {{"frames", frames}, {"broken", broken}};
}

}  // namespace catnap::fuzz
