#include "net/gate.h"

#include <utility>

#include "net/dhcp.h"
#include "net/frame_builder.h"
#include "net/gateway.h"
#include "net/wire.h"

namespace catnap::net {
namespace {

// Refusals that are logged, in the long run and at once; the others are only
// counted.
constexpr double kLinesPerSecond = 1;
constexpr double kBurstLines = 20;
// Frames that tell the guest of refusals: a flood of one is not to make
// another.
constexpr double kAnswersPerSecond = 200;
constexpr double kBurstAnswers = 200;

constexpr uint8_t kEchoRequestV4 = 8;
constexpr uint8_t kEchoReplyV4 = 0;
constexpr uint8_t kEchoRequestV6 = 128;
constexpr uint8_t kEchoReplyV6 = 129;
constexpr uint8_t kNeighborSolicitation = 135;
constexpr uint8_t kNeighborAdvertisement = 136;
constexpr size_t kNeighborBytes = 24;
constexpr uint16_t kDnsTruncated = 0x0200;

const IpAddress& GuestAddress(bool v6) { return v6 ? kGuestV6 : kGuestV4; }

bool IsGroup(const MacAddress& mac) { return (mac[0] & 1) != 0; }

// The transport of a frame that policies know; nullopt: none.
std::optional<Transport> TransportOf(const Frame& frame, uint8_t ping_v4,
                                     uint8_t ping_v6) {
  switch (frame.protocol) {
    case IpProtocol::kTcp:
      return Transport::kTcp;
    case IpProtocol::kUdp:
      return Transport::kUdp;
    case IpProtocol::kIcmp:
      if (frame.icmp_type == ping_v4) return Transport::kPing;
      break;
    case IpProtocol::kIcmpV6:
      if (frame.icmp_type == ping_v6) return Transport::kPing;
      break;
  }
  return std::nullopt;
}

const char* TransportText(const Frame& frame) {
  switch (frame.protocol) {
    case IpProtocol::kTcp:
      return "tcp";
    case IpProtocol::kUdp:
      return "udp";
    default:
      return "icmp";
  }
}

bool IsErrorForGuest(const Frame& frame) {
  // Unreachable, time exceeded, parameter problem; too big (IPv6).
  if (frame.protocol == IpProtocol::kIcmp) {
    return frame.icmp_type == 3 || frame.icmp_type == 11 ||
           frame.icmp_type == 12;
  }
  return frame.icmp_type >= 1 && frame.icmp_type <= 4;
}

}  // namespace

Gate::Gate(const GateOptions& options, GateOutput* output)
    : options_(options),
      output_(output),
      policy_(Policy::DenyAll()),
      log_bucket_(kLinesPerSecond, kBurstLines),
      refusal_bucket_(kAnswersPerSecond, kBurstAnswers) {}

void Gate::SetPolicy(std::shared_ptr<const Policy> policy) {
  policy_ = std::move(policy);
}

void Gate::CountLost(Refusal refusal, bool out) {
  ++(out ? stats_.refused_out
         : stats_.refused_in)[static_cast<size_t>(refusal)];
}

bool Gate::MayLog(TimePoint now) {
  if (!log_bucket_.Has(1, now)) return false;
  log_bucket_.Take(1);
  return true;
}

void Gate::Refuse(const Frame& frame, Refusal why, bool out, TimePoint now) {
  CountLost(why, out);
  // Groups are what every guest calls when it starts; full queues are counted.
  if (why == Refusal::kQueueFull || frame.to.IsMulticast() || !MayLog(now)) {
    return;
  }
  const char* const direction = out ? "from" : "to";
  if (frame.kind != EtherKind::kIp || frame.segment.empty()) {
    options_.log.Info("network: refused a frame {} the guest: {}", direction,
                      RefusalText(why));
    return;
  }
  options_.log.Info("network: refused a frame {} the guest: {} {} port {}: {}",
                    direction, TransportText(frame),
                    (out ? frame.to : frame.from).ToString(),
                    out ? frame.to_port : frame.from_port, RefusalText(why));
}

void Gate::FromGuest(std::span<const uint8_t> bytes, TimePoint now) {
  now_ = now;
  Frame frame;
  Refusal why = bytes.size() > kEthernetHeaderBytes + options_.mtu
                    ? Refusal::kMalformed
                    : ParseFrame(bytes, &frame);
  if (why == Refusal::kNone) why = CheckFromGuest(frame, bytes, now);
  if (why == Refusal::kNone) return;
  Refuse(frame, why, /*out=*/true, now);
  // Only to whom has the right to send, and about what cannot work later.
  if ((why == Refusal::kPolicy || why == Refusal::kNoBackend) &&
      refusal_bucket_.Has(1, now)) {
    if (const auto answer = AnswerRefused(frame); answer.has_value()) {
      refusal_bucket_.Take(1);
      Answer(*answer);
    }
  }
}

Refusal Gate::CheckFromGuest(const Frame& frame, std::span<const uint8_t> bytes,
                             TimePoint now) {
  if (frame.from_mac != options_.guest_mac) return Refusal::kSpoofed;
  if (frame.kind == EtherKind::kArp) return HandleArp(frame, bytes);
  if (frame.protocol == IpProtocol::kUdp && !frame.to.v6 &&
      frame.from_port == kDhcpClientPort && frame.to_port == kDhcpServerPort &&
      (frame.from.IsUnspecified() || frame.from == kGuestV4)) {
    const auto answer =
        AnswerDhcpFrame(frame, options_.guest_mac, options_.mtu);
    if (!answer.has_value()) return Refusal::kMalformed;
    Answer(*answer);
    return Refusal::kNone;
  }
  if (IsLinkIcmp(frame)) return HandleLinkIcmp(frame, bytes);
  const bool on_link = frame.from.IsLinkLocalV6() && IsGateway(frame.to);
  if (frame.from != GuestAddress(frame.to.v6) && !on_link) {
    return Refusal::kSpoofed;
  }
  if (IsResolver(frame.to) ||
      (IsGateway(frame.to) && (!is_bridged() || on_link))) {
    return HandleForUs(frame);
  }
  if (frame.to.IsMulticast() || IsGroup(frame.to_mac)) return Refusal::kPolicy;
  // Other machines on the link: there are none.
  if (!is_bridged() && frame.to_mac != kGatewayMac) return Refusal::kSpoofed;
  if (!frame.plain) return Refusal::kUnsupported;
  const auto transport = TransportOf(frame, kEchoRequestV4, kEchoRequestV6);
  if (!transport.has_value()) return Refusal::kUnsupported;
  const bool ping = *transport == Transport::kPing;
  const Peer peer{.address = frame.to,
                  .transport = *transport,
                  .port = ping ? uint16_t{0} : frame.to_port};
  const bool starts =
      frame.protocol == IpProtocol::kTcp && (frame.tcp_flags & kTcpSyn) != 0;
  if (!flows_.AllowsOut(*policy_, peer, frame.from_port, starts, now)) {
    return Refusal::kPolicy;
  }
  // The helper of Debian 12 (passt 0.0~git20230309) runs in a circle for ever
  // when it finds a connection's first frame twice in what it reads at once,
  // which a guest can see to, and sees to unwittingly while the helper starts.
  // It needs no second one: its own kernel repeats what gets lost. And one that
  // comes when it has answered, from a guest that is slower than its own timer,
  // makes it reset the connection.
  const bool tcp = *transport == Transport::kTcp;
  if (tcp && !starts && !is_bridged()) {
    flows_.OnConnected(peer, frame.from_port);
  } else if (starts && !is_bridged()) {
    switch (flows_.Connect(peer, frame.from_port, now)) {
      case Flows::Start::kNew:
        break;
      case Flows::Start::kRepeated:
        return Refusal::kNone;
      case Flows::Start::kTooMany:
        return Refusal::kQueueFull;
    }
  }
  // Behind the packet there may be padding, or anything else.
  const Refusal lost =
      Leave(bytes.first(kEthernetHeaderBytes + frame.packet.size()));
  if (lost != Refusal::kNone) flows_.OnConnected(peer, frame.from_port);
  return lost;
}

Refusal Gate::Leave(std::span<const uint8_t> bytes) {
  const Refusal lost = output_->ToOutside(bytes);
  if (lost == Refusal::kNone) {
    ++stats_.frames_out;
    stats_.bytes_out += bytes.size();
  }
  return lost;
}

void Gate::Answer(const std::vector<uint8_t>& frame) {
  ++stats_.answered;
  output_->ToGuest(frame);
}

Refusal Gate::HandleArp(const Frame& frame, std::span<const uint8_t> bytes) {
  const ArpBody body = ReadArp(frame.packet);
  // Who checks whether an address is free has none yet.
  if (body.sender_mac != options_.guest_mac ||
      (body.sender != kGuestV4 && !body.sender.IsUnspecified())) {
    return Refusal::kSpoofed;
  }
  if (is_bridged() && !IsResolver(body.target)) {
    if (policy_->mode() == PolicyMode::kDenyAll) return Refusal::kPolicy;
    return Leave(bytes.first(kEthernetHeaderBytes + frame.packet.size()));
  }
  if (const auto answer = AnswerArp(frame, options_.guest_mac);
      answer.has_value()) {
    Answer(*answer);
  }
  return Refusal::kNone;
}

Refusal Gate::HandleLinkIcmp(const Frame& frame,
                             std::span<const uint8_t> bytes) {
  if (frame.from != kGuestV6 && !frame.from.IsLinkLocalV6() &&
      !frame.from.IsUnspecified()) {
    return Refusal::kSpoofed;
  }
  const bool neighbor = frame.icmp_type == kNeighborSolicitation ||
                        frame.icmp_type == kNeighborAdvertisement;
  if (is_bridged() && neighbor && frame.plain &&
      frame.segment.size() >= kNeighborBytes && frame.hop_limit == 255) {
    const IpAddress target = IpAddress::V6(frame.segment.subspan(8, 16));
    const bool solicits = frame.icmp_type == kNeighborSolicitation;
    // The guest speaks for its own address only.
    const bool leaves = solicits ? target == kGatewayV6 : target == kGuestV6;
    if (leaves && frame.from == kGuestV6) {
      if (policy_->mode() == PolicyMode::kDenyAll) return Refusal::kPolicy;
      return Leave(bytes.first(kEthernetHeaderBytes + frame.packet.size()));
    }
  }
  if (const auto answer =
          AnswerNeighbor(frame, options_.guest_mac, options_.mtu);
      answer.has_value()) {
    Answer(*answer);
  }
  return Refusal::kNone;
}

Refusal Gate::HandleForUs(const Frame& frame) {
  if (IsResolver(frame.to) && frame.protocol == IpProtocol::kUdp &&
      frame.to_port == kDnsPort) {
    return HandleDns(frame);
  }
  const auto answer = AnswerPing(frame);
  if (!answer.has_value()) return Refusal::kPolicy;
  Answer(*answer);
  return Refusal::kNone;
}

Refusal Gate::HandleDns(const Frame& frame) {
  auto parse = ParseDnsQuery(frame.payload);
  if (!parse.has_value()) return Refusal::kMalformed;
  ++stats_.names_asked;
  Question question{.query = std::move(parse->query),
                    .guest = frame.from,
                    .resolver = frame.to,
                    .guest_port = frame.from_port};
  DnsCode code = parse->code;
  if (code == DnsCode::kNoError && !policy_->AllowsName(question.query.name)) {
    code = DnsCode::kNoSuchName;
    ++stats_.names_refused;
    if (MayLog(now_)) {
      options_.log.Info("network: refused the name \"{}\"",
                        question.query.name);
    }
  } else if (code == DnsCode::kNoError && questions_.size() >= kMaxQuestions) {
    code = DnsCode::kServerFailure;
    ++stats_.names_failed;
  }
  if (code != DnsCode::kNoError) {
    AnswerQuestion(question, BuildDnsAnswer(question.query, code));
    return Refusal::kNone;
  }
  const uint64_t token = next_token_++;
  const DnsQuery query = question.query;
  questions_.emplace(token, std::move(question));
  output_->Ask(token, query);
  return Refusal::kNone;
}

void Gate::AnswerQuestion(const Question& question,
                          std::span<const uint8_t> message) {
  Answer(BuildUdpFrame({.to_mac = options_.guest_mac,
                        .from_mac = kGatewayMac,
                        .to = question.guest,
                        .from = question.resolver},
                       kDnsPort, question.guest_port, message));
}

void Gate::OnAnswer(uint64_t token, std::span<const uint8_t> message,
                    const DnsAnswer& answer, TimePoint now) {
  now_ = now;
  auto node = questions_.extract(token);
  if (node.empty()) return;
  const Question& question = node.mapped();
  if (message.size() < 4) {
    ++stats_.names_failed;
    AnswerQuestion(question,
                   BuildDnsAnswer(question.query, DnsCode::kServerFailure));
    return;
  }
  // The policy may have changed since the question was asked.
  if (!policy_->AllowsName(question.query.name)) {
    ++stats_.names_refused;
    AnswerQuestion(question,
                   BuildDnsAnswer(question.query, DnsCode::kNoSuchName));
    return;
  }
  // Opened before the guest hears of them.
  if (policy_->mode() == PolicyMode::kAllow && !question.query.name.empty()) {
    for (const DnsAnswer::Address& found : answer.addresses) {
      if (!IsPublic(found.address)) continue;
      flows_.Open(question.query.name, found.address, found.time_to_live, now);
    }
  }
  std::vector<uint8_t> reply(message.begin(), message.end());
  if (reply.size() > question.query.answer_bytes) {
    // No resolver should; the guest asked for less.
    reply = BuildDnsAnswer(question.query, DnsCode::kNoError);
    Store16(reply, 2, static_cast<uint16_t>(Load16(reply, 2) | kDnsTruncated));
  }
  Store16(reply, 0, question.query.id);
  AnswerQuestion(question, reply);
}

void Gate::FromOutside(std::span<const uint8_t> bytes, TimePoint now) {
  now_ = now;
  Frame frame;
  Refusal why = bytes.size() > kEthernetHeaderBytes + options_.mtu
                    ? Refusal::kMalformed
                    : ParseFrame(bytes, &frame);
  if (why == Refusal::kNone) why = CheckFromOutside(frame, now);
  if (why != Refusal::kNone) {
    Refuse(frame, why, /*out=*/false, now);
    return;
  }
  ++stats_.frames_in;
  stats_.bytes_in += bytes.size();
  output_->ToGuest(bytes);
}

Refusal Gate::CheckFromOutside(const Frame& frame, TimePoint now) {
  if (frame.kind == EtherKind::kArp) return CheckArpFromOutside(frame);
  if (frame.to_mac != options_.guest_mac) {
    // The question for the guest's own address is asked of a group.
    const bool solicits = is_bridged() && IsGroup(frame.to_mac) &&
                          frame.protocol == IpProtocol::kIcmpV6 &&
                          frame.icmp_type == kNeighborSolicitation;
    if (!solicits) return Refusal::kSpoofed;
  }
  // Nobody outside speaks for the guest or for what we are.
  if (frame.from == GuestAddress(frame.from.v6) || IsResolver(frame.from) ||
      frame.from.IsMulticast()) {
    return Refusal::kSpoofed;
  }
  if (frame.protocol == IpProtocol::kIcmp ||
      frame.protocol == IpProtocol::kIcmpV6) {
    return CheckIcmpFromOutside(frame, now);
  }
  if (frame.to != GuestAddress(frame.to.v6)) return Refusal::kSpoofed;
  if (frame.protocol == IpProtocol::kTcp &&
      (frame.tcp_flags & (kTcpSyn | kTcpAck)) == kTcpSyn) {
    return Refusal::kUninvited;
  }
  const bool tcp = frame.protocol == IpProtocol::kTcp;
  const Peer peer{.address = frame.from,
                  .transport = tcp ? Transport::kTcp : Transport::kUdp,
                  .port = frame.from_port};
  if (!flows_.AllowsIn(*policy_, peer, frame.to_port, now)) {
    return Refusal::kUninvited;
  }
  // A yes stands until the guest has heard it.
  const bool accepts =
      (frame.tcp_flags & (kTcpSyn | kTcpAck | kTcpRst)) == (kTcpSyn | kTcpAck);
  if (tcp && !accepts) flows_.OnConnected(peer, frame.to_port);
  return Refusal::kNone;
}

Refusal Gate::CheckArpFromOutside(const Frame& frame) const {
  if (!is_bridged() || policy_->mode() == PolicyMode::kDenyAll) {
    return Refusal::kUninvited;
  }
  const ArpBody body = ReadArp(frame.packet);
  if (body.sender == kGuestV4 || IsResolver(body.sender)) {
    return Refusal::kSpoofed;
  }
  const bool addressed =
      frame.to_mac == options_.guest_mac || IsGroup(frame.to_mac);
  return addressed && body.target == kGuestV4 ? Refusal::kNone
                                              : Refusal::kUninvited;
}

Refusal Gate::CheckIcmpFromOutside(const Frame& frame, TimePoint now) {
  if (IsLinkIcmp(frame)) {
    const bool neighbor = frame.icmp_type == kNeighborSolicitation ||
                          frame.icmp_type == kNeighborAdvertisement;
    if (!is_bridged() || !neighbor || frame.hop_limit != 255 ||
        frame.segment.size() < kNeighborBytes ||
        policy_->mode() == PolicyMode::kDenyAll) {
      return Refusal::kUninvited;
    }
    const IpAddress target = IpAddress::V6(frame.segment.subspan(8, 16));
    const bool solicits = frame.icmp_type == kNeighborSolicitation;
    return target == (solicits ? kGuestV6 : kGatewayV6) ? Refusal::kNone
                                                        : Refusal::kUninvited;
  }
  if (frame.to != GuestAddress(frame.to.v6)) return Refusal::kSpoofed;
  if (frame.icmp_type == (frame.to.v6 ? kEchoReplyV6 : kEchoReplyV4)) {
    const Peer peer{.address = frame.from, .transport = Transport::kPing};
    return flows_.AllowsIn(*policy_, peer, 0, now) ? Refusal::kNone
                                                   : Refusal::kUninvited;
  }
  if (!IsErrorForGuest(frame)) return Refusal::kUninvited;
  // About something that the guest sent, and may send.
  Frame quoted;
  if (!ParseQuotedPacket(frame.segment.subspan(8), frame.to.v6, &quoted) ||
      quoted.from != frame.to) {
    return Refusal::kUninvited;
  }
  const auto transport = TransportOf(quoted, kEchoRequestV4, kEchoRequestV6);
  if (!transport.has_value()) return Refusal::kUninvited;
  const Peer peer{
      .address = quoted.to,
      .transport = *transport,
      .port = *transport == Transport::kPing ? uint16_t{0} : quoted.to_port};
  return flows_.AllowsIn(*policy_, peer, quoted.from_port, now)
             ? Refusal::kNone
             : Refusal::kUninvited;
}

}  // namespace catnap::net
