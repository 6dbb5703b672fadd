#include "runtime/port_forward.h"

#include <sys/resource.h>
#include <time.h>

#include <catch2/catch.hpp>
#include <future>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "support/lowered_limit.h"
#include "unit/runtime/guest_ports.h"

namespace catnap::runtime {
namespace {

using testing::ConnectTcp;
using testing::ReceiveResult;
using testing::ReceiveUpTo;
using testing::SendAll;
using testing::TcpServer;

PortForwardOptions To(GuestPorts* guest, uint16_t guest_port) {
  PortForwardOptions options;
  options.loop = guest->loop();
  options.traffic = guest->traffic();
  options.guest_port = guest_port;
  options.clients = [client = guest->client()](ClientDone done) {
    std::move(done)(client);
  };
  return options;
}

std::unique_ptr<PortForward> Forward(PortForwardOptions options) {
  auto forward = PortForward::Create(std::move(options));
  INFO(forward.status().ToString());
  REQUIRE(forward.ok());
  return *std::move(forward);
}

TEST_CASE("A forwarded port carries many connections at once, exactly") {
  const TcpServer echo;
  GuestPorts guest;
  const auto forward = Forward(To(&guest, echo.port()));
  CHECK(forward->host() == "127.0.0.1");
  std::vector<std::thread> threads;
  std::atomic<int> right{0};
  for (uint32_t i = 0; i < 20; ++i) {
    threads.emplace_back([&, i] {
      const auto fd = ConnectTcp(forward->port());
      const std::string text = Pattern(1'000'000, i);
      std::thread sender([&] {
        SendAll(fd.get(), text);
        ::shutdown(fd.get(), SHUT_WR);
      });
      right += ReceiveUpTo(fd.get(), text.size() + 1) == text ? 1 : 0;
      sender.join();
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(right == 20);
  CHECK(Eventually([&] { return forward->size() == 0; }));
}

TEST_CASE("An IPv6 address is listened on, too") {
  const TcpServer echo;
  GuestPorts guest;
  auto options = To(&guest, echo.port());
  options.host = "::1";
  const auto forward = Forward(std::move(options));
  CHECK(forward->host() == "::1");
  const base::UniqueFd fd(::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in6 name{};
  name.sin6_family = AF_INET6;
  name.sin6_addr = in6addr_loopback;
  name.sin6_port = htons(forward->port());
  REQUIRE(::connect(fd.get(), reinterpret_cast<const sockaddr*>(&name),
                    sizeof(name)) == 0);
  REQUIRE(SendAll(fd.get(), "six"));
  CHECK(ReceiveUpTo(fd.get(), 3) == "six");
}

TEST_CASE("An address that cannot be had is refused with the reason") {
  GuestPorts guest;
  const TcpServer taken;
  auto options = To(&guest, 80);
  options.port = taken.port();
  auto forward = PortForward::Create(std::move(options));
  CHECK(forward.status().code() == absl::StatusCode::kUnavailable);
  CHECK_THAT(std::string(forward.status().message()),
             Catch::Contains("somebody listens there already"));

  const auto [host, text] = GENERATE(table<std::string, std::string>({
      {"localhost", "must be an IPv4 or IPv6 address"},
      {"", "must be an IPv4 or IPv6 address"},
      {"1.2.3", "no interface of this machine"},  // 1.2.0.3.
      {"192.0.2.1", "no interface of this machine"},
  }));
  options = To(&guest, 80);
  options.host = host;
  forward = PortForward::Create(std::move(options));
  CHECK(forward.status().code() == absl::StatusCode::kInvalidArgument);
  CHECK_THAT(std::string(forward.status().message()), Catch::Contains(text));
}

TEST_CASE("A guest port of 0 and room for no connection are refused") {
  GuestPorts guest;
  CHECK(PortForward::Create(To(&guest, 0)).status().code() ==
        absl::StatusCode::kInvalidArgument);
  auto options = To(&guest, 80);
  options.max_connections = 0;
  const auto refused = PortForward::Create(std::move(options));
  CHECK(refused.status().code() == absl::StatusCode::kInvalidArgument);
}

TEST_CASE("A connection that the guest does not take is reset") {
  uint16_t closed = 0;
  {
    const TcpServer gone;
    closed = gone.port();
  }
  GuestPorts guest;
  const auto forward = Forward(To(&guest, closed));
  const auto fd = ConnectTcp(forward->port());
  REQUIRE(fd.valid());
  CHECK(ReceiveResult(fd.get()) == -ECONNRESET);
}

TEST_CASE("Without a client connections are reset") {
  GuestPorts guest;
  auto options = To(&guest, 80);
  SECTION("by its answer") {
    options.clients = [](ClientDone done) {
      std::move(done)(absl::UnavailableError("asleep"));
    };
  }
  SECTION("by none") {
    options.clients = [](ClientDone) {};
  }
  const auto forward = Forward(std::move(options));
  const auto fd = ConnectTcp(forward->port());
  REQUIRE(fd.valid());
  CHECK(ReceiveResult(fd.get()) == -ECONNRESET);
}

TEST_CASE("A client may come later, from another thread") {
  const TcpServer echo;
  GuestPorts guest;
  std::promise<ClientDone> asked;
  auto options = To(&guest, echo.port());
  options.clients = [&asked](ClientDone done) {
    asked.set_value(std::move(done));
  };
  const auto forward = Forward(std::move(options));
  const auto fd = ConnectTcp(forward->port());
  REQUIRE(SendAll(fd.get(), "early"));
  std::move(asked.get_future().get())(guest.client());
  CHECK(ReceiveUpTo(fd.get(), 5) == "early");
}

TEST_CASE("A client that comes when the forward is gone is let go") {
  const TcpServer echo;
  GuestPorts guest;
  std::promise<ClientDone> asked;
  auto options = To(&guest, echo.port());
  options.clients = [&asked](ClientDone done) {
    asked.set_value(std::move(done));
  };
  auto forward = Forward(std::move(options));
  const auto fd = ConnectTcp(forward->port());
  ClientDone answer = asked.get_future().get();
  forward.reset();
  CHECK(ReceiveResult(fd.get()) == -ECONNRESET);
  std::move(answer)(guest.client());
  answer = nullptr;
  CHECK(guest.client().use_count() == 1);
}

TEST_CASE("Connections above the bound wait for a place") {
  const TcpServer echo;
  GuestPorts guest;
  auto options = To(&guest, echo.port());
  options.max_connections = 2;
  const auto forward = Forward(std::move(options));
  std::vector<base::UniqueFd> sockets;
  for (int i = 0; i < 4; ++i) {
    sockets.push_back(ConnectTcp(forward->port()));
    REQUIRE(SendAll(sockets.back().get(), "x"));
  }
  for (size_t i = 0; i < 4; ++i) {
    CHECK(ReceiveUpTo(sockets[i].get(), 1) == "x");
    CHECK(forward->size() <= 2);
    sockets[i].Reset();
  }
  CHECK(Eventually([&] { return forward->size() == 0; }));
}

TEST_CASE("Without descriptors the forward waits, and does not spin") {
  const TcpServer echo;
  GuestPorts guest;
  const auto forward = Forward(To(&guest, echo.port()));
  const base::UniqueFd waiting(::socket(AF_INET, SOCK_STREAM, 0));
  const base::UniqueFd probe(::dup(waiting.get()));
  const sockaddr_in name =
      testing::Ipv4Address(INADDR_LOOPBACK, forward->port());
  {
    // Nothing above what is open.
    const test::LoweredLimit limit(RLIMIT_NOFILE,
                                   static_cast<rlim_t>(probe.get()) + 1);
    std::vector<base::UniqueFd> fill;
    while (fill.empty() || fill.back().valid()) {
      fill.emplace_back(::dup(0));
    }
    REQUIRE(::connect(waiting.get(), reinterpret_cast<const sockaddr*>(&name),
                      sizeof(name)) == 0);
    REQUIRE(SendAll(waiting.get(), "x"));
    timespec before{};
    ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
    timespec after{};
    ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
    const auto used_ms = (after.tv_sec - before.tv_sec) * 1000 +
                         (after.tv_nsec - before.tv_nsec) / 1'000'000;
    CHECK(used_ms < 250);  // Processor time: a loop would take all 500.
    CHECK(forward->size() == 0);
  }
  CHECK(ReceiveUpTo(waiting.get(), 1) == "x");
}

TEST_CASE("A forward that goes takes its connections along") {
  const TcpServer echo;
  GuestPorts guest;
  for (int round = 0; round < 20; ++round) {
    auto forward = Forward(To(&guest, echo.port()));
    const uint16_t port = forward->port();
    std::vector<std::thread> threads;
    threads.reserve(8);
    for (int i = 0; i < 8; ++i) {
      threads.emplace_back([port] {
        for (;;) {
          const auto fd = ConnectTcp(port);
          if (!fd.valid()) return;
          for (int j = 0; j < 3; ++j) {
            if (!SendAll(fd.get(), std::string(10'000, 'x'))) break;
            if (ReceiveUpTo(fd.get(), 10'000).empty()) break;
          }
        }
      });
    }
    REQUIRE(Eventually([&] { return forward->size() > 2; }));
    forward.reset();
    for (std::thread& thread : threads) thread.join();
    CHECK(guest.client().use_count() == 1);
  }
}

}  // namespace
}  // namespace catnap::runtime
