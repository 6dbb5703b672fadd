#include "net/link.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <catch2/catch.hpp>
#include <chrono>
#include <cstring>
#include <functional>
#include <optional>
#include <string>
#include <thread>

#include "io/event_loop.h"
#include "net/helper_process.h"
#include "support/guest_frames.h"

namespace catnap::net {
namespace {

using test::FrameBytes;
using test::FromGuest;
using test::TcpFrame;
using test::ToGuest;
using test::UdpFrame;

constexpr IpAddress kPeer = IpAddress::V4(1, 2, 3, 4);
constexpr uint16_t kGuestPort = 4000;

// Until `done`, or a time that is long on every machine.
bool WaitUntil(const std::function<bool()>& done) {
  const auto deadline =
      std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!done()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

std::unique_ptr<io::EventLoop> MakeLoop() {
  auto loop = io::EventLoop::Create({});
  REQUIRE(loop.ok());
  return *std::move(loop);
}

std::shared_ptr<Link> MakeLink(LinkOptions options, io::EventLoop* loop) {
  auto link = Link::Create(std::move(options), loop);
  INFO(link.status().ToString());
  REQUIRE(link.ok());
  return *std::move(link);
}

void Set(Link& link, const PolicySpec& spec) {
  auto policy = Policy::Compile(spec);
  REQUIRE(policy.ok());
  link.SetPolicy(*std::move(policy));
}

FrameBytes Take(Link& link) {
  FrameBytes frame;
  CHECK(WaitUntil([&] { return link.TakeFrame(&frame); }));
  return frame;
}

Frame Parsed(const FrameBytes& bytes) {
  Frame frame;
  CHECK(ParseFrame(bytes, &frame) == Refusal::kNone);
  return frame;
}

FrameBytes Syn(const IpAddress& to, uint16_t port) {
  return TcpFrame(FromGuest(to), kGuestPort, port, kTcpSyn);
}

// What a shell does as the helper; its socket is descriptor 3.
LinkOptions ShellHelper(const std::string& script) {
  return {.helper = "/bin/sh", .helper_arguments = {"-c", script}};
}

bool HasChildren() {
  siginfo_t info{};
  return ::waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) == 0 ||
         errno != ECHILD;
}

// Two ends that keep frames apart, as a tap and its network do.
struct FakeTap {
  FakeTap() {
    std::array<int, 2> pair{};
    REQUIRE(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0,
                         pair.data()) == 0);
    ours = base::UniqueFd(pair[0]);
    theirs = base::UniqueFd(pair[1]);
  }
  FrameBytes Read() const {
    FrameBytes bytes(kMaxFrameBytes);
    const ssize_t got = ::read(theirs.get(), bytes.data(), bytes.size());
    bytes.resize(got < 0 ? 0 : static_cast<size_t>(got));
    return bytes;
  }
  void Write(const FrameBytes& bytes) const {
    CHECK(::write(theirs.get(), bytes.data(), bytes.size()) ==
          static_cast<ssize_t>(bytes.size()));
  }
  base::UniqueFd ours;
  base::UniqueFd theirs;
};

TEST_CASE("A link passes frames to and from a tap, as the policy says") {
  const auto loop = MakeLoop();
  FakeTap tap;
  const auto link = MakeLink({.tap = std::move(tap.ours)}, loop.get());
  link->FromGuest(Syn(kPeer, 80));
  CHECK(Parsed(Take(*link)).tcp_flags == (kTcpRst | kTcpAck));
  Set(*link, {.mode = PolicyMode::kPublicInternet});
  link->FromGuest(Syn(kPeer, 80));
  CHECK(tap.Read() == Syn(kPeer, 80));
  const FrameBytes back = TcpFrame(ToGuest(kPeer), 80, kGuestPort, kTcpAck);
  tap.Write(
      TcpFrame(ToGuest(IpAddress::V4(10, 0, 0, 1)), 80, kGuestPort, kTcpAck));
  tap.Write(back);
  CHECK(Take(*link) == back);
  CHECK(
      link->stats().gate.refused_in[static_cast<size_t>(Refusal::kUninvited)] ==
      1);
}

TEST_CASE("A tap that is none is refused") {
  const auto loop = MakeLoop();
  std::array<int, 2> pipe{};
  REQUIRE(::pipe2(pipe.data(), O_CLOEXEC) == 0);
  const base::UniqueFd other(pipe[1]);
  auto link = Link::Create({.tap = base::UniqueFd(pipe[0])}, loop.get());
  CHECK(link.status().code() == absl::StatusCode::kInvalidArgument);
  link = Link::Create(
      {.tap = base::UniqueFd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0))},
      loop.get());
  CHECK(link.status().code() == absl::StatusCode::kInvalidArgument);
  link = Link::Create({.mtu = 1279}, loop.get());
  CHECK(link.status().code() == absl::StatusCode::kInvalidArgument);
}

