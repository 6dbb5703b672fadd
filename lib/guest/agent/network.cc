#include "guest/agent/network.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/if_addr.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

#include "guest/agent/text.h"

namespace catnap::guest {
namespace {

constexpr const char* kInterfaces = "/sys/class/net";
constexpr const char* kResolverFile = "/etc/resolv.conf";
constexpr const char* kResolverDraft = "/etc/.resolv.conf.catnap";
constexpr size_t kMaxText = 4096;

void Complain(std::string_view what) {
  const std::string line = "catnap-agent: " + ErrorText(what, errno) + "\n";
  if (write(STDERR_FILENO, line.data(), line.size()) < 0) {
    // No console: there is nobody to tell.
  }
}

// The first Ethernet interface by name, so that eth0 comes before eth1; "" when
// there is none.
std::string FindInterface() {
  std::string found;
  DIR* const directory = opendir(kInterfaces);
  if (directory == nullptr) return found;
  while (const dirent* const entry = readdir(directory)) {
    const std::string name = entry->d_name;
    if (name[0] == '.') continue;
    const std::string path = std::string(kInterfaces) + "/" + name;
    // ARPHRD_ETHER, and a device behind it: no bridge, no dummy.
    if (ReadText(path + "/type", kMaxText) != "1\n") continue;
    if (access((path + "/device").c_str(), F_OK) != 0) continue;
    if (found.empty() || name < found) found = name;
  }
  closedir(directory);
  return found;
}

// One request to the kernel's routing, and its answer.
class Request {
 public:
  template <typename Body>
  Request(uint16_t type, uint16_t flags, const Body& body) {
    header_.nlmsg_type = type;
    header_.nlmsg_flags =
        static_cast<uint16_t>(NLM_F_REQUEST | NLM_F_ACK | flags);
    size_ = sizeof(header_);
    Put(&body, sizeof(body));
  }

  void Add(uint16_t type, std::span<const uint8_t> value) {
    rtattr attribute{};
    attribute.rta_type = type;
    attribute.rta_len = static_cast<uint16_t>(sizeof(attribute) + value.size());
    Put(&attribute, sizeof(attribute));
    Put(value.data(), value.size());
  }
  void Add(uint16_t type, uint32_t value) {
    Add(type, {reinterpret_cast<const uint8_t*>(&value), sizeof(value)});
  }

  // 0, or why it failed.
  int Send(int fd) {
    header_.nlmsg_len = static_cast<uint32_t>(size_);
    std::memcpy(bytes_.data(), &header_, sizeof(header_));
    if (send(fd, bytes_.data(), size_, 0) < 0) return errno;
    std::array<uint8_t, 1024> answer;
    const ssize_t got = recv(fd, answer.data(), answer.size(), 0);
    if (got < 0) return errno;
    nlmsghdr header{};
    nlmsgerr error{};
    if (static_cast<size_t>(got) < sizeof(header) + sizeof(error)) return EIO;
    std::memcpy(&header, answer.data(), sizeof(header));
    std::memcpy(&error, answer.data() + NLMSG_HDRLEN, sizeof(error));
    return header.nlmsg_type == NLMSG_ERROR ? -error.error : EIO;
  }

 private:
  // All parts here are short, and whole words.
  void Put(const void* from, size_t size) {
    std::memcpy(bytes_.data() + size_, from, size);
    size_ += NLMSG_ALIGN(size);
  }

  nlmsghdr header_{};
  std::array<uint8_t, 256> bytes_{};
  size_t size_ = 0;
};

int BringUp(int fd, unsigned index) {
  ifinfomsg body{};
  body.ifi_family = AF_UNSPEC;
  body.ifi_index = static_cast<int>(index);
  body.ifi_flags = IFF_UP;
  body.ifi_change = IFF_UP;
  return Request(RTM_NEWLINK, 0, body).Send(fd);
}

int AddAddress(int fd, unsigned index, std::span<const uint8_t> address,
               uint8_t bits) {
  ifaddrmsg body{};
  body.ifa_family = address.size() == 4 ? AF_INET : AF_INET6;
  body.ifa_prefixlen = bits;
  // Nobody else is on the link: no time is spent on finding that out.
  body.ifa_flags = address.size() == 4 ? 0 : IFA_F_NODAD;
  body.ifa_index = index;
  Request request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, body);
  request.Add(IFA_LOCAL, address);
  request.Add(IFA_ADDRESS, address);
  return request.Send(fd);
}

int AddDefaultRoute(int fd, unsigned index, std::span<const uint8_t> gateway) {
  rtmsg body{};
  body.rtm_family = gateway.size() == 4 ? AF_INET : AF_INET6;
  body.rtm_table = RT_TABLE_MAIN;
  body.rtm_protocol = RTPROT_STATIC;
  body.rtm_scope = RT_SCOPE_UNIVERSE;
  body.rtm_type = RTN_UNICAST;
  Request request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body);
  request.Add(RTA_GATEWAY, gateway);
  request.Add(RTA_OIF, index);
  return request.Send(fd);
}

// Replaces what the image has there, also a link into /run: no other name
// server answers here.
void WriteResolverFile(const char* resolver) {
  const std::string text = std::string("nameserver ") + resolver + "\n";
  if (ReadText(kResolverFile, kMaxText) == text) return;
  const int fd =
      open(kResolverDraft,
           O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
  if (fd < 0) {
    // An initramfs without /etc, or a root that is for reading only.
    if (errno != ENOENT && errno != EROFS) Complain(kResolverFile);
    return;
  }
  const bool written =
      write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size());
  close(fd);
  if (!written || rename(kResolverDraft, kResolverFile) != 0) {
    Complain(kResolverFile);
    unlink(kResolverDraft);
  }
}

}  // namespace

void SetUpNetwork() {
  const std::string name = FindInterface();
  if (name.empty()) return;
  // The addresses are known: no waiting for advertisements of them.
  WriteText("/proc/sys/net/ipv6/conf/" + name + "/accept_ra", "0");
  const unsigned index = if_nametoindex(name.c_str());
  const int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
  if (fd < 0) {
    Complain("netlink");
    return;
  }
  const LinkAddresses addresses;
  errno = BringUp(fd, index);
  if (errno == 0) {
    errno = AddAddress(fd, index, addresses.guest_v4, addresses.bits_v4);
  }
  if (errno == 0) errno = AddDefaultRoute(fd, index, addresses.gateway_v4);
  if (errno != 0) Complain(name);
  errno = AddAddress(fd, index, addresses.guest_v6, addresses.bits_v6);
  if (errno == 0) errno = AddDefaultRoute(fd, index, addresses.gateway_v6);
  // A kernel without IPv6, or with IPv6 turned off.
  if (errno != 0 && errno != EAFNOSUPPORT && errno != EOPNOTSUPP &&
      errno != EACCES) {
    Complain(name + " IPv6");
  }
  close(fd);
  WriteResolverFile(addresses.resolver);
}

int SetMacAddress(const std::array<uint8_t, 6>& address) {
  const std::string name = FindInterface();
  if (name.empty()) return ENODEV;
  const int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
  if (fd < 0) return errno;
  ifinfomsg body{};
  body.ifi_family = AF_UNSPEC;
  body.ifi_index = static_cast<int>(if_nametoindex(name.c_str()));
  Request request(RTM_NEWLINK, 0, body);
  request.Add(IFLA_ADDRESS, address);
  const int error = request.Send(fd);
  close(fd);
  return error;
}

}  // namespace catnap::guest
