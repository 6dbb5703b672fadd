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
  // Last, since it is late from here on.
  request.wall_ns = static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(
          std::chrono::system_clock::now().time_since_epoch())
          .count());
  SleepCall::Start(client, Kind::kWake, Encode(request), limits,
                   [done = std::move(done)](absl::Status status,
                                            const SleepResult& result) mutable {
                     if (!status.ok()) {
                       std::move(done)(std::move(status));
                     } else {
                       std::move(done)(Printable(result.text));
                     }
                   });
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
