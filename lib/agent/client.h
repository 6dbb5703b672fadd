#ifndef CATNAP_LIB_AGENT_CLIENT_H_
#define CATNAP_LIB_AGENT_CLIENT_H_

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "agent/messages.h"
#include "agent/session.h"
#include "base/clock.h"
#include "base/mutex.h"

namespace catnap::agent {

// What ends a call before the guest does.
struct CallLimits {
  using Time = std::chrono::steady_clock::time_point;

  CallLimits() = default;
  // A time, or none, is all that most callers have.
  CallLimits(std::nullopt_t) {}  // NOLINT(google-explicit-constructor)
  CallLimits(Time time)          // NOLINT(google-explicit-constructor)
      : deadline(time) {}
  CallLimits(std::optional<Time> time,  // NOLINT(google-explicit-constructor)
             std::stop_token token = {})
      : deadline(time), stop(std::move(token)) {}

  std::optional<Time> deadline{};  // DEADLINE_EXCEEDED.
  std::stop_token stop{};          // CANCELLED.
};

// The same, and `latest` from now at the latest.
CallLimits Within(const CallLimits& limits,
                  std::chrono::steady_clock::duration latest);

// The connection's bytes towards the guest; a vsock stream, or a socket.
class ByteChannel {
 public:
  virtual ~ByteChannel() = default;
  // Takes bytes from the front without blocking and returns how many. After
  // less than all, Client::OnWritable() has to be called when more is taken.
  // One call at a time; no lock of the client is held.
  virtual size_t Send(std::span<const uint8_t> bytes) = 0;
};

// What happens on one stream that this side opened. Calls do not overlap and
// hold no lock; they may use the client, except destroy it.
class StreamHandler {
 public:
  virtual ~StreamHandler() = default;
  // Returns how many bytes are used; the others are for Client::Consume().
  virtual size_t OnData(uint8_t channel, std::span<const uint8_t> data,
                        bool end) = 0;
  virtual void OnMessage(Fields /*fields*/) {}
  // After a Write() that took less than it was given, and once when a service
  // has taken its connection.
  virtual void OnWritable() {}
  // The last call: CLOSE's fields, or why there are none.
  virtual void OnEnd(absl::StatusOr<Encoded> result) = 0;
};

class Client;

// What the host serves to the guest. Calls are as StreamHandler's, except that
// those of two clients may overlap.
class ServiceListener {
 public:
  virtual ~ServiceListener() = default;
  // The owner of a client with this listener tells of it: it may open
  // Kind::kListen streams from now on.
  virtual void OnClient(const std::shared_ptr<Client>& /*client*/) {}
  // A connection that the guest opened to a service. Returns who handles it, or
  // null to refuse. `client` carries `stream`.
  virtual std::shared_ptr<StreamHandler> OnConnect(Client* client,
                                                   uint32_t stream,
                                                   uint16_t port) = 0;
};

// The host's end of the connection with a guest agent, which is hostile:
// whatever it sends or does not send ends in a status, and in bounded memory.
//
// Has no thread: the owner brings received bytes and the time, and what they
// lead to runs on the thread that brought them, or on one that just sent
// something. Thread-safe.
class Client final : private Session::Handler {
 public:
  using Time = std::chrono::steady_clock::time_point;
  using PingDone = absl::AnyInvocable<void(absl::Status) &&>;

  struct Options {
    // For the agent's hello. Then the connection ends: UNAVAILABLE with
    // kAgentUnresponsive.
    std::chrono::milliseconds hello_timeout{10'000};
    std::shared_ptr<ServiceListener> services{};  // Null: none.
    // NextDeadline() may have come nearer by a call of Open() or Ping(), on
    // whose thread it runs, with no lock held. Null: nobody is told.
    std::function<void()> on_deadline{};
  };

  // `channel` and `clock` must outlive the client.
  Client(ByteChannel* channel, base::Clock* clock, Options options);
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;
  // Close(CANCELLED), then waits for handlers that run on other threads.
  // REQUIRES: not called by a handler.
  ~Client() override;

  // The channel's side.
  void OnReceive(std::span<const uint8_t> bytes);
  void OnWritable();
  // Ends all streams with `reason`. Idempotent; the first reason stands.
  void Close(absl::Status reason);
  // When OnTime() is due, if at all. May come nearer with each new call; see
  // Options::on_deadline.
  std::optional<Time> NextDeadline() const;
  void OnTime();

