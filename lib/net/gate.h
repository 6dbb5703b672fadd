#ifndef CATNAP_LIB_NET_GATE_H_
#define CATNAP_LIB_NET_GATE_H_

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/log.h"
#include "base/token_bucket.h"
#include "net/address.h"
#include "net/dns_message.h"
#include "net/flows.h"
#include "net/frame.h"
#include "net/link_addresses.h"
#include "net/policy.h"

namespace catnap::net {

// How the other side of the gate is made.
enum class Outside {
  // A helper that takes IP from the gateway's address: the gateway is ours.
  kRouted,
  // A real network, with a gateway of its own at the link's gateway address:
  // ARP and neighbour discovery go through once anything may leave.
  kBridged,
};

struct GateOptions {
  MacAddress guest_mac = kDefaultGuestMac;
  uint16_t mtu = 1500;  // 1280 to kMaxMtu.
  Outside outside = Outside::kRouted;
  base::Logger log{};
};

// Numbers since the gate was made.
struct GateStats {
  using Refused = std::array<uint64_t, static_cast<size_t>(Refusal::kCount)>;
  uint64_t frames_out = 0;  // That left.
  uint64_t bytes_out = 0;
  uint64_t frames_in = 0;  // That came in.
  uint64_t bytes_in = 0;
  uint64_t answered = 0;  // By the gateway itself.
  Refused refused_out{};  // By Refusal.
  Refused refused_in{};
  uint64_t names_asked = 0;
  uint64_t names_refused = 0;  // With NXDOMAIN.
  uint64_t names_failed = 0;   // No resolver answered, or too many asked.
};

// What the gate does with what it has decided. Called inside the gate's own
// calls.
class GateOutput {
 public:
  virtual ~GateOutput() = default;
  virtual void ToGuest(std::span<const uint8_t> frame) = 0;
  // Returns why the frame is lost, kNone when it is not.
  virtual Refusal ToOutside(std::span<const uint8_t> frame) = 0;
  // The question is to be asked: OnAnswer(token, ...) later, once, in any case.
  // Not from inside this call.
  virtual void Ask(uint64_t token, const DnsQuery& query) = 0;
};

// Decides about every frame between a guest and the world, and speaks for the
// gateway and the resolver of its link. It has no I/O, no thread and no clock.
//
// Every frame is hostile, on both sides. The work for one is bounded by its
// length and the policy's rules; the memory by Flows, and kMaxQuestions
// questions.
//
// Thread-compatible.
class Gate {
 public:
  using TimePoint = std::chrono::steady_clock::time_point;

  static constexpr size_t kMaxQuestions = 32;

  // `output` is borrowed and must outlive the gate. Nothing may leave yet.
  Gate(const GateOptions& options, GateOutput* output);

  // Holds from the next frame on.
  void SetPolicy(std::shared_ptr<const Policy> policy);
  const Policy& policy() const { return *policy_; }

  // A frame that the guest sent, or that came for it.
  void FromGuest(std::span<const uint8_t> frame, TimePoint now);
  void FromOutside(std::span<const uint8_t> frame, TimePoint now);
  // The answer to a question: the message as it came, after ParseDnsAnswer()
  // made `answer` of it. Empty: there was none.
  void OnAnswer(uint64_t token, std::span<const uint8_t> message,
                const DnsAnswer& answer, TimePoint now);

  // Another outside takes the place of the one before, which answers no more.
  void OnOutsideChanged() { flows_.ForgetConnecting(); }

  const GateStats& stats() const { return stats_; }
  // Frames that were lost behind the gate.
  void CountLost(Refusal refusal, bool out);

 private:
  // Where the answer to a question of the guest's goes.
  struct Question {
    DnsQuery query;
    IpAddress guest;
    IpAddress resolver;
    uint16_t guest_port = 0;
  };

  Refusal CheckFromGuest(const Frame& frame, std::span<const uint8_t> bytes,
                         TimePoint now);
  Refusal HandleArp(const Frame& frame, std::span<const uint8_t> bytes);
  Refusal HandleLinkIcmp(const Frame& frame, std::span<const uint8_t> bytes);
  Refusal HandleForUs(const Frame& frame);
  Refusal HandleDns(const Frame& frame);
  Refusal CheckFromOutside(const Frame& frame, TimePoint now);
  Refusal CheckArpFromOutside(const Frame& frame) const;
  Refusal CheckIcmpFromOutside(const Frame& frame, TimePoint now);
  Refusal Leave(std::span<const uint8_t> bytes);
  void Answer(const std::vector<uint8_t>& frame);
  void AnswerQuestion(const Question& question,
                      std::span<const uint8_t> message);
  bool is_bridged() const { return options_.outside == Outside::kBridged; }
  void Refuse(const Frame& frame, Refusal why, bool out, TimePoint now);
  bool MayLog(TimePoint now);

  const GateOptions options_;
  GateOutput* const output_;  // Not owned.
  std::shared_ptr<const Policy> policy_;
  Flows flows_;
  std::unordered_map<uint64_t, Question> questions_;
  uint64_t next_token_ = 1;
  TimePoint now_{};  // Of the frame at hand.
  GateStats stats_;
  base::TokenBucket log_bucket_;
  base::TokenBucket refusal_bucket_;  // Frames that tell of a refusal.
};

}  // namespace catnap::net

#endif  // CATNAP_LIB_NET_GATE_H_
