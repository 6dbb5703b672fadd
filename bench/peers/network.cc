#include "peers/network.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/route.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "base/status.h"
#include "guest.h"

extern "C" char** environ;

namespace catnap::bench {
namespace {

constexpr const char* kInterface = "catnap-bench";

void Must(const char* what, bool done) {
  if (!done) Check(what, ErrnoError(errno, "failed"));
}

sockaddr_in Address(const char* text, uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = ::inet_addr(text);
  address.sin_port = htons(port);
  return address;
}

void Put(sockaddr* to, const char* text) {
  const sockaddr_in address = Address(text, 0);
  std::memcpy(to, &address, sizeof(address));
}

ifreq Named(const char* name) {
  ifreq request{};
  std::strncpy(request.ifr_name, name, IFNAMSIZ - 1);
  return request;
}

}  // namespace

base::UniqueFd ConnectTo(uint16_t port) {
  base::UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const sockaddr_in address = Address("127.0.0.1", port);
  Must("connect",
       ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address),
                 sizeof(address)) == 0);
  const int one = 1;
  ::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
  return fd;
}

void ShutdownSend(int fd) { ::shutdown(fd, SHUT_WR); }

HostNetwork::HostNetwork() {
  Must("network namespace", ::unshare(CLONE_NEWNET) == 0);
  tap_ = base::UniqueFd(::open("/dev/net/tun", O_RDWR | O_CLOEXEC));
  Must("/dev/net/tun", tap_.valid());
  const base::UniqueFd control(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq request = Named("lo");
  request.ifr_flags = IFF_UP;
  Must("lo", ::ioctl(control.get(), SIOCSIFFLAGS, &request) == 0);
  request = Named(kInterface);
  request.ifr_flags = IFF_TAP | IFF_NO_PI;
  Must("TUNSETIFF", ::ioctl(tap_.get(), TUNSETIFF, &request) == 0);
  request = Named(kInterface);
  Put(&request.ifr_addr, kAddress);
  Must("SIOCSIFADDR", ::ioctl(control.get(), SIOCSIFADDR, &request) == 0);
  Put(&request.ifr_netmask, "255.255.255.0");
  Must("SIOCSIFNETMASK", ::ioctl(control.get(), SIOCSIFNETMASK, &request) == 0);
  request = Named(kInterface);
  request.ifr_flags = IFF_UP;
  Must("SIOCSIFFLAGS", ::ioctl(control.get(), SIOCSIFFLAGS, &request) == 0);
  rtentry route{};  // passt asks for one.
  Put(&route.rt_gateway, "11.22.33.2");
  Put(&route.rt_dst, "0.0.0.0");
  Put(&route.rt_genmask, "0.0.0.0");
  route.rt_flags = RTF_UP | RTF_GATEWAY;
  Must("SIOCADDRT", ::ioctl(control.get(), SIOCADDRT, &route) == 0);
}

TcpServer::TcpServer(uint64_t bytes)
    : bytes_(bytes),
      listener_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
  sockaddr_in address = Address("0.0.0.0", 0);
  socklen_t size = sizeof(address);
  auto* const name = reinterpret_cast<sockaddr*>(&address);
  Must("bind", ::bind(listener_.get(), name, size) == 0);
  Must("listen", ::listen(listener_.get(), 8) == 0);
  Must("name", ::getsockname(listener_.get(), name, &size) == 0);
  port_ = ntohs(address.sin_port);
  thread_ = std::thread([this] { Run(); });
}

TcpServer::~TcpServer() {
  ::shutdown(listener_.get(), SHUT_RDWR);
  thread_.join();
}

void TcpServer::Run() {
  std::vector<char> buffer(64 << 10);
  while (true) {
    const base::UniqueFd fd(
        ::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!fd.valid()) return;
    uint64_t rest = bytes_;
    while (rest > 0) {
      const ssize_t sent =
          ::send(fd.get(), buffer.data(),
                 std::min<uint64_t>(rest, buffer.size()), MSG_NOSIGNAL);
      if (sent <= 0) break;
      rest -= static_cast<uint64_t>(sent);
    }
    while (::read(fd.get(), buffer.data(), buffer.size()) > 0) {
    }
    if (bytes_ == 0) ::send(fd.get(), buffer.data(), 1, MSG_NOSIGNAL);
  }
}

Passt::Passt(const std::string& socket) {
  // As net/link.cc calls it.
  std::vector<std::string> words = {"setpriv",      "--pdeathsig",
                                    "KILL",         "passt",
                                    "--foreground", "--quiet",
                                    "--socket",     socket,
                                    "--runas",      "0",
                                    "--address",    "10.233.117.2",
                                    "--netmask",    "29",
                                    "--gateway",    "10.233.117.1",
                                    "--mac-addr",   "02:63:61:74:6e:01",
                                    "--mtu",        "1500",
                                    "--tcp-ports",  "none",
                                    "--udp-ports",  "none",
                                    "--no-map-gw",  "--no-dhcp",
                                    "--no-dhcpv6",  "--no-ndp",
                                    "--no-ra"};
  std::vector<char*> argv;
  argv.reserve(words.size() + 1);
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  const int error =
      ::posix_spawnp(&pid_, argv[0], nullptr, nullptr, argv.data(), environ);
  if (error != 0) Check("start passt", ErrnoError(error, "posix_spawn"));
  for (int i = 0; i < 500 && !std::filesystem::exists(socket); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

Passt::~Passt() {
  if (pid_ <= 0) return;
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
}

}  // namespace catnap::bench
