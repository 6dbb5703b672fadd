#include "virtio/net/net.h"

#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <catch2/catch.hpp>
#include <cstring>
#include <memory>
#include <string>
#include <thread>

#include "linux/agent_guest.h"
#include "linux/host_network.h"
#include "net/link.h"
#include "net/policy.h"
#include "support/guest_frames.h"
#include "support/tcp.h"

namespace catnap::net {
namespace {

using test::AgentGuest;
using test::HostNetwork;

constexpr uint32_t kHost = HostNetwork::kAddress;
constexpr const char* kHostText = HostNetwork::kAddressText;
constexpr const char* kGreeting = "hello from the host\n";

// Answers one request, and lets the guest close: passt of Debian 12 loses what
// comes, and ends, before a slow guest has acknowledged the connection, and
// what comes after the guest has closed its side.
void Answer(int fd, const std::string& text) {
  if (testing::ReceiveUpTo(fd, 1).empty()) return;
  testing::SendAll(fd, text);
  testing::ReceiveUpTo(fd, 4096);
}

// Knows one name, "allowed.test", and says of it what the test wants.
class NameServer {
 public:
  NameServer() : fd_(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in name = testing::Ipv4Address(INADDR_LOOPBACK, 0);
    socklen_t size = sizeof(name);
    REQUIRE(::bind(fd_.get(), reinterpret_cast<sockaddr*>(&name), size) == 0);
    REQUIRE(::getsockname(fd_.get(), reinterpret_cast<sockaddr*>(&name),
                          &size) == 0);
    port_ = ntohs(name.sin_port);
    thread_ = std::thread([this] { Run(); });
  }
  ~NameServer() {
    const sockaddr_in name = testing::Ipv4Address(INADDR_LOOPBACK, port_);
    ::sendto(fd_.get(), "", 0, 0, reinterpret_cast<const sockaddr*>(&name),
             sizeof(name));
    thread_.join();
  }
  ResolverOptions::Server server() const {
    return {.address = IpAddress::V4(127, 0, 0, 1), .port = port_};
  }
  int questions() const { return questions_; }

 private:
  void Run() {
    for (;;) {
      test::FrameBytes question(2000);
      sockaddr_in client{};
      socklen_t size = sizeof(client);
      const ssize_t got =
          ::recvfrom(fd_.get(), question.data(), question.size(), 0,
                     reinterpret_cast<sockaddr*>(&client), &size);
      if (got <= 0) return;
      ++questions_;
      question.resize(static_cast<size_t>(got));
      // Of type A, which is the end of a question without EDNS.
      const bool asks_v4 = question[question.size() - 3] == 1;
      std::vector<test::DnsRecord> records;
      if (asks_v4) {
        records.push_back(test::AddressRecord(
            "allowed.test", IpAddress::V4(11, 22, 33, 1), 300));
      }
      const test::FrameBytes reply = test::DnsReply(question, records);
      ::sendto(fd_.get(), reply.data(), reply.size(), 0,
               reinterpret_cast<const sockaddr*>(&client), size);
    }
  }

  base::UniqueFd fd_;
  uint16_t port_ = 0;
  std::atomic<int> questions_{0};
  std::thread thread_;
};

// A guest with a network device.
class NetGuest {
 public:
  explicit NetGuest(const ResolverOptions& resolver)
      : guest_(/*vcpus=*/1, test::GuestFile("vmlinux"), "",
               [&](vmm::Machine& machine, io::EventLoop* loop) {
                 auto link = Link::Create({.resolver = resolver}, loop);
                 REQUIRE(link.ok());
                 link_ = *std::move(link);
                 REQUIRE(machine
                             .AttachVirtio(1,
                                           std::make_unique<virtio::Net>(
                                               link_, &machine.memory()),
                                           loop, base::Logger())
                             .ok());
               }) {
    guest_.CopyBusyboxIn();
  }

  // From now on the device alone holds the link, which must go before the
  // guest's loop.
  ~NetGuest() { link_.reset(); }

  Link& link() { return *link_; }
  void Set(const PolicySpec& spec) {
    auto policy = Policy::Compile(spec);
    REQUIRE(policy.ok());
    link_->SetPolicy(*std::move(policy));
  }
  // All that the command wrote, and its exit code.
  std::string Sh(const std::string& command) {
    auto outcome = guest_.Exec(
        {"/tmp/busybox", "sh", "-c",
         "PATH=/tmp/bin; exec 2>&1; " + command + "; echo code=$?"});
    INFO(outcome.status().ToString());
    REQUIRE(outcome.ok());
    return outcome->stdout_data;
  }
  // What the server at the port answers, or why not.
  std::string Fetch(uint16_t port) {
    return Sh(Ask(port, "/tmp/busybox head -n 1"));
  }
  // Connects, asks, and prints what `command` makes of the answer.
  static std::string Ask(uint16_t port, const std::string& command) {
    return "rm -f /tmp/got; /tmp/busybox nc -w 20 " + std::string(kHostText) +
           " " + std::to_string(port) + " -e /tmp/busybox sh -c 'echo hello; " +
           command + " >/tmp/got'; cat /tmp/got";
  }

