#include <algorithm>
#include <array>
#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include "fuzz/fuzz_input.h"
#include "fuzz/fuzz_target.h"
#include "net/gate.h"
#include "net/wire.h"

// Frames from both sides of a gate, answers of name servers, changes of the
// policy and the passing of time, in any order. The input is a byte that
// chooses how the outside is made, and steps: an operation, flags, a length,
// bytes.
//
// What leaves is the guest's own, whole, and for somebody the policy opens;
// what enters is for the guest, and nothing else speaks for it. One frame makes
// at most one, and everything that is kept is bounded.

namespace catnap::net {
namespace {

// Flags of a step: what is put right in its frame, so that checks further on
// are reached.
constexpr uint8_t kFixMacs = 1;
constexpr uint8_t kFixAddresses = 2;
constexpr uint8_t kFixChecksum = 4;

PolicySpec Spec(uint8_t choice) {
  switch (choice % 4) {
    case 0:
      return {};
    case 1:
      return {.mode = PolicyMode::kAllow,
              .rules = {{.to = "1.0.0.0/8", .ports = {{80, 90}}},
                        {.to = "10.0.0.0/8", .protocol = RuleProtocol::kAny},
                        {.to = "2606::/16", .protocol = RuleProtocol::kAny},
                        {.to = "*.org", .protocol = RuleProtocol::kAny}}};
    case 2:
      return {.mode = PolicyMode::kPublicInternet};
    default:
      return {.mode = PolicyMode::kUnrestricted};
  }
}

class Run final : public GateOutput {
 public:
  explicit Run(bool bridged)
      : bridged_(bridged),
        gate_({.outside = bridged ? Outside::kBridged : Outside::kRouted},
              this) {}

  void Step(fuzz::FuzzInput* input) {
    const auto operation = input->Between<uint8_t>(0, 7);
    const auto flags = input->Integer<uint8_t>();
    const auto bytes = input->Bytes(input->Integer<uint16_t>() % 1600);
    // On the heap and exact, so that the sanitizer sees the ends.
    std::vector<uint8_t> frame(bytes.begin(), bytes.end());
    frames_ = 0;
    switch (operation) {
      case 0:
        SetPolicy(flags);
        break;
      case 1:
        now_ += std::chrono::seconds(flags);
        break;
      case 2:
        Answer(flags, frame);
        break;
      case 3:
      case 4:
        inward_ = true;
        Fix(flags, &frame, /*out=*/false);
        gate_.FromOutside(frame, now_);
        FUZZ_CHECK(frames_ <= 1);
        break;
      default:
        inward_ = false;
        Fix(flags, &frame, /*out=*/true);
        gate_.FromGuest(frame, now_);
        FUZZ_CHECK(frames_ <= 1);
        break;
    }
  }

  void ToGuest(std::span<const uint8_t> bytes) override {
    ++frames_;
    Frame frame;
    FUZZ_CHECK(ParseFrame(bytes, &frame) == Refusal::kNone);
    FUZZ_CHECK(bytes.size() <= kEthernetHeaderBytes + 1500);
    FUZZ_CHECK(frame.to_mac == kDefaultGuestMac || (frame.to_mac[0] & 1) != 0);
    if (!inward_) {
      FUZZ_CHECK(frame.from_mac == kGatewayMac);
      return;
    }
    if (!bridged_) {
      FUZZ_CHECK(frame.kind == EtherKind::kIp);
      FUZZ_CHECK(frame.to == kGuestV4 || frame.to == kGuestV6);
    }
    FUZZ_CHECK(gate_.policy().mode() != PolicyMode::kDenyAll);
    if (frame.kind != EtherKind::kIp) return;
    FUZZ_CHECK(frame.from != kGuestV4 && frame.from != kGuestV6);
    FUZZ_CHECK(frame.protocol != IpProtocol::kTcp ||
               (frame.tcp_flags & (kTcpSyn | kTcpAck)) != kTcpSyn);
  }

