#ifndef CATNAP_LIB_NET_POLICY_H_
#define CATNAP_LIB_NET_POLICY_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "net/address.h"

namespace catnap::net {

// What a guest may reach, as plain data: the library's own form of the public
// NetworkPolicy, with the same meaning.
enum class PolicyMode { kDenyAll, kAllow, kPublicInternet, kUnrestricted };
enum class RuleProtocol { kTcp, kUdp, kAny };

struct PortSpan {
  uint16_t first = 0;
  uint16_t last = 0;
};

struct RuleSpec {
  std::string to{};               // Address, range, name, or "*." and a name.
  std::vector<PortSpan> ports{};  // Empty: all.
  RuleProtocol protocol = RuleProtocol::kTcp;
};

struct PolicySpec {
  PolicyMode mode = PolicyMode::kDenyAll;
  std::vector<RuleSpec> rules{};  // With kAllow only.
};

// Whom a frame of the guest is for.
enum class Transport : uint8_t { kTcp, kUdp, kPing };
struct Peer {
  IpAddress address;
  Transport transport = Transport::kTcp;
  uint16_t port = 0;  // 0 for kPing.
};

// A name as names are compared: lower case, no dot at the end, labels of
// letters, digits, "-" and "_". "" when `text` is no such name.
std::string CanonicalName(std::string_view text);

// A checked PolicySpec, ready to be asked. Immutable: thread-safe. Cost of a
// question: in proportion to the rules.
class Policy {
 public:
  static constexpr size_t kMaxRules = 1024;
  static constexpr size_t kMaxPorts = 64;  // Spans of one rule.

  // Errors: INVALID_ARGUMENT that names the rule, what is wrong, and what
  // would be right.
  static absl::StatusOr<std::shared_ptr<const Policy>> Compile(
      const PolicySpec& spec);
  static std::shared_ptr<const Policy> DenyAll();

  PolicyMode mode() const { return mode_; }
  // Whether the peer may be sent to because of its address.
  bool AllowsAddress(const Peer& peer) const;
  // Whether questions for the name may leave. `name` is canonical.
  bool AllowsName(std::string_view name) const;
  // Whether the peer may be sent to because an answer for the name holds its
  // address, which is public.
  bool AllowsNamed(std::string_view name, const Peer& peer) const;

 private:
  struct Rule {
    bool is_name = false;
    IpPrefix range;      // Unless is_name.
    std::string name;    // If is_name: what it equals, or
    bool below = false;  // what it ends with, behind a dot.
    std::vector<PortSpan> ports;
    RuleProtocol protocol{};

    bool TakesName(std::string_view candidate) const;
    bool TakesPort(const Peer& peer) const;
  };

  Policy() = default;
  static absl::StatusOr<Rule> CompileRule(const RuleSpec& spec);

  PolicyMode mode_ = PolicyMode::kDenyAll;
  std::vector<Rule> rules_;
};

}  // namespace catnap::net

#endif  // CATNAP_LIB_NET_POLICY_H_