TEST_CASE("A tap that goes takes the link down") {
  const auto loop = MakeLoop();
  FakeTap tap;
  const auto link = MakeLink({.tap = std::move(tap.ours)}, loop.get());
  Set(*link, {.mode = PolicyMode::kUnrestricted});
  tap.theirs.Reset();
  CHECK(WaitUntil([&] { return !link->is_up(); }));
  link->FromGuest(Syn(kPeer, 80));
  CHECK(link->stats().outside.code() == absl::StatusCode::kUnavailable);
}

TEST_CASE("A guest that takes nothing slows its peers down, and loses none") {
  const auto loop = MakeLoop();
  FakeTap tap;
  const auto link = MakeLink({.tap = std::move(tap.ours)}, loop.get());
  Set(*link, {.mode = PolicyMode::kPublicInternet});
  constexpr int kFrames = 3000;
  std::thread writer([&] {
    const FrameBytes frame =
        TcpFrame(ToGuest(kPeer), 80, kGuestPort, kTcpAck, "data");
    for (int i = 0; i < kFrames; ++i) {
      if (::write(tap.theirs.get(), frame.data(), frame.size()) < 0) return;
    }
  });
  CHECK(WaitUntil([&] { return link->stats().gate.frames_in >= 256; }));
  for (int i = 0; i < kFrames; ++i) REQUIRE_FALSE(Take(*link).empty());
  writer.join();
  const GateStats stats = link->stats().gate;
  CHECK(stats.frames_in == kFrames);
  CHECK(stats.refused_in[static_cast<size_t>(Refusal::kQueueFull)] == 0);
}

TEST_CASE("A guest that floods its gateway fills a bounded queue") {
  const auto loop = MakeLoop();
  const auto link = MakeLink({}, loop.get());
  for (int i = 0; i < 1000; ++i) {
    link->FromGuest(test::ArpRequest(kGatewayV4));
  }
  int frames = 0;
  FrameBytes frame;
  while (link->TakeFrame(&frame)) ++frames;
  CHECK(frames == 256);
}

TEST_CASE("No helper runs while nothing may leave") {
  const auto loop = MakeLoop();
  const auto link = MakeLink(ShellHelper("cat <&3 >&3"), loop.get());
  link->FromGuest(Syn(kPeer, 80));
  Set(*link, {.mode = PolicyMode::kPublicInternet});
  link->FromGuest(Syn(IpAddress::V4(10, 0, 0, 1), 80));
  CHECK(link->stats().helper_starts == 0);
  link->FromGuest(Syn(kPeer, 80));
  CHECK(WaitUntil([&] { return link->stats().helper_pid > 0; }));
  const pid_t pid = link->stats().helper_pid;
  Set(*link, {});
  CHECK(link->stats().helper_pid == -1);
  CHECK(WaitUntil([&] { return ::kill(pid, 0) != 0; }));
  CHECK_FALSE(HasChildren());
  CHECK(link->stats().helper_deaths == 0);
}