 private:
  std::shared_ptr<Link> link_;
  AgentGuest guest_;
};

TEST_CASE("A Linux guest reaches what its policy opens, while it runs") {
  const HostNetwork network;
  NameServer names;
  const auto greet = [](int fd) { Answer(fd, kGreeting); };
  testing::TcpServer server(greet, kHost);
  testing::TcpServer other(greet, kHost);
  NetGuest guest({.servers = {names.server()}});

  // The link works while nothing may leave.
  CHECK_THAT(guest.Sh("/tmp/busybox ip addr"),
             Catch::Contains("10.233.117.2/29") &&
                 Catch::Contains("fd63:6174:6e61:7000::2/64"));
  CHECK_THAT(guest.Sh("/tmp/busybox ping -c 1 -W 20 10.233.117.1"),
             Catch::Contains("code=0"));
  CHECK_THAT(guest.Sh("/tmp/busybox ping -c 1 -W 20 fd63:6174:6e61:7000::1"),
             Catch::Contains("code=0"));
  CHECK_THAT(guest.Sh("/tmp/busybox udhcpc -f -n -q -i eth0 -s /no/script"),
             Catch::Contains("10.233.117.2"));
  CHECK_THAT(guest.Fetch(server.port()), !Catch::Contains(kGreeting));
  CHECK_THAT(guest.Sh("/tmp/busybox nslookup allowed.test 10.233.117.3"),
             Catch::Contains("NXDOMAIN"));
  CHECK(names.questions() == 0);
  CHECK(guest.link().stats().helper_starts == 0);

  // A range, for one port.
  guest.Set({.mode = PolicyMode::kAllow,
             .rules = {{.to = "11.22.33.0/24",
                        .ports = {{server.port(), server.port()}}}}});
  CHECK_THAT(guest.Fetch(server.port()), Catch::Contains(kGreeting));
  CHECK_THAT(guest.Fetch(other.port()), !Catch::Contains(kGreeting));

  // A name: closed until it was asked for, and no other name is.
  guest.Set({.mode = PolicyMode::kAllow,
             .rules = {{.to = "allowed.test",
                        .ports = {{server.port(), server.port()}}}}});
  CHECK_THAT(guest.Fetch(server.port()), !Catch::Contains(kGreeting));
  CHECK_THAT(guest.Sh("/tmp/busybox nslookup other.test 10.233.117.3"),
             Catch::Contains("NXDOMAIN"));
  CHECK(names.questions() == 0);
  CHECK_THAT(guest.Sh("/tmp/busybox nslookup allowed.test 10.233.117.3"),
             Catch::Contains(kHostText));
  CHECK_THAT(guest.Fetch(server.port()), Catch::Contains(kGreeting));
  CHECK_THAT(guest.Fetch(other.port()), !Catch::Contains(kGreeting));

  // Nothing again.
  guest.Set({});
  CHECK_THAT(guest.Fetch(server.port()), !Catch::Contains(kGreeting));
  const LinkStats stats = guest.link().stats();
  INFO(stats.outside.ToString());
  CHECK(stats.helper_starts >= 1);
  CHECK(stats.helper_pid == -1);
}

TEST_CASE("A Linux guest gets a long stream whole, and another helper") {
  const HostNetwork network;
  NameServer names;
  constexpr size_t kBytes = 4 << 20;
  testing::TcpServer server(
      [](int fd) { Answer(fd, std::string(kBytes, 'x')); }, kHost);
  NetGuest guest({.servers = {names.server()}});
  guest.Set({.mode = PolicyMode::kAllow, .rules = {{.to = "11.22.33.0/24"}}});
  const std::string count = NetGuest::Ask(
      server.port(), "/tmp/busybox head -c " + std::to_string(kBytes) +
                         " | /tmp/busybox wc -c");
  CHECK_THAT(guest.Sh(count), Catch::Contains(std::to_string(kBytes)));
  const pid_t pid = guest.link().stats().helper_pid;
  REQUIRE(pid > 0);
  REQUIRE(::kill(pid, SIGKILL) == 0);
  // The link comes back with another.
  const auto deadline = test::Deadline();
  while (guest.link().stats().helper_starts < 2 &&
         std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  CHECK_THAT(guest.Sh("/tmp/busybox sleep 1; " + count),
             Catch::Contains(std::to_string(kBytes)));
  CHECK(guest.link().stats().helper_deaths == 1);
}

}  // namespace
}  // namespace catnap::net
