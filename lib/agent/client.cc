#include "agent/client.h"

#include <algorithm>
#include <utility>

#include "base/byte_order.h"
#include "base/status.h"

namespace catnap::agent {
namespace {

// Of messages, results and the like that wait for a slow handler. Their honest
// sizes are far below.
constexpr size_t kMaxQueuedBytes = 16 << 20;
constexpr size_t kEventBytes = 128;  // What an event costs beside its content.
constexpr size_t kSendBytes = 64 << 10;

absl::Status Unresponsive(const std::string& what) {
  return WithReason(absl::UnavailableError(what),
                    ErrorReason::kAgentUnresponsive);
}

absl::Status ResetStatus(ResetCode code, std::string_view text) {
  const std::string message = fmt::format("guest agent: {}", text);
  switch (code) {
    case ResetCode::kCancelled:
      return absl::CancelledError(message);
    case ResetCode::kDeadline:
      return absl::DeadlineExceededError(message);
    case ResetCode::kRefused:
      return absl::ResourceExhaustedError(message);
    case ResetCode::kUnknown:
      return absl::UnimplementedError(message);
    case ResetCode::kVersion:
      return absl::FailedPreconditionError(message);
    default:
      return absl::UnavailableError(message);
  }
}

}  // namespace

CallLimits Within(const CallLimits& limits,
                  std::chrono::steady_clock::duration latest) {
  CallLimits within = limits;
  const CallLimits::Time end = std::chrono::steady_clock::now() + latest;
  if (!within.deadline.has_value() || *within.deadline > end) {
    within.deadline = end;
  }
  return within;
}

Client::Client(ByteChannel* channel, base::Clock* clock, Options options)
    : channel_(channel),
      clock_(clock),
      services_(std::move(options.services)),
      on_deadline_(std::move(options.on_deadline)),
      session_(Session::Role::kHost, this, {.name = "catnap"}),
      hello_deadline_(clock->Now() + options.hello_timeout) {
  Pump();
}

Client::~Client() {
  Close(absl::CancelledError("the connection with the guest agent is closed"));
  base::MutexLock lock(&mutex_);
  while (busy_) idle_.Wait(&mutex_);
}

absl::Status Client::StatusLocked() const {
  if (!closed_.ok()) return closed_;
  if (session_.ok()) return absl::OkStatus();
  return ResetStatus(session_.fail_code(), session_.fail_text());
}

absl::Status Client::status() const {
  base::MutexLock lock(&mutex_);
  return StatusLocked();
}

void Client::Close(absl::Status reason) {
  {
    base::MutexLock lock(&mutex_);
    if (closed_.ok() && session_.ok()) closed_ = std::move(reason);
    session_.Fail(ResetCode::kClosed, "closed");
    EndPings(StatusLocked());
  }
  Pump();
}

void Client::OnReceive(std::span<const uint8_t> bytes) {
  {
    base::MutexLock lock(&mutex_);
    if (!session_.Receive(bytes)) EndPings(StatusLocked());
    if (session_.ready()) hello_deadline_.reset();
  }
  Pump();
}

void Client::OnWritable() {
  {
    base::MutexLock lock(&mutex_);
    writable_ = true;
  }
  Pump();
}

std::optional<Client::Time> Client::NextDeadline() const {
  base::MutexLock lock(&mutex_);
  if (!session_.ok()) return std::nullopt;
  std::optional<Time> next = session_.NextDeadline();
  const auto take = [&next](Time time) {
    if (!next.has_value() || time < *next) next = time;
  };
  if (hello_deadline_.has_value()) take(*hello_deadline_);
  for (const auto& [token, waiter] : pings_) take(waiter.deadline);
  return next;
}

void Client::OnTime() {
  const Time now = clock_->Now();
  {
    base::MutexLock lock(&mutex_);
    if (hello_deadline_.has_value() && *hello_deadline_ <= now) {
      hello_deadline_.reset();
      if (closed_.ok() && session_.ok()) {
        closed_ = Unresponsive("the guest agent did not say hello in time");
      }
      session_.Fail(ResetCode::kClosed, "no hello");
      EndPings(StatusLocked());
    }
    session_.OnTime(now);
    for (auto at = pings_.begin(); at != pings_.end();) {
      if (at->second.deadline > now) {
        ++at;
        continue;
      }
      events_.emplace_back([done = std::move(at->second.done)]() mutable {
        std::move(done)(Unresponsive("the guest agent does not answer"));
      });
      at = pings_.erase(at);
    }
  }
  Pump();
}

void Client::Ping(Time deadline, PingDone done) {
  {
    base::MutexLock lock(&mutex_);
    const uint64_t token = next_ping_++;
    pings_.emplace(token, PingWaiter{deadline, std::move(done)});
    std::array<uint8_t, sizeof(token)> body{};
    base::StoreLe(body.data(), token);
    session_.Ping(body);
    if (!session_.ok()) EndPings(StatusLocked());
  }
  Pump();
  if (on_deadline_) on_deadline_();
}

void Client::EndPings(const absl::Status& reason) {
  for (auto& [token, waiter] : pings_) {
    events_.emplace_back([done = std::move(waiter.done), reason]() mutable {
      std::move(done)(reason);
    });
  }
  pings_.clear();
}

absl::StatusOr<uint32_t> Client::Open(Kind kind, const Encoded& request,
                                      std::shared_ptr<StreamHandler> handler,
                                      const CallLimits& limits) {
  uint32_t stream = 0;
  {
    base::MutexLock lock(&mutex_);
    CATNAP_RETURN_IF_ERROR(StatusLocked());
    const std::optional<uint32_t> opened =
        session_.Open(static_cast<uint32_t>(kind), request);
    if (!opened.has_value()) {
      CATNAP_RETURN_IF_ERROR(StatusLocked());
      return Error(absl::StatusCode::kResourceExhausted,
                   "guest agent: a request of {} bytes while {} streams are "
                   "open; at most {} and {}",
                   request.size(), session_.stream_count(), kMaxBodyBytes,
                   kMaxStreams);
    }
    stream = *opened;
    handlers_.emplace(stream, std::move(handler));
    if (limits.deadline.has_value()) {
      session_.SetDeadline(stream, *limits.deadline);
    }
  }
  if (limits.stop.stop_possible()) WatchStop(stream, limits.stop);
  Pump();
  if (on_deadline_ && limits.deadline.has_value()) on_deadline_();
  return stream;
}

void Client::WatchStop(uint32_t stream, const std::stop_token& token) {
  // May call back before it returns.
  auto stop = std::make_unique<Stop>(token, [this, stream] { Cancel(stream); });
  base::MutexLock lock(&mutex_);
  if (handlers_.contains(stream)) stops_.emplace(stream, std::move(stop));
}

size_t Client::Write(uint32_t stream, uint8_t channel,
                     std::span<const uint8_t> data, bool end) {
  size_t taken = 0;
  {
    base::MutexLock lock(&mutex_);
    taken = session_.Write(stream, channel, data, end);
    if (taken < data.size() && session_.IsOpen(stream)) blocked_.insert(stream);
  }
  Pump();
  return taken;
}

void Client::Consume(uint32_t stream, uint8_t channel, size_t bytes) {
  {
    base::MutexLock lock(&mutex_);
    session_.Consume(stream, channel, bytes);
  }
  Pump();
}

void Client::SendMessage(uint32_t stream, const Encoded& fields) {
  {
    base::MutexLock lock(&mutex_);
    session_.SendMessage(stream, fields);
  }
  Pump();
}

void Client::CloseService(uint32_t stream, const Encoded& fields) {
  {
    base::MutexLock lock(&mutex_);
    if (!session_.IsOpen(stream)) return;
    session_.Close(stream, fields);
    End(stream, Encoded());
  }
  Pump();
}

void Client::Cancel(uint32_t stream) {
  {
    base::MutexLock lock(&mutex_);
    if (!session_.IsOpen(stream)) return;
    session_.Reset(stream, ResetCode::kCancelled, "cancelled");
    End(stream, absl::CancelledError("cancelled"));
  }
  Pump();
}

std::shared_ptr<StreamHandler> Client::FindLocked(uint32_t stream) {
  const auto at = handlers_.find(stream);
  return at == handlers_.end() ? nullptr : at->second;
}

void Client::End(uint32_t stream, absl::StatusOr<Encoded> result) {
  const auto at = handlers_.find(stream);
  if (at == handlers_.end()) return;
  const auto stop = stops_.find(stream);
  events_.emplace_back(
      [handler = std::move(at->second), result = std::move(result),
       stop =
           stop == stops_.end() ? nullptr : std::move(stop->second)]() mutable {
        stop.reset();
        handler->OnEnd(std::move(result));
      });
  handlers_.erase(at);
  if (stop != stops_.end()) stops_.erase(stop);
  blocked_.erase(stream);
}

void Client::QueueBounded(size_t bytes, Event event) {
  bytes += kEventBytes;
  if (queued_bytes_ + bytes > kMaxQueuedBytes) {
    session_.Fail(ResetCode::kProtocol, "more messages than can be handled");
    return;
  }
  queued_bytes_ += bytes;
  events_.emplace_back([this, bytes, event = std::move(event)]() mutable {
    {
      base::MutexLock lock(&mutex_);
      queued_bytes_ -= bytes;
    }
    std::move(event)();
  });
}

void Client::OnHello(const Hello& /*hello*/) {}

void Client::OnPong(Session::Bytes body) {
  uint64_t token = 0;
  if (body.size() == sizeof(token)) token = base::LoadLe<uint64_t>(body.data());
  const auto at = pings_.find(token);
  if (at == pings_.end()) return;  // Too late, or made up.
  events_.emplace_back([done = std::move(at->second.done)]() mutable {
    std::move(done)(absl::OkStatus());
  });
  pings_.erase(at);
}

void Client::OnOpen(uint32_t stream, uint32_t kind, Session::Bytes request) {
  PortRequest port;
  if (services_ == nullptr || kind != static_cast<uint32_t>(Kind::kService)) {
    session_.Reset(stream, ResetCode::kUnknown, "no such service");
    return;
  }
  if (!Decode(request, &port)) {
    session_.Reset(stream, ResetCode::kProtocol, "malformed request");
    return;
  }
  QueueBounded(0, [this, stream, port] {
    std::shared_ptr<StreamHandler> handler =
        services_->OnConnect(this, stream, port.port);
    base::MutexLock lock(&mutex_);
    if (handler == nullptr) {
      session_.Reset(stream, ResetCode::kRefused, "no such service");
    } else if (session_.IsOpen(stream)) {
      handlers_.emplace(stream, handler);
      session_.SendMessage(stream, {});
      // Credit that came before had nobody to tell.
      events_.emplace_back([handler] { handler->OnWritable(); });
    } else {
      handlers_.emplace(stream, std::move(handler));
      End(stream, absl::UnavailableError("the guest closed the connection"));
    }
  });
}

void Client::OnData(uint32_t stream, uint8_t channel, Session::Bytes data,
                    bool end) {
  // Credit bounds what waits here.
  Event event = [this, stream, channel, end,
                 copy = Encoded(data.begin(), data.end())] {
    std::shared_ptr<StreamHandler> handler;
    {
      base::MutexLock lock(&mutex_);
      handler = FindLocked(stream);
    }
    if (handler == nullptr) return;
    const size_t used = handler->OnData(channel, copy, end);
    base::MutexLock lock(&mutex_);
    session_.Consume(stream, channel, used);
  };
  // Empty frames cost no credit.
  if (data.size() < kEventBytes) {
    QueueBounded(data.size(), std::move(event));
  } else {
    events_.emplace_back(std::move(event));
  }
}

void Client::OnMessage(uint32_t stream, Session::Bytes fields) {
  QueueBounded(fields.size(),
               [this, stream, copy = Encoded(fields.begin(), fields.end())] {
                 std::shared_ptr<StreamHandler> handler;
                 {
                   base::MutexLock lock(&mutex_);
                   handler = FindLocked(stream);
                 }
                 if (handler != nullptr) handler->OnMessage(copy);
               });
}

void Client::OnCredit(uint32_t stream, uint8_t /*channel*/) {
  if (blocked_.erase(stream) == 0) return;
  const auto handler = FindLocked(stream);
  if (handler != nullptr) {
    QueueBounded(0, [handler] { handler->OnWritable(); });
  }
}

void Client::WakeBlocked() {
  const std::set<uint32_t> blocked = std::exchange(blocked_, {});
  for (const uint32_t stream : blocked) {
    const auto handler = FindLocked(stream);
    if (handler != nullptr) {
      events_.emplace_back([handler] { handler->OnWritable(); });
    }
  }
}

void Client::OnClose(uint32_t stream, Session::Bytes fields) {
  // The handler has to see the data before the end.
  QueueBounded(
      fields.size(),
      [this, stream, copy = Encoded(fields.begin(), fields.end())]() mutable {
        base::MutexLock lock(&mutex_);
        End(stream, std::move(copy));
      });
}

void Client::OnReset(uint32_t stream, ResetCode code, std::string_view text) {
  absl::Status status = closed_.ok() ? ResetStatus(code, text) : closed_;
  events_.emplace_back([this, stream, status = std::move(status)]() mutable {
    base::MutexLock lock(&mutex_);
    End(stream, std::move(status));
  });
}

bool Client::SendSome() {
  if (!writable_ || session_.unsent().empty()) return false;
  // Once failed, what was to be sent is of no use.
  if (!session_.ok()) return false;
  const auto unsent = session_.unsent();
  const auto first = unsent.first(std::min(unsent.size(), kSendBytes));
  const Encoded sending(first.begin(), first.end());
  writable_ = false;  // OnWritable() may come before Send() has returned.
  mutex_.Unlock();
  const size_t sent = std::min(channel_->Send(sending), sending.size());
  mutex_.Lock();
  if (sent == sending.size()) writable_ = true;
  session_.Sent(sent);
  if (!blocked_.empty() && session_.unsent().size() < kMaxUnsentData) {
    WakeBlocked();
  }
  return true;
}

bool Client::RunOne() {
  if (events_.empty()) return false;
  {
    Event event = std::move(events_.front());
    events_.pop_front();
    mutex_.Unlock();
    std::move(event)();
    // What the event holds may be the last of its kind, and its destructor is
    // the user's as well.
    event = nullptr;
    mutex_.Lock();
  }
  return true;
}

void Client::Pump() {
  base::MutexLock lock(&mutex_);
  if (busy_) return;  // That thread looks again before it stops.
  busy_ = true;
  for (;;) {
    const bool sent = SendSome();
    if (!RunOne() && !sent) break;
  }
  busy_ = false;
  idle_.NotifyAll();
}

}  // namespace catnap::agent
