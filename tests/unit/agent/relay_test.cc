#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <catch2/catch.hpp>
#include <future>
#include <string>
#include <thread>

#include "agent/client.h"
#include "agent/messages.h"
#include "base/mutex.h"
#include "support/running_agent.h"

namespace catnap::agent {
namespace {

using testing::RunningAgent;

sockaddr_in Address(uint32_t address, uint16_t port) {
  sockaddr_in name{};
  name.sin_family = AF_INET;
  name.sin_port = htons(port);
  name.sin_addr.s_addr = htonl(address);
  return name;
}

// Listens on a free port of the loopback.
struct Listener {
  Listener() : fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in name = Address(INADDR_LOOPBACK, 0);
    REQUIRE(::bind(fd.get(), reinterpret_cast<sockaddr*>(&name),
                   sizeof(name)) == 0);
    REQUIRE(::listen(fd.get(), 10) == 0);
    socklen_t size = sizeof(name);
    ::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&name), &size);
    port = ntohs(name.sin_port);
  }
  base::UniqueFd fd;
  uint16_t port = 0;
};

// Collects what comes; its end is the stream's.
class Collector final : public StreamHandler {
 public:
  size_t OnData(uint8_t, std::span<const uint8_t> data, bool end) override {
    received.append(data.begin(), data.end());
    if (end) ended.set_value();
    return data.size();
  }
  void OnMessage(Fields) override { connected.set_value(); }
  void OnEnd(absl::StatusOr<Encoded> result) override {
    done.set_value(std::move(result));
  }

  std::string received;
  std::promise<void> connected, ended;
  std::promise<absl::StatusOr<Encoded>> done;
};

std::span<const uint8_t> AsBytes(std::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

TEST_CASE("A connection to a guest port carries both directions and ends") {
  RunningAgent agent(CATNAP_GUEST_AGENT);
  Listener listener;
  std::thread echo([&] {
    const base::UniqueFd fd(::accept(listener.fd.get(), nullptr, nullptr));
    std::array<char, 1000> buffer{};
    ssize_t got = 0;
    while ((got = ::recv(fd.get(), buffer.data(), buffer.size(), 0)) > 0) {
      ::send(fd.get(), buffer.data(), static_cast<size_t>(got), MSG_NOSIGNAL);
    }
  });
  auto handler = std::make_shared<Collector>();
  const auto stream = agent.client()->Open(
      Kind::kConnect, Encode(PortRequest{listener.port}), handler);
  REQUIRE(stream.ok());
  handler->connected.get_future().get();
  const std::string text(50'000, 'e');
  CHECK(agent.client()->Write(*stream, kMainChannel, AsBytes(text), true) ==
        text.size());
  handler->ended.get_future().get();
  const auto result = handler->done.get_future().get();
  echo.join();
  REQUIRE(result.ok());
  CHECK(handler->received == text);
}

TEST_CASE("A port that nobody listens on is refused with the errno") {
  RunningAgent agent(CATNAP_GUEST_AGENT);
  auto handler = std::make_shared<Collector>();
  REQUIRE(agent.client()
              ->Open(Kind::kConnect, Encode(PortRequest{1}), handler)
              .ok());
  const auto fields = handler->done.get_future().get();
  REQUIRE(fields.ok());
  FileResult result;
  REQUIRE(Decode(*fields, &result));
  CHECK(result.error == ECONNREFUSED);
}

// Answers each connection of the guest with one text.
class Greeter final : public ServiceListener {
 public:
  std::shared_ptr<StreamHandler> OnConnect(Client* /*client*/, uint32_t stream,
                                           uint16_t port) override {
    handler = std::make_shared<Collector>();
    connected.set_value({stream, port});
    return handler;
  }
  std::shared_ptr<Collector> handler;
  std::promise<std::pair<uint32_t, uint16_t>> connected;
};

TEST_CASE("A program of the guest reaches a service of the host") {
  auto greeter = std::make_shared<Greeter>();
  RunningAgent agent(CATNAP_GUEST_AGENT, greeter);
  uint16_t port = 0;
  {
    const Listener free;
    port = free.port;
  }
  auto listening = std::make_shared<Collector>();
  const auto stream =
      agent.client()->Open(Kind::kListen, Encode(PortRequest{port}), listening);
  REQUIRE(stream.ok());
  listening->connected.get_future().get();
  const base::UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const sockaddr_in name = Address(INADDR_LOOPBACK + 1, port);
  REQUIRE(::connect(fd.get(), reinterpret_cast<const sockaddr*>(&name),
                    sizeof(name)) == 0);
  const auto [service, its_port] = greeter->connected.get_future().get();
  CHECK(its_port == port);
  CHECK(::send(fd.get(), "ask", 3, MSG_NOSIGNAL) == 3);
  ::shutdown(fd.get(), SHUT_WR);
  greeter->handler->ended.get_future().get();
  CHECK(greeter->handler->received == "ask");
  CHECK(agent.client()->Write(service, kMainChannel, AsBytes("answer"), true) ==
        6);
  std::string answer(100, ' ');
  const ssize_t got = ::recv(fd.get(), answer.data(), answer.size(), 0);
  REQUIRE(got == 6);
  CHECK(answer.substr(0, 6) == "answer");
  CHECK(::recv(fd.get(), answer.data(), answer.size(), 0) == 0);
  agent.client()->Cancel(*stream);
}

}  // namespace
}  // namespace catnap::agent
