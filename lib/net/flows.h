#ifndef CATNAP_LIB_NET_FLOWS_H_
#define CATNAP_LIB_NET_FLOWS_H_

#include <chrono>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "net/address.h"
#include "net/lru_map.h"
#include "net/policy.h"

namespace catnap::net {

// What answers to names have opened, and which flows the guest has: what the
// Policy alone does not know. It decides about a peer together with it.
//
// Memory: at most kMaxAddresses * kMaxNames names and kMaxFlows flows, together
// under a MiB. Thread-compatible.
class Flows {
 public:
  using TimePoint = std::chrono::steady_clock::time_point;

  static constexpr size_t kMaxAddresses = 512;
  static constexpr size_t kMaxNames = 4;  // Of one address.
  static constexpr size_t kMaxFlows = 2048;
  // How long an answer opens an address, whatever it says itself: time enough
  // to connect, and not for ever.
  static constexpr auto kLeastOpen = std::chrono::seconds(30);
  static constexpr auto kMostOpen = std::chrono::hours(1);
  // A UDP flow is over when it was still for this long.
  static constexpr auto kUdpIdle = std::chrono::minutes(2);

  Flows() : addresses_(kMaxAddresses), flows_(kMaxFlows) {}

  // An answer to the guest's question for `name` held the address.
  void Open(const std::string& name, const IpAddress& address,
            std::chrono::seconds time_to_live, TimePoint now);

  // Whether the guest may send from `guest_port` to the peer now. What `name`
  // opened stays open beyond its time for the flows that use it, as long as
  // the policy allows the name; `starts` is the first frame of a connection.
  bool AllowsOut(const Policy& policy, const Peer& peer, uint16_t guest_port,
                 bool starts, TimePoint now);
  // Whether the peer may send to `guest_port`: the guest is allowed to send
  // there, and did if it is UDP.
  bool AllowsIn(const Policy& policy, const Peer& peer, uint16_t guest_port,
                TimePoint now);

  // The guest asks for a TCP connection. kRepeated: it has before, in the last
  // kConnectTime, and OnConnected() did not come since; kTooMany: that is so of
  // kMaxConnecting others.
  enum class Start { kNew, kRepeated, kTooMany };
  static constexpr size_t kMaxConnecting = 1024;
  static constexpr auto kConnectTime = std::chrono::seconds(10);
  Start Connect(const Peer& peer, uint16_t guest_port, TimePoint now);
  // The guest goes on with the connection, or it was refused: another one may
  // begin.
  void OnConnected(const Peer& peer, uint16_t guest_port);
  // Nobody is there any more who could answer.
  void ForgetConnecting() { connecting_.clear(); }

 private:
  struct Name {
    std::string name;
    TimePoint until{};
  };
  struct FlowKey {
    Peer peer;
    uint16_t guest_port = 0;
    friend bool operator==(const FlowKey& a, const FlowKey& b) {
      return a.guest_port == b.guest_port && a.peer.port == b.peer.port &&
             a.peer.transport == b.peer.transport &&
             a.peer.address == b.peer.address;
    }
  };
  struct FlowHash {
    size_t operator()(const FlowKey& key) const {
      return IpAddressHash()(key.peer.address) ^
             std::hash<uint64_t>()(uint64_t{key.guest_port} << 24 |
                                   uint64_t{key.peer.port} << 8 |
                                   static_cast<uint64_t>(key.peer.transport));
    }
  };

  // Whether a flow is known, and not over.
  bool IsKnown(const FlowKey& key, TimePoint now);
  bool AllowsNamed(const Policy& policy, const Peer& peer, bool beyond_time,
                   TimePoint now);

  LruMap<IpAddress, std::vector<Name>, IpAddressHash> addresses_;
  LruMap<FlowKey, TimePoint, FlowHash> flows_;  // When last used.
  // Since when the guest asks.
  std::unordered_map<FlowKey, TimePoint, FlowHash> connecting_;
};

}  // namespace catnap::net

#endif  // CATNAP_LIB_NET_FLOWS_H_