TEST_CASE("A missing helper is said, and refused frames are answered") {
  const auto loop = MakeLoop();
  const auto link = MakeLink({.helper = "/no/such/passt"}, loop.get());
  Set(*link, {.mode = PolicyMode::kPublicInternet});
  link->FromGuest(Syn(kPeer, 80));
  CHECK(WaitUntil([&] { return !link->stats().outside.ok(); }));
  const LinkStats stats = link->stats();
  CHECK(stats.outside.code() == absl::StatusCode::kFailedPrecondition);
  CHECK_THAT(std::string(stats.outside.message()),
             Catch::Contains("install the package passt"));
  CHECK(link->is_up());
  link->FromGuest(Syn(kPeer, 80));
  CHECK(Parsed(Take(*link)).tcp_flags == (kTcpRst | kTcpAck));
  CHECK(stats.gate.refused_out[static_cast<size_t>(Refusal::kNoBackend)] == 1);
}

TEST_CASE("A helper that ends at once is not started over and over") {
  const auto loop = MakeLoop();
  const auto link =
      MakeLink(ShellHelper("echo out of luck >&2; exit 3"), loop.get());
  Set(*link, {.mode = PolicyMode::kPublicInternet});
  link->FromGuest(Syn(kPeer, 80));
  CHECK(WaitUntil([&] { return !link->stats().outside.ok(); }));
  CHECK_THAT(std::string(link->stats().outside.message()),
             Catch::Contains("out of luck"));
  CHECK(link->is_up());
  CHECK(link->stats().helper_deaths == 1);
  CHECK(link->stats().helper_starts == 1);
  CHECK_FALSE(HasChildren());
}

TEST_CASE("A helper that dies at work takes the link down until another runs") {
  const auto loop = MakeLoop();
  const auto link = MakeLink(ShellHelper("cat <&3 >&3"), loop.get());
  std::atomic<int> downs = 0;
  link->SetListener([&] {
    if (!link->is_up()) ++downs;
  });
  Set(*link, {.mode = PolicyMode::kPublicInternet});
  link->FromGuest(Syn(kPeer, 80));
  // It sends back what it gets, which is not for the guest.
  const auto echoed = [&] {
    return link->stats()
               .gate.refused_in[static_cast<size_t>(Refusal::kSpoofed)] > 0;
  };
  CHECK(WaitUntil(echoed));
  const pid_t pid = link->stats().helper_pid;
  REQUIRE(pid > 0);
  REQUIRE(::kill(-pid, SIGKILL) == 0);
  CHECK(WaitUntil([&] { return link->stats().helper_starts == 2; }));
  CHECK(WaitUntil([&] { return link->is_up(); }));
  const LinkStats stats = link->stats();
  CHECK(stats.helper_deaths == 1);
  CHECK(stats.helper_pid > 0);
  CHECK(stats.helper_pid != pid);
  CHECK(WaitUntil([&] { return ::kill(pid, 0) != 0; }));
  link->SetListener(nullptr);
  CHECK(downs > 0);
}

TEST_CASE("A helper that does not speak the protocol is ended") {
  const auto loop = MakeLoop();
  const auto link = MakeLink(
      ShellHelper("printf '\\377\\377\\377\\377' >&3; exec sleep 1000"),
      loop.get());
  Set(*link, {.mode = PolicyMode::kPublicInternet});
  link->FromGuest(Syn(kPeer, 80));
  CHECK(WaitUntil([&] { return !link->stats().outside.ok(); }));
  CHECK_THAT(std::string(link->stats().outside.message()),
             Catch::Contains("does not speak"));
  CHECK_FALSE(HasChildren());
}

TEST_CASE("A helper that takes nothing costs a bounded queue") {
  const auto loop = MakeLoop();
  const auto link = MakeLink(ShellHelper("exec sleep 1000"), loop.get());
  Set(*link, {.mode = PolicyMode::kPublicInternet});
  link->FromGuest(Syn(kPeer, 80));
  CHECK(WaitUntil([&] { return link->stats().helper_pid > 0; }));
  const FrameBytes frame =
      UdpFrame(FromGuest(kPeer), 1, 2, std::string(1400, 'x'));
  for (int i = 0; i < 2000; ++i) link->FromGuest(frame);
  const GateStats stats = link->stats().gate;
  CHECK(stats.refused_out[static_cast<size_t>(Refusal::kQueueFull)] > 0);
  CHECK(stats.frames_out > 300);
}

