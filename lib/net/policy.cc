#include "net/policy.h"

#include <algorithm>
#include <charconv>
#include <utility>

#include "base/status.h"

namespace catnap::net {
namespace {

constexpr size_t kMaxNameBytes = 253;
constexpr size_t kMaxLabelBytes = 63;
constexpr size_t kMaxQuotedBytes = 80;

bool IsNameByte(char c) {
  return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' ||
         c == '_';
}

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

// Part of a message: what the caller wrote, which may be of any length.
std::string Quoted(const std::string& text) {
  return text.size() <= kMaxQuotedBytes
             ? text
             : text.substr(0, kMaxQuotedBytes) + "...";
}

absl::Status Wrong(const RuleSpec& rule, const std::string& why) {
  return Error(absl::StatusCode::kInvalidArgument, "\"{}\" {}", Quoted(rule.to),
               why);
}

absl::StatusOr<IpPrefix> CompileRange(const RuleSpec& rule) {
  const size_t slash = rule.to.find('/');
  const auto address = ParseIp(rule.to.substr(0, slash));
  if (!address.has_value()) {
    return Wrong(rule,
                 "is neither an address nor a range such as 10.2.0.0/16 or "
                 "2001:db8::/32");
  }
  IpPrefix range{.address = *address,
                 .bits = static_cast<int>(address->size()) * 8};
  if (slash != std::string::npos) {
    const int most = range.bits;
    const char* const begin = rule.to.data() + slash + 1;
    const char* const end = rule.to.data() + rule.to.size();
    const auto [rest, error] = std::from_chars(begin, end, range.bits);
    if (error != std::errc() || rest != end || range.bits < 0 ||
        range.bits > most) {
      return Wrong(rule,
                   fmt::format("needs a prefix length from 0 to {}", most));
    }
  }
  if (!range.IsCanonical()) {
    return Wrong(
        rule, fmt::format("has bits set behind the first {}; for one address "
                          "leave the prefix length out",
                          range.bits));
  }
  return range;
}

}  // namespace

std::string CanonicalName(std::string_view text) {
  if (text.ends_with('.')) text.remove_suffix(1);
  if (text.empty() || text.size() > kMaxNameBytes) return "";
  std::string name(text);
  size_t label = 0;
  for (char& c : name) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    if (c == '.') {
      if (label == 0) return "";
      label = 0;
    } else if (!IsNameByte(c) || ++label > kMaxLabelBytes) {
      return "";
    }
  }
  return label == 0 ? "" : name;
}

bool Policy::Rule::TakesName(std::string_view candidate) const {
  if (!is_name) return false;
  if (!below) return candidate == name;
  return candidate.size() > name.size() + 1 && candidate.ends_with(name) &&
         candidate[candidate.size() - name.size() - 1] == '.';
}

bool Policy::Rule::TakesPort(const Peer& peer) const {
  switch (peer.transport) {
    case Transport::kTcp:
      if (protocol == RuleProtocol::kUdp) return false;
      break;
    case Transport::kUdp:
      if (protocol == RuleProtocol::kTcp) return false;
      break;
    case Transport::kPing:
      return protocol == RuleProtocol::kAny && ports.empty();
  }
  return ports.empty() ||
         std::any_of(ports.begin(), ports.end(), [&](const PortSpan& span) {
           return span.first <= peer.port && peer.port <= span.last;
         });
}

