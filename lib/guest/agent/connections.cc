#include "guest/agent/connections.h"

#include <linux/if_addr.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <vector>

namespace catnap::guest {
namespace {

// The kernel's tables are walked by position, so that an entry may be passed
// over when one before it goes: until a walk finds none.
constexpr int kMaxWalks = 8;

constexpr uint32_t kTcpStates = 1 << TCP_ESTABLISHED | 1 << TCP_SYN_SENT |
                                1 << TCP_SYN_RECV | 1 << TCP_FIN_WAIT1 |
                                1 << TCP_FIN_WAIT2 | 1 << TCP_CLOSE_WAIT |
                                1 << TCP_LAST_ACK | 1 << TCP_CLOSING;
constexpr uint32_t kUdpStates = 1 << TCP_ESTABLISHED;  // Has a peer.

// Of IPv6; those of IPv4 are mapped.
using Address = std::array<uint8_t, 16>;
constexpr Address kMapped = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

Address ToAddress(uint8_t family, const void* bytes) {
  Address address{};
  if (family == AF_INET) {
    address = kMapped;
    std::memcpy(address.data() + 12, bytes, 4);
  } else {
    std::memcpy(address.data(), bytes, address.size());
  }
  return address;
}

// A socket to one part of the kernel, and its answers.
class Netlink {
 public:
  explicit Netlink(int protocol)
      : fd_(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol)) {
    timeval patience{};
    patience.tv_sec = 1;  // It answers at once, or never.
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
  }
  ~Netlink() {
    if (fd_ >= 0) close(fd_);
  }
  Netlink(const Netlink&) = delete;
  Netlink& operator=(const Netlink&) = delete;

  // Sends `body` and calls `use(type, payload)` for each answer, up to the one
  // that ends them. Returns 0 or the errno.
  template <typename Body, typename Use>
  int Ask(uint16_t type, uint16_t flags, const Body& body, const Use& use) {
    struct {
      nlmsghdr header{};
      Body body;
    } request{.body = body};
    request.header.nlmsg_len = sizeof(request);
    request.header.nlmsg_type = type;
    request.header.nlmsg_flags = static_cast<uint16_t>(NLM_F_REQUEST | flags);
    if (send(fd_, &request, sizeof(request), 0) < 0) return errno;
    for (;;) {
      const ssize_t got = recv(fd_, buffer_.data(), buffer_.size(), 0);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return errno;
      std::span<const uint8_t> rest(buffer_.data(), static_cast<size_t>(got));
      nlmsghdr header{};
      while (rest.size() >= sizeof(header)) {
        std::memcpy(&header, rest.data(), sizeof(header));
        if (header.nlmsg_len < sizeof(header) ||
            header.nlmsg_len > rest.size()) {
          return EIO;
        }
        const auto payload =
            rest.subspan(sizeof(header), header.nlmsg_len - sizeof(header));
        if (header.nlmsg_type == NLMSG_DONE) return 0;
        if (header.nlmsg_type == NLMSG_ERROR) {
          nlmsgerr error{};
          if (payload.size() < sizeof(error)) return EIO;
          std::memcpy(&error, payload.data(), sizeof(error));
          return -error.error;
        }
        use(header.nlmsg_type, payload);
        rest = rest.subspan(
            std::min<size_t>(rest.size(), NLMSG_ALIGN(header.nlmsg_len)));
      }
    }
  }