TEST_CASE("A helper may be ahead of its reader by more than the default") {
  // More than a socket of the kernel's default takes, and not more than an
  // ordinary user's. Blocks when there is no room.
  constexpr int kBytes = 256 << 10;
  auto helper = HelperProcess::Start(
      "/bin/sh", {"-c", "dd if=/dev/zero bs=64k count=4 >&3 2>/dev/null"});
  REQUIRE(helper.ok());
  int arrived = 0;
  CHECK(WaitUntil([&] {
    ::ioctl((*helper)->socket()->get(), FIONREAD, &arrived);
    return arrived >= kBytes;
  }));
  CHECK(arrived == kBytes);
}

TEST_CASE("The helper ends with the link") {
  const auto loop = MakeLoop();
  auto link = MakeLink(ShellHelper("exec sleep 1000"), loop.get());
  Set(*link, {.mode = PolicyMode::kPublicInternet});
  link->FromGuest(Syn(kPeer, 80));
  CHECK(WaitUntil([&] { return link->stats().helper_pid > 0; }));
  const pid_t pid = link->stats().helper_pid;
  link.reset();
  CHECK(::kill(pid, 0) != 0);
  CHECK_FALSE(HasChildren());
}

// This machine's own address on its way to the world; nothing: it has none.
std::optional<IpAddress> OwnAddress() {
  const base::UniqueFd fd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  sockaddr_in name{};
  name.sin_family = AF_INET;
  name.sin_port = htons(9);
  name.sin_addr.s_addr = htonl(0x01010101);
  socklen_t size = sizeof(name);
  // Sends nothing.
  if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&name), size) != 0 ||
      ::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&name), &size) != 0) {
    return std::nullopt;
  }
  IpAddress address;
  std::memcpy(address.bytes.data(), &name.sin_addr, 4);
  return address;
}

TEST_CASE(
    "passt connects a guest to the host's own address, and to nothing "
    "else of the host's") {
  const auto own = OwnAddress();
  if (!own.has_value()) {
    WARN("this machine has no route to anywhere, which passt wants");
    return;
  }
  const base::UniqueFd listener(
      ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in name{};
  name.sin_family = AF_INET;
  socklen_t size = sizeof(name);
  REQUIRE(::bind(listener.get(), reinterpret_cast<sockaddr*>(&name), size) ==
          0);
  REQUIRE(::listen(listener.get(), 4) == 0);
  REQUIRE(::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&name),
                        &size) == 0);
  const uint16_t port = ntohs(name.sin_port);

  const auto loop = MakeLoop();
  auto link = MakeLink({}, loop.get());
  Set(*link, {.mode = PolicyMode::kAllow,
              .rules = {{.to = own->ToString(), .ports = {{port, port}}}}});
  link->FromGuest(Syn(IpAddress::V4(127, 0, 0, 1), port));
  CHECK(Parsed(Take(*link)).tcp_flags == (kTcpRst | kTcpAck));
  link->FromGuest(Syn(*own, port));
  const FrameBytes bytes = Take(*link);
  const Frame answer = Parsed(bytes);
  INFO(link->stats().outside.ToString());
  CHECK(answer.tcp_flags == (kTcpSyn | kTcpAck));
  CHECK(answer.from == *own);
  const base::UniqueFd accepted(
      ::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  CHECK(accepted.valid());
  const pid_t pid = link->stats().helper_pid;
  link.reset();
  CHECK(::kill(pid, 0) != 0);
  CHECK_FALSE(HasChildren());
}

