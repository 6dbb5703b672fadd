#include "runtime/network_policy.h"

#include <utility>

namespace catnap::runtime {
namespace {

net::PolicyMode ModeOf(NetworkPolicy::Mode mode) {
  switch (mode) {
    case NetworkPolicy::Mode::kAllow:
      return net::PolicyMode::kAllow;
    case NetworkPolicy::Mode::kPublicInternet:
      return net::PolicyMode::kPublicInternet;
    case NetworkPolicy::Mode::kUnrestricted:
      return net::PolicyMode::kUnrestricted;
    case NetworkPolicy::Mode::kDenyAll:
      break;
  }
  return net::PolicyMode::kDenyAll;
}

net::RuleProtocol ProtocolOf(Protocol protocol) {
  switch (protocol) {
    case Protocol::kTcp:
      return net::RuleProtocol::kTcp;
    case Protocol::kUdp:
      return net::RuleProtocol::kUdp;
    case Protocol::kAny:
      break;
  }
  return net::RuleProtocol::kAny;
}

}  // namespace

absl::StatusOr<std::shared_ptr<const net::Policy>> CompilePolicy(
    const NetworkPolicy& policy) {
  net::PolicySpec spec;
  spec.mode = ModeOf(policy.mode());
  for (const NetworkRule& rule : policy.rules()) {
    net::RuleSpec made;
    made.to = rule.to;
    made.protocol = ProtocolOf(rule.protocol);
    for (const PortRange& range : rule.ports) {
      made.ports.push_back({.first = range.first, .last = range.last});
    }
    spec.rules.push_back(std::move(made));
  }
  return net::Policy::Compile(spec);
}

}  // namespace catnap::runtime