absl::StatusOr<Policy::Rule> Policy::CompileRule(const RuleSpec& spec) {
  Rule rule;
  rule.protocol = spec.protocol;
  rule.ports = spec.ports;
  if (spec.to.empty()) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "`to` is empty, must be an address, a range, or a name");
  }
  if (spec.ports.size() > kMaxPorts) {
    return Wrong(spec, fmt::format("has {} port ranges, must have at most {}",
                                   spec.ports.size(), kMaxPorts));
  }
  for (const PortSpan& span : spec.ports) {
    if (span.first == 0 || span.last < span.first) {
      return Wrong(spec,
                   fmt::format("has the port range {} to {}, must be 1 to "
                               "65535 and first not above last",
                               span.first, span.last));
    }
  }
  const std::string& to = spec.to;
  const size_t last_dot = to.find_last_of('.');
  const size_t last_label = last_dot == std::string::npos ? 0 : last_dot + 1;
  // No top-level domain starts with a digit: "10.0.0.256" is no name.
  const bool numeric = last_label < to.size() && IsDigit(to[last_label]);
  if (numeric || to.find_first_of(":/") != std::string::npos) {
    auto range = CompileRange(spec);
    if (!range.ok()) return std::move(range).status();
    rule.range = *range;
    if (IsNeverReachable(rule.range.address) && rule.range.bits >= 8) {
      return Wrong(spec,
                   "is loopback, multicast or no address to send to, which "
                   "no policy opens; offer a GuestService for what the host "
                   "has");
    }
    return rule;
  }
  rule.is_name = true;
  rule.below = to.starts_with("*.");
  rule.name = CanonicalName(std::string_view(to).substr(rule.below ? 2 : 0));
  if (rule.name.empty()) {
    return Wrong(spec,
                 "is no name such as example.org or *.example.org (one star, "
                 "in front; letters, digits, - and _; other letters as xn--)");
  }
  return rule;
}

absl::StatusOr<std::shared_ptr<const Policy>> Policy::Compile(
    const PolicySpec& spec) {
  if (spec.mode != PolicyMode::kAllow && !spec.rules.empty()) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "a network policy has {} rules, which only one that allows "
                 "what is listed has",
                 spec.rules.size());
  }
  if (spec.rules.size() > kMaxRules) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "a network policy has {} rules, must have at most {}",
                 spec.rules.size(), kMaxRules);
  }
  std::shared_ptr<Policy> policy(new Policy());
  policy->mode_ = spec.mode;
  policy->rules_.reserve(spec.rules.size());
  for (size_t i = 0; i < spec.rules.size(); ++i) {
    auto rule = CompileRule(spec.rules[i]);
    if (!rule.ok()) {
      return AddContext(rule.status(), fmt::format("network rule {}", i));
    }
    policy->rules_.push_back(*std::move(rule));
  }
  return std::shared_ptr<const Policy>(std::move(policy));
}

std::shared_ptr<const Policy> Policy::DenyAll() {
  return std::shared_ptr<const Policy>(new Policy());
}

bool Policy::AllowsAddress(const Peer& peer) const {
  if (IsNeverReachable(peer.address)) return false;
  switch (mode_) {
    case PolicyMode::kDenyAll:
      return false;
    case PolicyMode::kAllow:
      return std::any_of(rules_.begin(), rules_.end(), [&](const Rule& rule) {
        return !rule.is_name && Names(rule.range, peer.address) &&
               rule.TakesPort(peer);
      });
    case PolicyMode::kPublicInternet:
      return IsPublic(peer.address);
    case PolicyMode::kUnrestricted:
      return true;
  }
  return false;
}

bool Policy::AllowsName(std::string_view name) const {
  switch (mode_) {
    case PolicyMode::kDenyAll:
      return false;
    case PolicyMode::kAllow:
      return std::any_of(rules_.begin(), rules_.end(), [&](const Rule& rule) {
        return rule.TakesName(name);
      });
    case PolicyMode::kPublicInternet:
    case PolicyMode::kUnrestricted:
      return true;
  }
  return false;
}

bool Policy::AllowsNamed(std::string_view name, const Peer& peer) const {
  return mode_ == PolicyMode::kAllow && IsPublic(peer.address) &&
         std::any_of(rules_.begin(), rules_.end(), [&](const Rule& rule) {
           return rule.TakesName(name) && rule.TakesPort(peer);
         });
}

}  // namespace catnap::net
