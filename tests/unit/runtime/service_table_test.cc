#include "runtime/service_table.h"

#include <atomic>
#include <catch2/catch.hpp>
#include <future>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/thread_executor.h"
#include "unit/runtime/guest_ports.h"

namespace catnap::runtime {
namespace {

using testing::ConnectTcp;
using testing::ReceiveUpTo;
using testing::SendAll;
using testing::TcpServer;

constexpr uint32_t kHost = INADDR_LOOPBACK + 1;  // As the guest knows it.

// A port that nobody listens on.
uint16_t FreePort() { return TcpServer().port(); }

// A table with all that it needs, and a guest that is connected later.
class Services {
 public:
  Services() : loop_(MakeLoop()) {
    auto executor = base::ThreadExecutor::Create("services");
    REQUIRE(executor.ok());
    executor_ = *std::move(executor);
    table_ = std::make_unique<ServiceTable>(
        ServiceTableOptions{.loop = loop_.get(),
                            .executor = executor_,
                            .traffic = std::make_shared<Traffic>(&clock_)});
  }
  // The table before the guest, whose connections it has.
  ~Services() { table_.reset(); }

  GuestPorts& Start() {
    guest_.reset();  // Both would listen on the same ports.
    guest_ = std::make_unique<GuestPorts>(table_->listener());
    return *guest_;
  }
  std::unique_ptr<ServiceTable>& table() { return table_; }