// A name server that does as the test says.
class NameServer {
 public:
  NameServer() : fd_(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in name{};
    name.sin_family = AF_INET;
    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(name);
    REQUIRE(::bind(fd_.get(), reinterpret_cast<sockaddr*>(&name), size) == 0);
    REQUIRE(::getsockname(fd_.get(), reinterpret_cast<sockaddr*>(&name),
                          &size) == 0);
    port_ = ntohs(name.sin_port);
  }
  ResolverOptions::Server server() const {
    return {.address = IpAddress::V4(127, 0, 0, 1), .port = port_};
  }
  FrameBytes Receive() {
    FrameBytes message(2000);
    socklen_t size = sizeof(client_);
    const ssize_t got =
        ::recvfrom(fd_.get(), message.data(), message.size(), 0,
                   reinterpret_cast<sockaddr*>(&client_), &size);
    message.resize(got < 0 ? 0 : static_cast<size_t>(got));
    return message;
  }
  void Send(const FrameBytes& message) const {
    CHECK(::sendto(fd_.get(), message.data(), message.size(), 0,
                   reinterpret_cast<const sockaddr*>(&client_),
                   sizeof(client_)) == static_cast<ssize_t>(message.size()));
  }

 private:
  base::UniqueFd fd_;
  uint16_t port_ = 0;
  sockaddr_in client_{};
};

FrameBytes AskFor(const std::string& name) {
  const FrameBytes question = test::DnsQuestion(77, name);
  return UdpFrame(FromGuest(kDnsV4), 5000, 53,
                  std::string(question.begin(), question.end()));
}

TEST_CASE("A name is asked of the next server when one fails") {
  const auto loop = MakeLoop();
  NameServer silent;
  NameServer good;
  const auto link =
      MakeLink({.resolver = {.servers = {silent.server(), good.server()},
                             .patience = std::chrono::milliseconds(50)}},
               loop.get());
  Set(*link, {.mode = PolicyMode::kAllow, .rules = {{.to = "example.org"}}});
  link->FromGuest(AskFor("example.org"));
  CHECK(silent.Receive().size() > 12);
  const FrameBytes question = good.Receive();
  FrameBytes wrong =
      test::DnsReply(question, {test::AddressRecord("example.org", kPeer)});
  wrong[0] ^= 1;
  good.Send(wrong);
  good.Send({1, 2, 3});
  good.Send(
      test::DnsReply(question, {test::AddressRecord("example.org", kPeer)}));
  const FrameBytes bytes = Take(*link);
  const Frame answer = Parsed(bytes);
  REQUIRE(answer.payload.size() > 12);
  CHECK(Load16(answer.payload, 0) == 77);
  CHECK((answer.payload[3] & 0xf) == 0);
  CHECK(Load16(answer.payload, 6) == 1);
}

TEST_CASE("A name that no server knows of fails in time") {
  const auto loop = MakeLoop();
  NameServer silent;
  auto link = MakeLink({.resolver = {.servers = {silent.server()},
                                     .patience = std::chrono::milliseconds(5)}},
                       loop.get());
  Set(*link, {.mode = PolicyMode::kPublicInternet});
  link->FromGuest(AskFor("example.org"));
  const FrameBytes bytes = Take(*link);
  const Frame answer = Parsed(bytes);
  REQUIRE(answer.payload.size() >= 12);
  CHECK((answer.payload[3] & 0xf) == 2);
  // A link goes with its questions.
  link->FromGuest(AskFor("example.org"));
  link.reset();
}

TEST_CASE(
    "ParseResolverConfig takes three servers, and what is none for none") {
  CHECK(ParseResolverConfig("").size() == 1);
  const auto servers = ParseResolverConfig(
      "# nameserver 9.9.9.9\nsearch a b\nnameserver\t1.1.1.1\n"
      "nameserver x\nnameserver ::1 # own\nnameserver 2.2.2.2\n"
      "nameserver 3.3.3.3\n");
  REQUIRE(servers.size() == 3);
  CHECK(servers[0].address == IpAddress::V4(1, 1, 1, 1));
  CHECK(servers[1].address.v6);
  CHECK(servers[2].address == IpAddress::V4(2, 2, 2, 2));
}

}  // namespace
}  // namespace catnap::net
