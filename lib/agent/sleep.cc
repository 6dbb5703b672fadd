#include "agent/sleep.h"

#include <algorithm>
#include <cerrno>
#include <memory>
#include <utility>

#include "base/random.h"
#include "base/status.h"

namespace catnap::agent {
namespace {

constexpr size_t kEntropyBytes = 64;

// What the guest says is shown, but only as text.
std::string Printable(std::string text) {
  for (char& c : text) {
    if (c < ' ' || c > '~') c = '?';
  }
  return text;
}

absl::Status StatusOf(const SleepResult& result) {
  if (result.error == 0) return absl::OkStatus();
  return Error(result.error == ECANCELED
                   ? absl::StatusCode::kCancelled
                   : absl::StatusCode::kFailedPrecondition,
               "guest: {}", Printable(result.text));
}

// A request whose only answer is a result.
class SleepCall final : public StreamHandler {
 public:
  using Done = absl::AnyInvocable<void(absl::Status, SleepResult) &&>;
  explicit SleepCall(Done done) : done_(std::move(done)) {}

  static void Start(Client* client, Kind kind, const Encoded& request,
                    const CallLimits& limits, Done done) {
    auto call = std::make_shared<SleepCall>(std::move(done));
    const auto stream = client->Open(kind, request, call, limits);
    if (!stream.ok()) std::move(call->done_)(stream.status(), {});
  }

  size_t OnData(uint8_t /*channel*/, std::span<const uint8_t> data,
                bool /*end*/) override {
    return data.size();
  }
  void OnEnd(absl::StatusOr<Encoded> fields) override {
    SleepResult result;
    absl::Status status = fields.status();
    if (status.ok() && !Decode(*fields, &result)) {
      status = absl::UnavailableError("guest agent: malformed answer");
    }
    if (status.ok()) status = StatusOf(result);
    std::move(done_)(std::move(status), std::move(result));
  }

 private:
  Done done_;
};

std::chrono::nanoseconds Duration(uint64_t ns) {
  return std::chrono::nanoseconds(
      static_cast<int64_t>(std::min<uint64_t>(ns, INT64_MAX)));
}

uint64_t Nanoseconds(std::chrono::nanoseconds time) {
  return static_cast<uint64_t>(std::max<int64_t>(time.count(), 0));
}

// Finds out what the guest's monotonic clock shows when, which no delay on the
// way changes afterwards, and sends the request with that.
class WakeCall final : public std::enable_shared_from_this<WakeCall> {
 public:
  using Done = absl::AnyInvocable<void(absl::StatusOr<std::string>) &&>;
  WakeCall(Client* client, WakeRequest request, CallLimits limits, Done done)
      : client_(client),
        request_(std::move(request)),
        limits_(std::move(limits)),
        done_(std::move(done)) {}

  void Start() {
    const auto sent = std::chrono::steady_clock::now();
    const auto wall = std::chrono::system_clock::now();
    SleepCall::Start(
        client_, Kind::kClock, {}, limits_,
        [self = shared_from_this(), sent, wall](const absl::Status& status,
                                                const SleepResult& result) {
          self->OnClock(sent, wall, status, result);
        });
  }

 private:
  static constexpr int kMostTries = 3;
  static constexpr std::chrono::milliseconds kGoodEnough{2};

  void OnClock(std::chrono::steady_clock::time_point sent,
               std::chrono::system_clock::time_point wall,
               const absl::Status& status, const SleepResult& result) {
    if (!status.ok() && !absl::IsUnimplemented(status)) {
      return std::move(done_)(status);
    }
    if (!status.ok() || result.monotonic_ns == 0) {
      // An agent of an older library: what is sent is late by the way there.
      request_.monotonic_ns = 0;
      return Send();
    }
    const auto took = std::chrono::steady_clock::now() - sent;
    if (took < shortest_) {
      shortest_ = took;
      request_.wall_ns = Nanoseconds(wall.time_since_epoch() + took / 2);
      request_.monotonic_ns = result.monotonic_ns;
    }
    if (shortest_ > kGoodEnough && ++tries_ < kMostTries) return Start();
    Send();
  }

  void Send() {
    if (request_.monotonic_ns == 0) {
      request_.wall_ns =
          Nanoseconds(std::chrono::system_clock::now().time_since_epoch());
    }
    SleepCall::Start(client_, Kind::kWake, Encode(request_), limits_,
                     [self = shared_from_this()](absl::Status status,
                                                 const SleepResult& result) {
                       if (!status.ok()) {
                         std::move(self->done_)(std::move(status));
                       } else {
                         std::move(self->done_)(Printable(result.text));
                       }
                     });
  }

  Client* const client_;
  WakeRequest request_;
  const CallLimits limits_;
  Done done_;
  int tries_ = 0;
  std::chrono::nanoseconds shortest_ = std::chrono::nanoseconds::max();
};

// Without an answer nobody knows what the guest does: it is to run on. Answers
// with an errno come from a guest that runs.
bool MayBeFrozen(const absl::Status& status, const SleepResult& result) {
  return !status.ok() && result.error == 0;
}

}  // namespace

void Freeze(Client* client, const FreezeOptions& options,
            const CallLimits& limits,
            absl::AnyInvocable<void(absl::StatusOr<FreezeReport>) &&> done) {
  FreezeRequest request;
  request.bound_ms = static_cast<uint32_t>(
      std::clamp<int64_t>(options.bound.count(), 1, 60'000));
  request.flush = options.flush;
  SleepCall::Start(
      client, Kind::kFreeze, Encode(request), limits,
      [client, done = std::move(done)](absl::Status status,
                                       const SleepResult& result) mutable {
        if (MayBeFrozen(status, result)) {
          Thaw(client, std::nullopt, [](const absl::Status&) {});
        }
        if (!status.ok()) {
          std::move(done)(std::move(status));
          return;
        }
        std::move(done)(FreezeReport{.flush = Duration(result.flush_ns),
                                     .freeze = Duration(result.freeze_ns)});
      });
}

void Wake(Client* client, const WakeOptions& options, const CallLimits& limits,
          absl::AnyInvocable<void(absl::StatusOr<std::string>) &&> done) {
  if (options.hostname.size() > kMaxHostnameBytes) {
    std::move(done)(Error(absl::StatusCode::kInvalidArgument,
                          "a host name of {} bytes, at most {}",
                          options.hostname.size(), kMaxHostnameBytes));
    return;
  }
  WakeRequest request;
  request.is_copy = options.is_copy;
  request.entropy.resize(kEntropyBytes);
  const absl::Status drawn = base::FillRandom(request.entropy);
  if (!drawn.ok()) {
    std::move(done)(drawn);
    return;
  }
  request.hostname = options.hostname;
  request.machine_id = options.machine_id;
  request.mac = options.mac;
  request.generation = options.generation;
  request.connections = options.connections;
  request.set_env = options.env.has_value();
  if (options.env.has_value()) request.env = *options.env;
  std::make_shared<WakeCall>(client, std::move(request), limits,
                             std::move(done))
      ->Start();
}

void Thaw(Client* client, const CallLimits& limits,
          absl::AnyInvocable<void(absl::Status) &&> done) {
  SleepCall::Start(client, Kind::kThaw, {}, limits,
                   [done = std::move(done)](absl::Status status,
                                            const SleepResult&) mutable {
                     std::move(done)(std::move(status));
                   });
}

}  // namespace catnap::agent
