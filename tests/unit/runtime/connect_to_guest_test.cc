#include "runtime/connect_to_guest.h"

#include <fcntl.h>
#include <signal.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "unit/runtime/guest_ports.h"

namespace catnap::runtime {
namespace {

using testing::OpenDescriptors;
using testing::ReceiveResult;
using testing::ReceiveUpTo;
using testing::SendAll;
using testing::TcpServer;

TEST_CASE("A connection to a guest port carries 100 MB each way, exactly") {
  const TcpServer echo;
  GuestPorts guest;
  auto fd = guest.Connect(echo.port());
  REQUIRE(fd.ok());
  CHECK((::fcntl(fd->get(), F_GETFL) & O_NONBLOCK) == 0);
  CHECK((::fcntl(fd->get(), F_GETFD) & FD_CLOEXEC) != 0);
  const std::string sent = Pattern(100'000'000);
  bool all = false;
  std::thread sender([&] {
    all = SendAll(fd->get(), sent);
    ::shutdown(fd->get(), SHUT_WR);
  });
  const std::string received = ReceiveUpTo(fd->get(), sent.size() + 1);
  sender.join();
  CHECK(all);
  CHECK(received.size() == sent.size());
  CHECK((received == sent));  // Not shown.
  CHECK(guest.traffic()->to_guest_bytes() == sent.size());
  CHECK(guest.traffic()->from_guest_bytes() == sent.size());
  CHECK(Eventually([&] { return guest.group()->size() == 0; }));
}

TEST_CASE("Each direction of a connection ends by itself") {
  // Answers after the question has ended.
  const TcpServer server([](int fd) {
    const std::string question = ReceiveUpTo(fd, 100);
    SendAll(fd, "answer to " + question);
  });
  GuestPorts guest;
  auto fd = guest.Connect(server.port());
  REQUIRE(fd.ok());
  REQUIRE(SendAll(fd->get(), "ask"));
  ::shutdown(fd->get(), SHUT_WR);
  CHECK(ReceiveUpTo(fd->get(), 100) == "answer to ask");
  CHECK(ReceiveResult(fd->get()) == 0);

  // And the other way: the guest ends first and still hears.
  std::promise<std::string> heard;
  const TcpServer listener([&heard](int at) {
    SendAll(at, "hello");
    ::shutdown(at, SHUT_WR);
    heard.set_value(ReceiveUpTo(at, 100));
  });
  auto other = guest.Connect(listener.port());
  REQUIRE(other.ok());
  CHECK(ReceiveUpTo(other->get(), 100) == "hello");
  REQUIRE(SendAll(other->get(), "bye"));
  other->Reset();
  CHECK(heard.get_future().get() == "bye");
}

TEST_CASE("What was sent before a close arrives") {
  std::promise<std::string> heard;
  const std::string sent = Pattern(1'000'000);
  const TcpServer server(
      [&](int fd) { heard.set_value(ReceiveUpTo(fd, sent.size() + 1)); });
  GuestPorts guest;
  auto fd = guest.Connect(server.port());
  REQUIRE(fd.ok());
  REQUIRE(SendAll(fd->get(), sent));
  fd->Reset();
  CHECK((heard.get_future().get() == sent));
}

TEST_CASE("A port where nothing listens is UNAVAILABLE and says what to do") {
  uint16_t port = 0;
  {
    const TcpServer gone;
    port = gone.port();
  }
  GuestPorts guest;
  const auto fd = guest.Connect(port);
  CHECK(fd.status().code() == absl::StatusCode::kUnavailable);
  CHECK(std::string(fd.status().message()) ==
        "nothing listens on port " + std::to_string(port) +
            " of the guest; start the service and have it listen on 127.0.0.1 "
            "or 0.0.0.0");
  CHECK(guest.Connect(0).status().code() == absl::StatusCode::kInvalidArgument);
  CHECK(Eventually([&] { return guest.group()->size() == 0; }));
}

TEST_CASE("An agent that stands still is DEADLINE_EXCEEDED") {
  const TcpServer echo;
  GuestPorts guest;
  REQUIRE(guest.Connect(echo.port()).ok());
  ::kill(guest.agent().pid(), SIGSTOP);
  const auto fd = guest.Connect(echo.port(), std::chrono::steady_clock::now() +
                                                 std::chrono::milliseconds(50));
  ::kill(guest.agent().pid(), SIGCONT);
  CHECK(fd.status().code() == absl::StatusCode::kDeadlineExceeded);
  CHECK(guest.Connect(echo.port()).ok());
}

TEST_CASE("A connection that the guest resets is over for both sides") {
  const TcpServer server([](int fd) {
    ReceiveUpTo(fd, 1);
    const linger abort{.l_onoff = 1, .l_linger = 0};
    ::setsockopt(fd, SOL_SOCKET, SO_LINGER, &abort, sizeof(abort));
  });
  GuestPorts guest;
  auto fd = guest.Connect(server.port());
  REQUIRE(fd.ok());
  REQUIRE(SendAll(fd->get(), "x"));
  CHECK(ReceiveResult(fd->get()) == 0);
  CHECK_FALSE(SendAll(fd->get(), std::string(1'000'000, 'x')));
  CHECK(Eventually([&] { return guest.group()->size() == 0; }));
}

TEST_CASE("An agent that dies ends the connections with it") {
  const TcpServer echo;
  GuestPorts guest;
  auto fd = guest.Connect(echo.port());
  REQUIRE(fd.ok());
  ::kill(guest.agent().pid(), SIGKILL);
  CHECK(ReceiveResult(fd->get()) == 0);
  CHECK(Eventually([&] { return guest.group()->size() == 0; }));
  CHECK(guest.Connect(echo.port()).status().code() ==
        absl::StatusCode::kUnavailable);
}

TEST_CASE("A reader that is slow holds the guest back") {
  constexpr size_t kSize = 64 << 20;
  // The stream's credit and the kernel's buffer of a local socket; the guest's
  // end has those of TCP, which grow to some MiB.
  constexpr uint64_t kMostHere = 1 << 20;
  constexpr uint64_t kMostThere = 24 << 20;
  const std::string text = Pattern(kSize);
  std::atomic<uint64_t> sent{0};
  const TcpServer server([&](int fd) {
    while (sent < kSize) {
      const ssize_t some =
          ::send(fd, text.data() + sent,
                 std::min<size_t>(100'000, kSize - sent), MSG_NOSIGNAL);
      if (some <= 0) return;
      sent += static_cast<uint64_t>(some);
    }
  });
  GuestPorts guest;
  auto fd = guest.Connect(server.port());
  REQUIRE(fd.ok());
  std::string received;
  uint64_t most_here = 0;
  uint64_t most_there = 0;
  while (received.size() < kSize / 4) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    const uint64_t here = guest.traffic()->from_guest_bytes();
    most_here = std::max(most_here, here - received.size());
    most_there = std::max(most_there, sent - received.size());
    received += ReceiveUpTo(fd->get(), 200'000);
  }
  CHECK(most_here < kMostHere);
  CHECK(most_there < kMostThere);
  received += ReceiveUpTo(fd->get(), kSize);
  CHECK((received == text));
}

TEST_CASE("Thousands of connections one after another leave nothing behind") {
  const TcpServer echo;
  GuestPorts guest;
  REQUIRE(guest.Connect(echo.port()).ok());
  REQUIRE(Eventually([&] { return guest.group()->size() == 0; }));
  const std::string agent = std::to_string(guest.agent().pid());
  const size_t in_agent = OpenDescriptors(agent);
  const size_t here = OpenDescriptors();
  int right = 0;
  constexpr int kConnections = 3000;
  for (int i = 0; i < kConnections; ++i) {
    auto fd = guest.Connect(echo.port());
    REQUIRE(fd.ok());
    const std::string text = "connection " + std::to_string(i);
    REQUIRE(SendAll(fd->get(), text));
    ::shutdown(fd->get(), SHUT_WR);
    right += ReceiveUpTo(fd->get(), 100) == text ? 1 : 0;
  }
  CHECK(right == kConnections);
  CHECK(Eventually([&] { return guest.group()->size() == 0; }));
  CHECK(Eventually([&] { return OpenDescriptors() <= here; }));
  CHECK(Eventually([&] { return OpenDescriptors(agent) <= in_agent; }));
}

TEST_CASE("A group that closes ends its connections, whatever they do") {
  const TcpServer echo;
  GuestPorts guest;
  for (int round = 0; round < 20; ++round) {
    std::vector<base::UniqueFd> sockets;
    for (int i = 0; i < 8; ++i) {
      auto fd = guest.Connect(echo.port());
      REQUIRE(fd.ok());
      sockets.push_back(*std::move(fd));
    }
    std::vector<std::thread> threads;
    threads.reserve(sockets.size());
    for (const base::UniqueFd& fd : sockets) {
      threads.emplace_back([at = fd.get()] {
        // Until it breaks.
        while (SendAll(at, std::string(10'000, 'x'))) {
          if (ReceiveUpTo(at, 10'000).empty()) break;
        }
      });
    }
    // One more that may not be connected yet.
    std::promise<absl::Status> late;
    ConnectToGuest(guest.group().get(), guest.client(), echo.port(), Soon(),
                   [&late](const absl::StatusOr<base::UniqueFd>& fd) {
                     late.set_value(fd.status());
                   });
    guest.group().reset();
    CHECK(late.get_future().wait_for(std::chrono::seconds(0)) ==
          std::future_status::ready);
    for (std::thread& thread : threads) thread.join();
    guest.group() =
        std::make_unique<RelayGroup>(guest.loop(), guest.traffic(), 1024);
  }
  // Nobody but the fixture holds the client.
  CHECK(guest.client().use_count() == 1);
}

TEST_CASE("A group has no more relays than it may") {
  const TcpServer echo;
  GuestPorts guest;
  guest.group() =
      std::make_unique<RelayGroup>(guest.loop(), guest.traffic(), 1);
  auto first = guest.Connect(echo.port());
  REQUIRE(first.ok());
  CHECK(guest.Connect(echo.port()).status().code() ==
        absl::StatusCode::kResourceExhausted);
  first->Reset();
  REQUIRE(Eventually([&] { return guest.group()->size() == 0; }));
  CHECK(guest.Connect(echo.port()).ok());
}

}  // namespace
}  // namespace catnap::runtime