  // Asks whether the agent answers. Without an answer by `deadline`:
  // UNAVAILABLE with kAgentUnresponsive; the connection stays.
  void Ping(Time deadline, PingDone done);

  // Opens a stream, which `limits` may end. `handler` is kept until OnEnd()
  // returned.
  // Errors: RESOURCE_EXHAUSTED (streams, or a request above kMaxBodyBytes), or
  // why the connection ended; then no call comes.
  absl::StatusOr<uint32_t> Open(Kind kind, const Encoded& request,
                                std::shared_ptr<StreamHandler> handler,
                                const CallLimits& limits = {});
  // As Session's.
  size_t Write(uint32_t stream, uint8_t channel, std::span<const uint8_t> data,
               bool end);
  void Consume(uint32_t stream, uint8_t channel, size_t bytes);
  void SendMessage(uint32_t stream, const Encoded& fields);
  // Of a stream that the guest opened.
  void CloseService(uint32_t stream, const Encoded& fields);
  // The stream ends with CANCELLED, unless it just ended otherwise.
  void Cancel(uint32_t stream);

  // OK while the connection stands, whether or not the hello came.
  absl::Status status() const;

 private:
  using Event = absl::AnyInvocable<void() &&>;
  using Stop = std::stop_callback<std::function<void()>>;
  struct PingWaiter {
    Time deadline;
    PingDone done;
  };

  // Session::Handler, always under the lock.
  void OnHello(const Hello& hello) override;
  void OnPong(Session::Bytes body) override
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void OnOpen(uint32_t stream, uint32_t kind, Session::Bytes request) override
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void OnData(uint32_t stream, uint8_t channel, Session::Bytes data,
              bool end) override ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void OnMessage(uint32_t stream, Session::Bytes fields) override
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void OnCredit(uint32_t stream, uint8_t channel) override
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void OnClose(uint32_t stream, Session::Bytes fields) override
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void OnReset(uint32_t stream, ResetCode code, std::string_view text) override
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // Sends what is to be sent and runs what is to be run, one thread at a time:
  // that keeps both in order. Others leave their work to that thread.
  void Pump() ABSL_LOCKS_EXCLUDED(mutex_);
  bool SendSome() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool RunOne() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::shared_ptr<StreamHandler> FindLocked(uint32_t stream)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void End(uint32_t stream, absl::StatusOr<Encoded> result)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Queues work whose size the guest chose, `bytes`, which is not covered by
  // credit; too much of it ends the session.
  void QueueBounded(size_t bytes, Event event)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void WatchStop(uint32_t stream, const std::stop_token& token)
      ABSL_LOCKS_EXCLUDED(mutex_);
  void WakeBlocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void EndPings(const absl::Status& reason)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status StatusLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  ByteChannel* const channel_;  // Not owned.
  base::Clock* const clock_;    // Not owned.
  const std::shared_ptr<ServiceListener> services_;
  const std::function<void()> on_deadline_;

  mutable base::Mutex mutex_;
  base::CondVar idle_;  // busy_ became false.
  Session session_ ABSL_GUARDED_BY(mutex_);
  std::unordered_map<uint32_t, std::shared_ptr<StreamHandler>> handlers_
      ABSL_GUARDED_BY(mutex_);
  // Of streams whose caller may ask for their end. Destroyed with no lock held:
  // that waits for a callback, which takes it.
  std::unordered_map<uint32_t, std::unique_ptr<Stop>> stops_
      ABSL_GUARDED_BY(mutex_);
  std::deque<Event> events_ ABSL_GUARDED_BY(mutex_);
  size_t queued_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  // Streams whose Write() took less than it was given.
  std::set<uint32_t> blocked_ ABSL_GUARDED_BY(mutex_);
  std::map<uint64_t, PingWaiter> pings_ ABSL_GUARDED_BY(mutex_);
  uint64_t next_ping_ ABSL_GUARDED_BY(mutex_) = 1;
  std::optional<Time> hello_deadline_ ABSL_GUARDED_BY(mutex_);
  absl::Status closed_ ABSL_GUARDED_BY(mutex_);  // The owner's reason.
  bool writable_ ABSL_GUARDED_BY(mutex_) = true;
  bool busy_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace catnap::agent

#endif  // CATNAP_LIB_AGENT_CLIENT_H_
