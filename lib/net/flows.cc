#include "net/flows.h"

#include <algorithm>

namespace catnap::net {

void Flows::Open(const std::string& name, const IpAddress& address,
                 std::chrono::seconds time_to_live, TimePoint now) {
  const TimePoint until = now + std::clamp<std::chrono::seconds>(
                                    time_to_live, kLeastOpen, kMostOpen);
  std::vector<Name>& names = addresses_.Get(address);
  auto entry = std::find_if(names.begin(), names.end(), [&](const Name& known) {
    return known.name == name;
  });
  if (entry != names.end()) {
    entry->until = std::max(entry->until, until);
    return;
  }
  if (names.size() == kMaxNames) {
    // The one whose time ends first makes place.
    entry = std::min_element(
        names.begin(), names.end(),
        [](const Name& a, const Name& b) { return a.until < b.until; });
    *entry = {.name = name, .until = until};
    return;
  }
  names.push_back({.name = name, .until = until});
}

bool Flows::IsKnown(const FlowKey& key, TimePoint now) {
  const TimePoint* const used = flows_.Find(key);
  if (used == nullptr) return false;
  return key.peer.transport != Transport::kUdp || now - *used < kUdpIdle;
}

bool Flows::AllowsNamed(const Policy& policy, const Peer& peer,
                        bool beyond_time, TimePoint now) {
  if (policy.mode() != PolicyMode::kAllow) return false;
  const std::vector<Name>* const names = addresses_.Find(peer.address);
  if (names == nullptr) return false;
  return std::any_of(names->begin(), names->end(), [&](const Name& entry) {
    return (beyond_time || now < entry.until) &&
           policy.AllowsNamed(entry.name, peer);
  });
}

bool Flows::AllowsOut(const Policy& policy, const Peer& peer,
                      uint16_t guest_port, bool starts, TimePoint now) {
  const FlowKey key{.peer = peer, .guest_port = guest_port};
  if (policy.AllowsAddress(peer)) {
    // What comes back by UDP is let in for flows that are known.
    if (peer.transport == Transport::kUdp) flows_.Get(key) = now;
    return true;
  }
  const bool goes_on = !starts && IsKnown(key, now);
  if (!AllowsNamed(policy, peer, goes_on, now)) return false;
  if (peer.transport != Transport::kPing) flows_.Get(key) = now;
  return true;
}

bool Flows::AllowsIn(const Policy& policy, const Peer& peer,
                     uint16_t guest_port, TimePoint now) {
  const FlowKey key{.peer = peer, .guest_port = guest_port};
  const bool known = IsKnown(key, now);
  if (peer.transport == Transport::kUdp && !known) return false;
  return policy.AllowsAddress(peer) || AllowsNamed(policy, peer, known, now);
}

Flows::Start Flows::Connect(const Peer& peer, uint16_t guest_port,
                            TimePoint now) {
  const FlowKey key{.peer = peer, .guest_port = guest_port};
  const auto at = connecting_.find(key);
  if (at != connecting_.end()) {
    if (now - at->second < kConnectTime) return Start::kRepeated;
    at->second = now;
    return Start::kNew;
  }
  if (connecting_.size() >= kMaxConnecting) {
    std::erase_if(connecting_, [now](const auto& entry) {
      return now - entry.second >= kConnectTime;
    });
    if (connecting_.size() >= kMaxConnecting) return Start::kTooMany;
  }
  connecting_.emplace(key, now);
  return Start::kNew;
}

void Flows::OnConnected(const Peer& peer, uint16_t guest_port) {
  if (connecting_.empty()) return;  // For most frames.
  connecting_.erase({.peer = peer, .guest_port = guest_port});
}

}  // namespace catnap::net