 private:
  const int fd_;
  // Not cleared: it is read into. As much as the kernel sends at once unless
  // there is room for more, for which it would take more pages.
  std::array<uint8_t, 8 << 10> buffer_;
};

// This machine's addresses. On an error those that came: a connection too many
// is destroyed, none too few.
std::vector<Address> OwnAddresses() {
  std::vector<Address> addresses;
  Netlink route(NETLINK_ROUTE);
  ifaddrmsg any{};
  route.Ask(RTM_GETADDR, NLM_F_DUMP, any,
            [&](uint16_t type, std::span<const uint8_t> payload) {
              ifaddrmsg message{};
              if (type != RTM_NEWADDR || payload.size() < sizeof(message)) {
                return;
              }
              std::memcpy(&message, payload.data(), sizeof(message));
              const size_t size = message.ifa_family == AF_INET    ? 4
                                  : message.ifa_family == AF_INET6 ? 16
                                                                   : 0;
              auto rest = payload.subspan(NLMSG_ALIGN(sizeof(message)));
              rtattr attribute{};
              while (size != 0 && rest.size() >= sizeof(attribute)) {
                std::memcpy(&attribute, rest.data(), sizeof(attribute));
                if (attribute.rta_len < sizeof(attribute) ||
                    attribute.rta_len > rest.size()) {
                  return;
                }
                // Of a link between two, IFA_ADDRESS is the other end.
                const bool own =
                    attribute.rta_type == IFA_LOCAL ||
                    (attribute.rta_type == IFA_ADDRESS && size == 16);
                if (own && attribute.rta_len >= sizeof(attribute) + size) {
                  addresses.push_back(ToAddress(
                      message.ifa_family, rest.data() + sizeof(attribute)));
                }
                rest = rest.subspan(std::min<size_t>(
                    rest.size(), RTA_ALIGN(attribute.rta_len)));
              }
            });
  return addresses;
}

// Also of no peer at all.
bool IsLoopback(const Address& peer) {
  Address loopback{};
  loopback.back() = 1;
  const bool v4 =
      std::equal(kMapped.begin(), kMapped.begin() + 12, peer.begin());
  return peer == Address{} || peer == loopback ||
         (v4 && (peer[12] == 127 || peer[12] == 0));
}

// Looks at sockets, of which most guests have none that matter: what only a
// victim needs is made when there is one.
class Destroyer {
 public:
  // Those of one family and protocol. `*found` says whether there were any.
  int DestroySome(uint8_t family, uint8_t protocol, bool* found) {
    inet_diag_req_v2 query{};
    query.sdiag_family = family;
    query.sdiag_protocol = protocol;
    query.idiag_states = protocol == IPPROTO_TCP ? kTcpStates : kUdpStates;
    int failed = 0;
    const int error =
        list_.Ask(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, query,
                  [&](uint16_t /*type*/, std::span<const uint8_t> payload) {
                    inet_diag_msg message{};
                    if (payload.size() < sizeof(message)) return;
                    std::memcpy(&message, payload.data(), sizeof(message));
                    if (!IsVictim(message)) return;
                    const int one = Destroy(message, protocol);
                    if (one == 0) *found = true;
                    // It ended by itself meanwhile.
                    if (one != 0 && one != ENOENT && failed == 0) failed = one;
                  });
    return error != 0 ? error : failed;
  }

 private:
  bool IsVictim(const inet_diag_msg& message) {
    const Address peer = ToAddress(message.idiag_family, message.id.idiag_dst);
    if (IsLoopback(peer)) return false;
    if (!own_.has_value()) own_ = OwnAddresses();
    return std::find(own_->begin(), own_->end(), peer) == own_->end();
  }
  int Destroy(const inet_diag_msg& message, uint8_t protocol) {
    if (!end_.has_value()) end_.emplace(NETLINK_SOCK_DIAG);
    inet_diag_req_v2 victim{};
    victim.sdiag_family = message.idiag_family;
    victim.sdiag_protocol = protocol;
    victim.id = message.id;
    return end_->Ask(SOCK_DESTROY, NLM_F_ACK, victim,
                     [](uint16_t, std::span<const uint8_t>) {});
  }

  Netlink list_{NETLINK_SOCK_DIAG};
  std::optional<Netlink> end_;
  std::optional<std::vector<Address>> own_;
};

}  // namespace

int DestroyOutsideConnections() {
  Destroyer destroyer;
  int first = 0;
  constexpr std::array<uint8_t, 2> kFamilies = {AF_INET, AF_INET6};
  constexpr std::array<uint8_t, 2> kProtocols = {IPPROTO_TCP, IPPROTO_UDP};
  for (const uint8_t protocol : kProtocols) {
    for (const uint8_t family : kFamilies) {
      bool found = true;
      for (int i = 0; i < kMaxWalks && found; ++i) {
        found = false;
        const int error = destroyer.DestroySome(family, protocol, &found);
        // A kernel without IPv6 has none of its sockets.
        const bool absent = error == ENOENT && family == AF_INET6;
        if (error != 0 && !absent && first == 0) first = error;
      }
    }
  }
  return first;
}

}  // namespace catnap::guest
