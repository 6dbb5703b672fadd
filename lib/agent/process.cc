#include "agent/process.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "base/status.h"
#include "state/decoder.h"
#include "state/encoder.h"

namespace catnap::agent {
namespace {

// More than an agent has; a list is bounded by its frame anyway.
constexpr size_t kMaxProcesses = 4096;
constexpr size_t kMaxProcessEntryBytes = 16 << 10;

absl::Status Malformed(const char* what) {
  return Error(absl::StatusCode::kUnavailable,
               "guest agent: malformed {} from the guest", what);
}

}  // namespace

class GuestProcess::Handler final : public StreamHandler {
 public:
  Handler(Client* client, ProcessEvents events, std::string rest, bool end,
          std::optional<uint64_t> attached_to = {})
      : client_(client),
        events_(std::move(events)),
        rest_(std::move(rest)),
        end_(end),
        attached_to_(attached_to) {}

  // The stream's id is known only after the handler was given away.
  void Attach(uint32_t stream) {
    {
      base::MutexLock lock(&mutex_);
      stream_ = stream;
    }
    OnWritable();
  }
  uint32_t stream() {
    base::MutexLock lock(&mutex_);
    return stream_;
  }

  size_t OnData(uint8_t channel, std::span<const uint8_t> data,
                bool /*end*/) override {
    const bool known = channel == kStdout || channel == kStderr;
    if (!known || events_.on_output == nullptr || data.empty()) {
      return data.size();
    }
    return std::min(events_.on_output(channel, data), data.size());
  }

  void OnMessage(Fields fields) override {
    Started started;
    if (events_.on_started != nullptr && Decode(fields, &started)) {
      events_.on_started(started);
    }
  }

  // Sends what is left of the request's stdin.
  void OnWritable() override {
    base::MutexLock lock(&mutex_);
    again_ = true;  // Whoever sends now looks again.
    if (stream_ == 0 || sending_) return;
    sending_ = true;
    while (std::exchange(again_, false) && !rest_.empty()) {
      // The lock is not held while the client is called.
      std::string sending = std::exchange(rest_, {});
      const uint32_t stream = stream_;
      mutex_.Unlock();
      const size_t sent = client_->Write(
          stream, kStdin,
          {reinterpret_cast<const uint8_t*>(sending.data()), sending.size()},
          end_);
      sending.erase(0, sent);
      mutex_.Lock();
      rest_ = std::move(sending);
    }
    sending_ = false;
  }

  void OnEnd(absl::StatusOr<Encoded> result) override {
    if (events_.on_exit == nullptr) return;
    ExitReport report;
    if (attached_to_.has_value() && absl::IsUnimplemented(result.status())) {
      std::move(events_.on_exit)(
          Error(absl::StatusCode::kNotFound,
                "the guest knows no process {}: it ended long ago, or before "
                "the guest was started",
                *attached_to_));
    } else if (!result.ok()) {
      std::move(events_.on_exit)(result.status());
    } else if (!Decode(*result, &report)) {
      std::move(events_.on_exit)(Malformed("exit report"));
    } else {
      std::move(events_.on_exit)(std::move(report));
    }
  }

  bool stdin_pending() {
    base::MutexLock lock(&mutex_);
    return sending_ || !rest_.empty();
  }
  bool stdin_open() const { return !end_; }

