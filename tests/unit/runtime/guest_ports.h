#ifndef CATNAP_TESTS_UNIT_RUNTIME_GUEST_PORTS_H_
#define CATNAP_TESTS_UNIT_RUNTIME_GUEST_PORTS_H_

#include <catch2/catch.hpp>
#include <chrono>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "base/clock.h"
#include "io/event_loop.h"
#include "runtime/connect_to_guest.h"
#include "runtime/relay_group.h"
#include "runtime/traffic.h"
#include "support/running_agent.h"
#include "support/tcp.h"

namespace catnap::runtime {

inline std::chrono::steady_clock::time_point Soon() {
  return std::chrono::steady_clock::now() + std::chrono::seconds(60);
}

// Bytes that show where they belong.
inline std::string Pattern(size_t size, uint32_t seed = 1) {
  std::string text(size, '\0');
  uint32_t value = seed;
  for (char& c : text) {
    value = value * 1'664'525 + 1'013'904'223;
    c = static_cast<char>(value >> 24);
  }
  return text;
}

// Waits for what a connection does by itself, such as closing.
template <typename Condition>
bool Eventually(Condition condition) {
  const auto deadline = Soon();
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

inline std::unique_ptr<io::EventLoop> MakeLoop() {
  auto loop = io::EventLoop::Create({});
  REQUIRE(loop.ok());
  return *std::move(loop);
}

// An agent that runs here, so that its guest's ports are this machine's.
class GuestPorts {
 public:
  explicit GuestPorts(
      const std::shared_ptr<agent::ServiceListener>& services = nullptr)
      : agent_(CATNAP_GUEST_AGENT, services),
        client_(agent_.client(), [](agent::Client*) {}),
        loop_(MakeLoop()),
        traffic_(std::make_shared<Traffic>(&clock_)),
        group_(std::make_unique<RelayGroup>(loop_.get(), traffic_, 1024)) {
    if (services != nullptr) services->OnClient(client_);
  }
  // All relays let go of the client first, those of others, too.
  ~GuestPorts() {
    group_.reset();
    client_->Close(absl::CancelledError("the test is over"));
    Eventually([this] { return client_.use_count() == 1; });
  }

  absl::StatusOr<base::UniqueFd> Connect(
      uint16_t port, std::chrono::steady_clock::time_point deadline = Soon()) {
    std::promise<absl::StatusOr<base::UniqueFd>> done;
    auto result = done.get_future();
    ConnectToGuest(group_.get(), client_, port, deadline,
                   [&done](absl::StatusOr<base::UniqueFd> fd) {
                     done.set_value(std::move(fd));
                   });
    return result.get();
  }

  testing::RunningAgent& agent() { return agent_; }
  const std::shared_ptr<agent::Client>& client() { return client_; }
  io::EventLoop* loop() { return loop_.get(); }
  const std::shared_ptr<Traffic>& traffic() { return traffic_; }
  std::unique_ptr<RelayGroup>& group() { return group_; }

 private:
  base::SystemClock clock_;
  testing::RunningAgent agent_;
  std::shared_ptr<agent::Client> client_;
  std::unique_ptr<io::EventLoop> loop_;
  std::shared_ptr<Traffic> traffic_;
  std::unique_ptr<RelayGroup> group_;
};

}  // namespace catnap::runtime

#endif  // CATNAP_TESTS_UNIT_RUNTIME_GUEST_PORTS_H_