 private:
  base::SystemClock clock_;
  std::unique_ptr<io::EventLoop> loop_;
  std::shared_ptr<Executor> executor_;
  std::unique_ptr<GuestPorts> guest_;
  std::unique_ptr<ServiceTable> table_;
};

// The guest listens when the agent has got to it.
base::UniqueFd ConnectWhenListening(uint16_t port) {
  base::UniqueFd fd;
  Eventually([&] {
    fd = ConnectTcp(port, kHost);
    return fd.valid();
  });
  return fd;
}

void EchoOnThread(base::UniqueFd fd) {
  std::thread([fd = std::move(fd)] { testing::Echo(fd.get()); }).detach();
}

TEST_CASE("A service hears its guest, exactly, before and after it started") {
  Services services;
  const uint16_t early = FreePort();
  const uint16_t late = FreePort();
  REQUIRE(services.table()->Set(early, EchoOnThread).ok());
  services.Start();
  REQUIRE(services.table()->Set(late, EchoOnThread).ok());
  for (const uint16_t port : {early, late}) {
    const auto fd = ConnectWhenListening(port);
    REQUIRE(fd.valid());
    const std::string text = Pattern(10'000'000, port);
    std::thread sender([&] {
      SendAll(fd.get(), text);
      ::shutdown(fd.get(), SHUT_WR);
    });
    CHECK((ReceiveUpTo(fd.get(), text.size() + 1) == text));
    sender.join();
  }
  CHECK(Eventually([&] { return services.table()->size() == 0; }));
}

TEST_CASE("A removed service is refused, and may come back") {
  Services services;
  const uint16_t port = FreePort();
  services.Start();
  for (int round = 0; round < 3; ++round) {
    REQUIRE(services.table()->Set(port, EchoOnThread).ok());
    const auto fd = ConnectWhenListening(port);
    REQUIRE(fd.valid());
    REQUIRE(SendAll(fd.get(), "x"));
    CHECK(ReceiveUpTo(fd.get(), 1) == "x");
    services.table()->Remove(port);
    CHECK(Eventually([&] { return !ConnectTcp(port, kHost).valid(); }));
    // The connection that is there goes on.
    REQUIRE(SendAll(fd.get(), "y"));
    CHECK(ReceiveUpTo(fd.get(), 1) == "y");
  }
}

TEST_CASE("Another service takes the place of one without a gap") {
  Services services;
  const uint16_t port = FreePort();
  services.Start();
  REQUIRE(
      services.table()
          ->Set(port, [](const base::UniqueFd& fd) { SendAll(fd.get(), "1"); })
          .ok());
  CHECK(ReceiveUpTo(ConnectWhenListening(port).get(), 2) == "1");
  REQUIRE(
      services.table()
          ->Set(port, [](const base::UniqueFd& fd) { SendAll(fd.get(), "2"); })
          .ok());
  CHECK(ReceiveUpTo(ConnectTcp(port, kHost).get(), 2) == "2");
}

TEST_CASE("A guest that connects again finds the services again") {
  Services services;
  const uint16_t port = FreePort();
  REQUIRE(services.table()->Set(port, EchoOnThread).ok());
  for (int round = 0; round < 3; ++round) {
    services.Start();
    const auto fd = ConnectWhenListening(port);
    REQUIRE(fd.valid());
    REQUIRE(SendAll(fd.get(), "x"));
    CHECK(ReceiveUpTo(fd.get(), 1) == "x");
  }
}

TEST_CASE("A guest that opens and closes fast collects nothing here") {
  Services services;
  const uint16_t port = FreePort();
  std::promise<void> go;
  std::atomic<int> delivered{0};
  REQUIRE(services.table()
              ->Set(port,
                    [&, gate = go.get_future().share()](base::UniqueFd) {
                      gate.wait();
                      ++delivered;
                    })
              .ok());
  services.Start();
  ConnectWhenListening(port).Reset();
  const size_t before = testing::OpenDescriptors();
  for (int i = 0; i < 1000; ++i) {
    // Whether it was taken or refused, its end is heard of.
    const auto fd = ConnectTcp(port, kHost);
    REQUIRE(fd.valid());
    ::shutdown(fd.get(), SHUT_WR);
  }
  CHECK(Eventually([&] { return services.table()->size() <= 128; }));
  // A pair for each that waits.
  CHECK(testing::OpenDescriptors() <= before + size_t{2} * 128 + 16);
  go.set_value();
  CHECK(Eventually([&] { return services.table()->size() == 0; }));
  CHECK(delivered <= 1001);
}

TEST_CASE("A table that goes takes its connections along") {
  const uint16_t port = FreePort();
  for (int round = 0; round < 10; ++round) {
    Services services;
    std::atomic<bool> gone{false};
    std::atomic<int> late{0};
    REQUIRE(services.table()
                ->Set(port,
                      [&](base::UniqueFd fd) {
                        late += gone ? 1 : 0;
                        EchoOnThread(std::move(fd));
                      })
                .ok());
    GuestPorts& guest = services.Start();
    std::atomic<bool> stop{false};
    std::vector<std::thread> threads;
    threads.reserve(4);
    for (int i = 0; i < 4; ++i) {
      threads.emplace_back([&] {
        while (!stop) {
          const auto fd = ConnectTcp(port, kHost);
          if (!SendAll(fd.get(), std::string(10'000, 'x'))) continue;
          ReceiveUpTo(fd.get(), 10'000);
        }
      });
    }
    REQUIRE(Eventually([&] { return services.table()->size() > 1; }));
    services.table().reset();
    gone = true;
    CHECK(guest.client().use_count() == 1);
    stop = true;
    for (std::thread& thread : threads) thread.join();
    CHECK(late == 0);
  }
}

TEST_CASE("Services are bounded, and none has port 0") {
  Services services;
  CHECK(services.table()->Set(0, EchoOnThread).code() ==
        absl::StatusCode::kInvalidArgument);
  for (uint16_t i = 0; i < ServiceTable::kMaxServices; ++i) {
    REQUIRE(services.table()
                ->Set(static_cast<uint16_t>(1000 + i), EchoOnThread)
                .ok());
  }
  CHECK(services.table()->Set(999, EchoOnThread).code() ==
        absl::StatusCode::kResourceExhausted);
  services.table()->Remove(1000);
  CHECK(services.table()->Set(999, EchoOnThread).ok());
}

}  // namespace
}  // namespace catnap::runtime