 private:
  Client* const client_;  // Not owned.
  ProcessEvents events_;  // Touched by the stream's calls only.
  base::Mutex mutex_;
  uint32_t stream_ ABSL_GUARDED_BY(mutex_) = 0;
  std::string rest_ ABSL_GUARDED_BY(mutex_);
  bool sending_ ABSL_GUARDED_BY(mutex_) = false;
  bool again_ ABSL_GUARDED_BY(mutex_) = false;
  const bool end_;  // stdin ends behind rest_.
  const std::optional<uint64_t> attached_to_;
};

GuestProcess::GuestProcess(Client* client, std::shared_ptr<Handler> handler)
    : client_(client), handler_(std::move(handler)) {}

absl::StatusOr<std::shared_ptr<GuestProcess>> GuestProcess::Start(
    Client* client, ExecRequest request, ProcessEvents events,
    const CallLimits& limits) {
  std::string rest;
  const bool open = request.stdin_open;
  if (request.stdin_data.size() > kMaxInlineData) {
    rest = request.stdin_data.substr(kMaxInlineData);
    request.stdin_data.resize(kMaxInlineData);
    request.stdin_open = true;
  }
  auto handler = std::make_shared<Handler>(client, std::move(events),
                                           std::move(rest), !open);
  CATNAP_ASSIGN_OR_RETURN(
      const uint32_t stream,
      client->Open(Kind::kExec, Encode(request), handler, limits));
  handler->Attach(stream);
  return std::shared_ptr<GuestProcess>(
      new GuestProcess(client, std::move(handler)));
}

absl::StatusOr<std::shared_ptr<GuestProcess>> GuestProcess::Attach(
    Client* client, uint64_t process_id, ProcessEvents events) {
  auto handler = std::make_shared<Handler>(client, std::move(events), "", true,
                                           process_id);
  CATNAP_ASSIGN_OR_RETURN(
      const uint32_t stream,
      client->Open(Kind::kAttach, Encode(Started{.process_id = process_id}),
                   handler));
  handler->Attach(stream);
  return std::shared_ptr<GuestProcess>(
      new GuestProcess(client, std::move(handler)));
}

absl::StatusOr<size_t> GuestProcess::Write(std::span<const uint8_t> data,
                                           bool end) {
  if (!handler_->stdin_open()) {
    return absl::FailedPreconditionError("stdin was closed at the start");
  }
  if (handler_->stdin_pending()) return 0;  // What came first goes first.
  return client_->Write(handler_->stream(), kStdin, data, end);
}

void GuestProcess::Consume(uint8_t channel, size_t bytes) {
  client_->Consume(handler_->stream(), channel, bytes);
}

void GuestProcess::Signal(int signal) {
  client_->SendMessage(
      handler_->stream(),
      Encode(ExecControl{.signal = static_cast<uint32_t>(signal)}));
}

void GuestProcess::Resize(WindowSize size) {
  client_->SendMessage(handler_->stream(), Encode(ExecControl{.window = size}));
}

void GuestProcess::Detach() {
  client_->SendMessage(handler_->stream(), Encode(ExecControl{.detach = true}));
  client_->Cancel(handler_->stream());
}

uint32_t GuestProcess::stream() const { return handler_->stream(); }

void GuestProcess::Kill() { client_->Cancel(handler_->stream()); }

absl::StatusOr<uint32_t> Exec(
    Client* client, ExecRequest request, uint64_t max_output_bytes,
    const CallLimits& limits,
    absl::AnyInvocable<void(absl::StatusOr<ExecOutcome>) &&> done) {
  struct Collected {
    ExecOutcome outcome;
    uint64_t room;
    bool cut = false;
  };
  auto collected = std::make_shared<Collected>();
  collected->room = max_output_bytes;
  request.output_limit_bytes = max_output_bytes;
  ProcessEvents events;
  events.on_output = [collected](uint8_t channel,
                                 std::span<const uint8_t> data) {
    const size_t kept = std::min<uint64_t>(data.size(), collected->room);
    std::string& to = channel == kStdout ? collected->outcome.stdout_data
                                         : collected->outcome.stderr_data;
    to.append(reinterpret_cast<const char*>(data.data()), kept);
    collected->room -= kept;
    collected->cut |= kept < data.size();
    return data.size();
  };
  events.on_exit = [collected, done = std::move(done)](
                       absl::StatusOr<ExitReport> report) mutable {
    if (!report.ok()) {
      std::move(done)(report.status());
      return;
    }
    collected->outcome.report = *std::move(report);
    collected->outcome.report.truncated |= collected->cut;
    std::move(done)(std::move(collected->outcome));
  };
  CATNAP_ASSIGN_OR_RETURN(const std::shared_ptr<GuestProcess> process,
                          GuestProcess::Start(client, std::move(request),
                                              std::move(events), limits));
  return process->stream();
}

namespace {

class ListHandler final : public StreamHandler {
 public:
  using Done =
      absl::AnyInvocable<void(absl::StatusOr<std::vector<ProcessEntry>>) &&>;
  explicit ListHandler(Done done) : done_(std::move(done)) {}

  size_t OnData(uint8_t /*channel*/, std::span<const uint8_t> data,
                bool /*end*/) override {
    return data.size();
  }
  void OnEnd(absl::StatusOr<Encoded> result) override {
    if (!result.ok()) {
      std::move(done_)(result.status());
      return;
    }
    std::vector<ProcessEntry> entries;
    state::StateDecoder in(*result);
    bool ok = true;
    while (ok && in.Next()) {
      if (in.id() != 1) continue;
      ok = entries.size() < kMaxProcesses &&
           Decode(in.Bytes(kMaxProcessEntryBytes), &entries.emplace_back());
    }
    if (!ok || !in.ok()) {
      std::move(done_)(Malformed("process list"));
      return;
    }
    std::move(done_)(std::move(entries));
  }

 private:
  Done done_;
};

}  // namespace

absl::Status ListProcesses(Client* client, const CallLimits& limits,
                           ListHandler::Done done) {
  return client
      ->Open(Kind::kListProcesses, {},
             std::make_shared<ListHandler>(std::move(done)), limits)
      .status();
}

}  // namespace catnap::agent