  Refusal ToOutside(std::span<const uint8_t> bytes) override {
    ++frames_;
    FUZZ_CHECK(!inward_);
    Frame frame;
    FUZZ_CHECK(ParseFrame(bytes, &frame) == Refusal::kNone);
    FUZZ_CHECK(frame.from_mac == kDefaultGuestMac);
    FUZZ_CHECK(gate_.policy().mode() != PolicyMode::kDenyAll);
    if (frame.kind == EtherKind::kArp) {
      FUZZ_CHECK(bridged_);
      return Refusal::kNone;
    }
    FUZZ_CHECK(frame.from == kGuestV4 || frame.from == kGuestV6);
    const bool neighbor = bridged_ && frame.protocol == IpProtocol::kIcmpV6 &&
                          (frame.icmp_type == 135 || frame.icmp_type == 136);
    if (neighbor) return Refusal::kNone;
    FUZZ_CHECK(!IsNeverReachable(frame.to));
    FUZZ_CHECK(frame.packet.size() + kEthernetHeaderBytes == bytes.size());
    const Transport transport =
        frame.protocol == IpProtocol::kTcp   ? Transport::kTcp
        : frame.protocol == IpProtocol::kUdp ? Transport::kUdp
                                             : Transport::kPing;
    const Peer peer{
        .address = frame.to, .transport = transport, .port = frame.to_port};
    FUZZ_CHECK(gate_.policy().AllowsAddress(peer) ||
               (IsPublic(frame.to) && WasOpened(frame.to)));
    return Refusal::kNone;
  }

  void Ask(uint64_t token, const DnsQuery& query) override {
    asked_.emplace_back(token, query);
    FUZZ_CHECK(asked_.size() <= Gate::kMaxQuestions);
    FUZZ_CHECK(gate_.policy().AllowsName(query.name));
  }

 private:
  bool WasOpened(const IpAddress& address) const {
    return std::find(opened_.begin(), opened_.end(), address) != opened_.end();
  }

  void SetPolicy(uint8_t choice) {
    auto policy = Policy::Compile(Spec(choice));
    FUZZ_CHECK(policy.ok());
    gate_.SetPolicy(*std::move(policy));
  }

  void Answer(uint8_t which, const std::vector<uint8_t>& message) {
    if (asked_.empty()) return;
    const size_t index = which % asked_.size();
    const auto [token, query] = asked_[index];
    asked_.erase(asked_.begin() + static_cast<std::ptrdiff_t>(index));
    inward_ = false;
    // A message of the right question, whose records are the input.
    std::vector<uint8_t> reply = BuildDnsQuery(query, 7);
    reply.resize(12 + query.question.size());
    Store16(reply, 2, 0x8180);
    Store16(reply, 6, 1);
    Store16(reply, 10, 0);
    AppendBytes(&reply, message);
    const auto answer = ParseDnsAnswer(reply, query, 7);
    if (!answer.has_value()) {
      gate_.OnAnswer(token, {}, {}, now_);
      return;
    }
    for (const auto& found : answer->addresses) {
      opened_.push_back(found.address);
    }
    gate_.OnAnswer(token, reply, *answer, now_);
    FUZZ_CHECK(frames_ == 1);
  }

  static void Fix(uint8_t flags, std::vector<uint8_t>* frame, bool out) {
    if (frame->size() < kEthernetHeaderBytes) return;
    const auto bytes = std::span(*frame);
    if ((flags & kFixMacs) != 0) {
      const MacAddress& to = out ? kGatewayMac : kDefaultGuestMac;
      const MacAddress& from = out ? kDefaultGuestMac : kGatewayMac;
      std::copy(to.begin(), to.end(), bytes.begin());
      std::copy(from.begin(), from.end(), bytes.begin() + 6);
    }
    const auto packet = bytes.subspan(kEthernetHeaderBytes);
    const uint16_t type = Load16(bytes, 12);
    if ((flags & kFixAddresses) != 0) {
      if (type == 0x0800 && packet.size() >= 20) {
        std::copy_n(kGuestV4.bytes.begin(), 4,
                    packet.begin() + (out ? 12 : 16));
      } else if (type == 0x86dd && packet.size() >= 40) {
        std::copy_n(kGuestV6.bytes.begin(), 16,
                    packet.begin() + (out ? 8 : 24));
      }
    }
    if ((flags & kFixChecksum) != 0 && type == 0x0800 && packet.size() >= 20) {
      const size_t header = size_t{4} * (packet[0] & 0xf);
      if (header < 20 || header > packet.size()) return;
      Store16(packet, 10, 0);
      Store16(packet, 10, Checksum(AddToSum(0, packet.first(header))));
    }
  }

  const bool bridged_;
  bool inward_ = false;
  int frames_ = 0;
  Gate::TimePoint now_ = Gate::TimePoint() + std::chrono::hours(1);
  std::vector<std::pair<uint64_t, DnsQuery>> asked_;
  std::vector<IpAddress> opened_;
  Gate gate_;
};

}  // namespace
}  // namespace catnap::net

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  catnap::fuzz::FuzzInput input(data, size);
  catnap::net::Run run((input.Integer<uint8_t>() & 1) != 0);
  while (!input.empty()) run.Step(&input);
  return 0;
}
