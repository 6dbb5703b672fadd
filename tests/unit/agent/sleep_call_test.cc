#include <catch2/catch.hpp>
#include <chrono>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "agent/client.h"
#include "agent/sleep.h"

namespace catnap::agent {
namespace {

using namespace std::chrono_literals;

class StoppedClock final : public base::Clock {
 public:
  std::chrono::steady_clock::time_point Now() override { return now; }
  std::chrono::system_clock::time_point WallNow() override { return {}; }
  std::chrono::steady_clock::time_point now{};
};

// An agent that answers when the test says so.
class ScriptedAgent final : public ByteChannel, private Session::Handler {
 public:
  struct Request {
    Kind kind;
    Encoded fields;
  };

  size_t Send(std::span<const uint8_t> bytes) override {
    session_.Receive(bytes);
    return bytes.size();
  }
  Client* client() { return &client_; }
  StoppedClock& clock() { return clock_; }
  std::map<uint32_t, Request>& requests() { return requests_; }
  void Answer(uint32_t stream, const Encoded& fields) {
    session_.Close(stream, fields);
    Flush();
  }
  void Refuse(uint32_t stream, ResetCode code) {
    session_.Reset(stream, code, "no");
    Flush();
  }
  const std::vector<uint32_t>& resets() const { return resets_; }

 private:
  void Flush() {
    const std::vector<uint8_t> bytes(session_.unsent().begin(),
                                     session_.unsent().end());
    session_.Sent(bytes.size());
    client_.OnReceive(bytes);
  }
  void OnHello(const Hello&) override {}
  void OnPong(Session::Bytes) override {}
  void OnOpen(uint32_t stream, uint32_t kind, Session::Bytes request) override {
    requests_.emplace(stream, Request{static_cast<Kind>(kind),
                                      {request.begin(), request.end()}});
  }
  void OnData(uint32_t, uint8_t, Session::Bytes, bool) override {}
  void OnMessage(uint32_t, Session::Bytes) override {}
  void OnCredit(uint32_t, uint8_t) override {}
  void OnClose(uint32_t, Session::Bytes) override {}
  void OnReset(uint32_t stream, ResetCode, std::string_view) override {
    resets_.push_back(stream);
  }

