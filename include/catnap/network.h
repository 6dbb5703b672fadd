#ifndef CATNAP_NETWORK_H_
#define CATNAP_NETWORK_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "catnap/export.h"

namespace catnap {

class MicroVM;

// Ports `first` to `last`, both included. 0 is no port.
struct PortRange {
  uint16_t first = 0;
  uint16_t last = 0;

  friend bool operator==(const PortRange&, const PortRange&) = default;
};

enum class Protocol {
  kTcp,
  kUdp,
  kAny,  // TCP, UDP, and ping (ICMP echo) when the rule names no ports.
};

// One thing that a guest may reach. Plain data; checked where it is used
// (MicroVM::Run, SetEgress, Image::Build): INVALID_ARGUMENT says what is wrong
// with which rule.
struct NetworkRule {
  // One of
  //   an address or a range:  "203.0.113.7", "10.2.0.0/16", "2001:db8::/32"
  //   a name:                 "example.org", itself only
  //   the names below a name: "*.example.org", at any depth, not "example.org"
  // Letter case does not matter. No bits beyond the prefix may be set.
  //
  // A name opens the addresses that the answers to the guest's own queries for
  // it hold, each until its time to live ends, and never one that is loopback,
  // link-local, private, multicast, reserved or a metadata service, whatever
  // the answer says: only a range that lies within such a block opens it, and
  // "0.0.0.0/0" and "::/0" open the public Internet. The host's own loopback
  // cannot be opened at all; see GuestService.
  std::string to{};
  // Empty: all ports.
  std::vector<PortRange> ports{};
  Protocol protocol = Protocol::kTcp;

  friend bool operator==(const NetworkRule&, const NetworkRule&) = default;
};

// The tag without which no guest gets everything, so that one search finds
// every place that gives it.
struct Unrestricted {
  explicit Unrestricted() = default;
};

// What a guest may reach by its network interface. Every frame that leaves is
// checked against it, so a change holds from the next frame on, also for
// connections that are there. Nothing reaches the guest uninvited in any case.
// Host services (GuestService) and all calls of MicroVM go another way, which
// no policy closes.
//
// A value: copyable, thread-compatible.
class CATNAP_EXPORT NetworkPolicy {
 public:
  enum class Mode { kDenyAll, kAllow, kPublicInternet, kUnrestricted };

  // DenyAll().
  NetworkPolicy() = default;
  // Everything that the host reaches, private networks and metadata services
  // too; all but the host's own loopback.
  NetworkPolicy(Unrestricted /*tag*/)  // NOLINT: explicit by its tag
      : mode_(Mode::kUnrestricted) {}

  // Nothing. Names get NXDOMAIN. The guest sees a working link.
  static NetworkPolicy DenyAll() { return {}; }
  // What some rule allows. Names outside the rules get NXDOMAIN, with no
  // question to anybody. At most 1,024 rules with 64 port ranges each.
  static NetworkPolicy Allow(std::vector<NetworkRule> rules);
  // All but loopback, private, link-local, multicast and reserved addresses
  // and metadata services. All names are answered; what they stand for must be
  // public.
  static NetworkPolicy PublicInternet();

  Mode mode() const { return mode_; }
  // Empty unless mode() is kAllow.
  const std::vector<NetworkRule>& rules() const { return rules_; }

  friend bool operator==(const NetworkPolicy&, const NetworkPolicy&) = default;

 private:
  Mode mode_ = Mode::kDenyAll;
  std::vector<NetworkRule> rules_;
};

// Owns a file descriptor, which the library hands out or is given.
// Thread-compatible.
class CATNAP_EXPORT UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept;
  UniqueFd(const UniqueFd&) = delete;
  UniqueFd& operator=(const UniqueFd&) = delete;
  ~UniqueFd();

  // -1: none.
  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  // The caller closes it from now on.
  [[nodiscard]] int Release() { return std::exchange(fd_, -1); }

 private:
  int fd_ = -1;
};

// What a host program offers its guests: functions, proxies, credentials. A
// guest reaches it at host.catnap:<port> by TCP, and at vsock CID 2, whatever
// its NetworkPolicy says.
class CATNAP_EXPORT GuestService {
 public:
  virtual ~GuestService() = default;
  // A process in `from` connected. `connection` is a connected stream socket;
  // what comes from it is the guest's and not to be trusted. Called on the
  // executor, one call after the other for each service. Must not throw.
  virtual void OnConnection(const MicroVM& from, UniqueFd connection) = 0;
};

// Where on the host a listener is. Port 0: one that is free.
struct HostAddress {
  std::string host = "127.0.0.1";
  uint16_t port = 0;

  friend bool operator==(const HostAddress&, const HostAddress&) = default;
};

}  // namespace catnap

#endif  // CATNAP_NETWORK_H_