  std::map<uint32_t, Request> requests_;
  std::vector<uint32_t> resets_;
  Session session_{Session::Role::kGuest, this, {.name = "test"}};
  StoppedClock clock_;
  Client client_{this, &clock_, {}};
};

struct FreezeCall {
  FreezeCall(ScriptedAgent* agent, const FreezeOptions& options,
             const CallLimits& limits = {}) {
    Freeze(agent->client(), options, limits,
           [this](absl::StatusOr<FreezeReport> report) {
             result = std::move(report);
           });
  }
  std::optional<absl::StatusOr<FreezeReport>> result;
};

TEST_CASE("A freeze asks for what it was told and reports how long it took") {
  ScriptedAgent agent;
  const FreezeCall call(&agent, {.bound = 70ms, .flush = true});
  REQUIRE(agent.requests().size() == 1);
  const auto& [stream, request] = *agent.requests().begin();
  CHECK(request.kind == Kind::kFreeze);
  FreezeRequest asked;
  REQUIRE(Decode(request.fields, &asked));
  CHECK(asked.bound_ms == 70);
  CHECK(asked.flush);
  agent.Answer(stream, Encode(SleepResult{.flush_ns = 2, .freeze_ns = 1}));
  REQUIRE(call.result.has_value());
  REQUIRE(call.result->ok());
  CHECK((*call.result)->flush == 2ns);
  CHECK((*call.result)->freeze == 1ns);
  CHECK(agent.requests().size() == 1);
}

TEST_CASE("A freeze that the guest could not do is no reason to thaw") {
  ScriptedAgent agent;
  const FreezeCall call(&agent, {});
  agent.Answer(2, Encode(SleepResult{.error = 110, .text = "stuck\x01"}));
  REQUIRE(call.result.has_value());
  CHECK(call.result->status().code() == absl::StatusCode::kFailedPrecondition);
  CHECK(call.result->status().message() == "guest: stuck?");
  CHECK(agent.requests().size() == 1);
}

TEST_CASE("A freeze of unknown end is followed by a thaw") {
  SECTION("deadline") {
    ScriptedAgent agent;
    agent.clock().now = {};
    const FreezeCall call(&agent, {}, agent.clock().now + 1s);
    agent.clock().now += 1s;
    agent.client()->OnTime();
    REQUIRE(call.result.has_value());
    CHECK(call.result->status().code() == absl::StatusCode::kDeadlineExceeded);
    CHECK(agent.resets() == std::vector<uint32_t>{2});
    REQUIRE(agent.requests().contains(4));
    CHECK(agent.requests().at(4).kind == Kind::kThaw);
  }
  SECTION("answer that is none") {
    ScriptedAgent agent;
    const FreezeCall call(&agent, {});
    agent.Answer(2, {0xff});
    REQUIRE(call.result.has_value());
    CHECK(call.result->status().code() == absl::StatusCode::kUnavailable);
    REQUIRE(agent.requests().contains(4));
    CHECK(agent.requests().at(4).kind == Kind::kThaw);
  }
  SECTION("agent that does not know it") {
    ScriptedAgent agent;
    const FreezeCall call(&agent, {});
    agent.Refuse(2, ResetCode::kUnknown);
    REQUIRE(call.result.has_value());
    CHECK(call.result->status().code() == absl::StatusCode::kUnimplemented);
  }
}

TEST_CASE("A wake brings this host's time and fresh randomness") {
  ScriptedAgent agent;
  std::vector<absl::StatusOr<std::string>> results;
  const auto wake = [&](const WakeOptions& options) {
    Wake(agent.client(), options, std::nullopt,
         [&results](absl::StatusOr<std::string> left_out) {
           results.push_back(std::move(left_out));
         });
  };
  WakeOptions options;
  options.is_copy = true;
  options.hostname = "fork-1";
  options.machine_id = MachineId{1, 2, 3};
  options.mac = MacAddress{2, 0, 0, 0, 0, 1};
  options.generation = 9;
  options.env = {"A=b"};
  const auto before = std::chrono::system_clock::now();
  wake(options);
  wake({});
  REQUIRE(agent.requests().size() == 2);
  CHECK(agent.requests().at(2).kind == Kind::kClock);
  CHECK(agent.requests().at(4).kind == Kind::kClock);
  agent.Answer(2, Encode(SleepResult{.monotonic_ns = 77}));
  // An older one.
  agent.Refuse(4, ResetCode::kUnknown);
  const auto after = std::chrono::system_clock::now();
  REQUIRE(agent.requests().size() == 4);
  WakeRequest first;
  WakeRequest second;
  REQUIRE(agent.requests().at(6).kind == Kind::kWake);
  REQUIRE(agent.requests().at(8).kind == Kind::kWake);
  REQUIRE(Decode(agent.requests().at(6).fields, &first));
  REQUIRE(Decode(agent.requests().at(8).fields, &second));
  CHECK(first.monotonic_ns == 77);
  CHECK(second.monotonic_ns == 0);
  CHECK(first.is_copy);
  CHECK(first.hostname == "fork-1");
  CHECK(first.machine_id == options.machine_id);
  CHECK(first.mac == options.mac);
  CHECK(first.generation == 9);
  CHECK(first.set_env);
  CHECK(first.env == *options.env);
  CHECK(first.entropy.size() == 64);
  CHECK_FALSE(second.is_copy);
  CHECK_FALSE(second.set_env);
  CHECK_FALSE(second.machine_id.has_value());
  CHECK_FALSE(second.mac.has_value());
  CHECK(second.connections == Connections::kKeep);
  CHECK(second.entropy != first.entropy);
  const auto at = [](const WakeRequest& request) {
    return std::chrono::system_clock::time_point(
        std::chrono::nanoseconds(request.wall_ns));
  };
  CHECK(at(first) >= before);
  CHECK(at(second) >= at(first));
  CHECK(at(second) <= after);

  agent.Answer(6, Encode(SleepResult{.text = "machine-id: no\n"}));
  agent.Answer(8, Encode(SleepResult{.error = 1, .text = "clock"}));
  REQUIRE(results.size() == 2);
  REQUIRE(results[0].ok());
  CHECK(*results[0] == "machine-id: no?");
  CHECK(results[1].status().code() == absl::StatusCode::kFailedPrecondition);

  options.hostname = std::string(65, 'x');
  wake(options);
  REQUIRE(results.size() == 3);
  CHECK(results[2].status().code() == absl::StatusCode::kInvalidArgument);
  CHECK(agent.requests().size() == 4);
}

TEST_CASE("A wake that cannot be sure of the time asks for it again") {
  ScriptedAgent agent;
  std::optional<absl::StatusOr<std::string>> woken;
  Wake(agent.client(), {}, std::nullopt,
       [&woken](absl::StatusOr<std::string> left_out) {
         woken = std::move(left_out);
       });
  uint64_t now = 100;
  for (const uint32_t stream : {2U, 4U, 6U}) {
    REQUIRE(agent.requests().at(stream).kind == Kind::kClock);
    // The second is the one to go by.
    std::this_thread::sleep_for(stream == 4 ? 3ms : 300ms);
    agent.Answer(stream, Encode(SleepResult{.monotonic_ns = ++now}));
  }
  WakeRequest request;
  REQUIRE(Decode(agent.requests().at(8).fields, &request));
  CHECK(request.monotonic_ns == 102);
  CHECK_FALSE(woken.has_value());
  agent.client()->Close(absl::UnavailableError("gone"));
  REQUIRE(woken.has_value());
  CHECK(woken->status().code() == absl::StatusCode::kUnavailable);
}

TEST_CASE("Calls end when the connection does") {
  ScriptedAgent agent;
  const FreezeCall call(&agent, {});
  absl::Status thawed;
  agent.client()->Close(absl::UnavailableError("gone"));
  REQUIRE(call.result.has_value());
  CHECK(call.result->status().code() == absl::StatusCode::kUnavailable);
  Thaw(agent.client(), std::nullopt,
       [&thawed](absl::Status status) { thawed = std::move(status); });
  CHECK(thawed.code() == absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace catnap::agent
