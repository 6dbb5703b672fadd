#include "runtime/socket_relay.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include "agent/messages.h"
#include "base/status.h"

namespace catnap::runtime {
namespace {

// One read is one DATA frame. Other descriptors of the loop get their turn
// after a few.
constexpr size_t kReadBytes = 64 << 10;
constexpr int kReadsInARow = 4;

std::span<const uint8_t> AsBytes(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

absl::Status SocketError(int error) {
  return Error(absl::StatusCode::kUnavailable,
               "the host's side of the connection with the guest: {}",
               ErrnoText(error));
}

// So that the other side of a TCP connection sees a reset, not an end in order.
// Local sockets ignore it.
void ResetOnClose(int fd) {
  const linger abort{.l_onoff = 1, .l_linger = 0};
  ::setsockopt(fd, SOL_SOCKET, SO_LINGER, &abort, sizeof(abort));
}

}  // namespace

SocketRelay::SocketRelay(Key /*key*/, RelayGroup* group, base::UniqueFd socket,
                         Events events)
    : group_(group),
      loop_(group->loop()),
      traffic_(group->traffic()),
      events_(std::move(events)),
      socket_(std::move(socket)) {}

absl::StatusOr<std::shared_ptr<SocketRelay>> SocketRelay::Create(
    RelayGroup* group, base::UniqueFd socket, Events events) {
  auto relay = std::make_shared<SocketRelay>(Key(), group, std::move(socket),
                                             std::move(events));
  CATNAP_RETURN_IF_ERROR(group->Add(relay));
  return relay;
}

void SocketRelay::Open(const std::shared_ptr<agent::Client>& client,
                       uint16_t port) {
  {
    const base::MutexLock lock(&mutex_);
    if (finished_ || broken_.has_value()) return;
    client_ = client;
    port_ = port;
    state_ = StreamState::kOpening;
    traffic_->OnActivity();
  }
  const auto opened =
      client->Open(agent::Kind::kConnect, Encode(agent::PortRequest{port}),
                   shared_from_this());
  bool cancel = false;
  {
    const base::MutexLock lock(&mutex_);
    if (!opened.ok()) {
      state_ = StreamState::kNone;
      if (!broken_.has_value()) broken_ = opened.status();
      PostSettleLocked();
      return;
    }
    stream_ = *opened;
    // Its end may have come already, or the owner's.
    if (state_ == StreamState::kOpening) state_ = StreamState::kOpen;
    if (!broken_.has_value()) {
      StartWatchLocked();
    } else {
      cancel = state_ == StreamState::kOpen;
    }
  }
  if (cancel) client->Cancel(*opened);
}

bool SocketRelay::Accept(std::shared_ptr<agent::Client> client,
                         uint32_t stream) {
  const base::MutexLock lock(&mutex_);
  if (finished_ || broken_.has_value()) return false;
  client_ = std::move(client);
  stream_ = stream;
  // From here on OnEnd() comes, whatever happens to the stream.
  state_ = StreamState::kOpen;
  traffic_->OnActivity();
  StartWatchLocked();
  return true;
}

void SocketRelay::End(const absl::Status& why) {
  std::shared_ptr<agent::Client> client;
  uint32_t stream = 0;
  {
    const base::MutexLock lock(&mutex_);
    if (finished_ || broken_.has_value()) return;
    broken_ = why;
    if (state_ == StreamState::kOpen) {
      client = client_;
      stream = stream_;
    }
    PostSettleLocked();
  }
  if (client != nullptr) client->Cancel(stream);
}

void SocketRelay::StartWatchLocked() {
  if (finished_) return;
  watch_ = loop_->Watch(
      socket_.get(), POLLIN | POLLOUT,
      [self = shared_from_this()](const absl::StatusOr<uint32_t>& events) {
        self->OnReady(events);
      });
}

void SocketRelay::OnReady(const absl::StatusOr<uint32_t>& events) {
  if (!events.ok()) {
    {
      const base::MutexLock lock(&mutex_);
      watch_.reset();
    }
    End(events.status());  // Unless that is why the watch ended.
    Settle();
    return;
  }
  if ((*events & POLLERR) != 0) {
    int error = 0;
    socklen_t size = sizeof(error);
    {
      const base::MutexLock lock(&mutex_);
      ::getsockopt(socket_.get(), SOL_SOCKET, SO_ERROR, &error, &size);
    }
    if (error != 0) {
      End(SocketError(error));
      return;
    }
  }
  if ((*events & (POLLOUT | POLLERR | POLLHUP)) != 0) PumpToSocket();
  if ((*events & (POLLIN | POLLERR | POLLHUP)) != 0) PumpToGuest();
}

void SocketRelay::PumpToGuest() {
  for (int i = 0; i < kReadsInARow; ++i) {
    if (!PumpToGuestOnce()) return;
  }
  const base::MutexLock lock(&mutex_);
  PostPumpToGuestLocked();
}

// Returns whether there may be more to do at once.
bool SocketRelay::PumpToGuestOnce() {
  int fd = -1;
  uint32_t stream = 0;
  std::shared_ptr<agent::Client> client;
  {
    const base::MutexLock lock(&mutex_);
    if (broken_.has_value() || state_ != StreamState::kOpen || end_sent_) {
      return false;
    }
    end_sent_ = socket_ended_ && pending_.empty();
    fd = socket_.get();
    stream = stream_;
    client = client_;
  }
  const auto write = [&](std::span<const uint8_t> data) {
    const size_t taken =
        client->Write(stream, agent::kMainChannel, data, false);
    if (taken > 0) {
      traffic_->OnBytesToGuest(taken);
    } else {
      traffic_->OnActivity();  // What waits for the guest asks for it.
    }
    return taken;
  };
  if (!pending_.empty()) {
    pending_.erase(0, write(AsBytes(pending_)));
    return pending_.empty();  // Else OnWritable() will come.
  }
  if (socket_ended_) {
    client->Write(stream, agent::kMainChannel, {}, true);
    return false;
  }
  std::array<uint8_t, kReadBytes> buffer;  // Not cleared: it is read into.
  const ssize_t got = ::recv(fd, buffer.data(), buffer.size(), MSG_DONTWAIT);
  if (got < 0) {
    if (errno == EAGAIN) return false;
    if (errno != EINTR) End(SocketError(errno));
    return true;
  }
  socket_ended_ = got == 0;
  const std::span<const uint8_t> data{buffer.data(), static_cast<size_t>(got)};
  const size_t taken = data.empty() ? 0 : write(data);
  pending_.assign(data.begin() + static_cast<ptrdiff_t>(taken), data.end());
  return pending_.empty();
}

void SocketRelay::PostPumpToGuestLocked() {
  if (finished_ || pump_posted_) return;
  pump_posted_ = true;
  loop_->Post([self = shared_from_this()] {
    {
      const base::MutexLock lock(&self->mutex_);
      self->pump_posted_ = false;
    }
    self->PumpToGuest();
  });
}

absl::StatusOr<size_t> SocketRelay::SendLocked(std::span<const uint8_t> data) {
  size_t done = 0;
  while (done < data.size()) {
    const ssize_t sent =
        ::send(socket_.get(), data.data() + done, data.size() - done,
               MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && errno == EAGAIN) break;
    if (sent < 0) return SocketError(errno);
    done += static_cast<size_t>(sent);
  }
  if (done > 0) traffic_->OnBytesFromGuest(done);
  return done;
}

void SocketRelay::ShutWhenDrainedLocked() {
  if (!guest_ended_ || shut_ || !waiting_.empty()) return;
  shut_ = true;
  ::shutdown(socket_.get(), SHUT_WR);
}

void SocketRelay::PumpToSocket() {
  absl::StatusOr<size_t> sent = 0;
  std::shared_ptr<agent::Client> client;
  uint32_t stream = 0;
  {
    const base::MutexLock lock(&mutex_);
    if (finished_ || broken_.has_value()) return;
    sent = SendLocked(AsBytes(waiting_));
    if (sent.ok()) {
      waiting_.erase(0, *sent);
      ShutWhenDrainedLocked();
      client = client_;
      stream = stream_;
    }
  }
  if (!sent.ok()) {
    End(sent.status());
    return;
  }
  if (*sent > 0) client->Consume(stream, agent::kMainChannel, *sent);
  Settle();
}

size_t SocketRelay::OnData(uint8_t channel, std::span<const uint8_t> data,
                           bool end) {
  absl::StatusOr<size_t> sent = 0;
  {
    const base::MutexLock lock(&mutex_);
    if (finished_ || broken_.has_value() || channel != agent::kMainChannel) {
      return data.size();  // Nobody wants it.
    }
    guest_ended_ |= end;
    if (waiting_.empty()) sent = SendLocked(data);
    if (sent.ok()) {
      waiting_.append(data.begin() + static_cast<ptrdiff_t>(*sent), data.end());
      ShutWhenDrainedLocked();
    }
  }
  if (sent.ok()) return *sent;
  End(sent.status());
  return data.size();
}

void SocketRelay::OnMessage(agent::Fields /*fields*/) {
  const base::MutexLock lock(&mutex_);
  if (connected_ || finished_) return;
  connected_ = true;
  loop_->Post([self = shared_from_this()] {
    {
      const base::MutexLock at_end(&self->mutex_);
      if (self->broken_.has_value()) return;
    }
    auto told = std::exchange(self->events_.on_connected, nullptr);
    if (told != nullptr) std::move(told)();
  });
}

void SocketRelay::OnWritable() {
  const base::MutexLock lock(&mutex_);
  PostPumpToGuestLocked();
}

absl::Status SocketRelay::ErrorOfLocked(const agent::Encoded& result) {
  agent::FileResult answer;
  if (!Decode(result, &answer)) {
    return absl::UnavailableError("guest agent: malformed end of a connection");
  }
  if (answer.error == 0) return absl::OkStatus();
  if (connected_ || port_ == 0) {
    return Error(absl::StatusCode::kUnavailable,
                 "the guest's side of the connection: {}",
                 ErrnoText(answer.error));
  }
  if (answer.error == ECONNREFUSED) {
    return Error(absl::StatusCode::kUnavailable,
                 "nothing listens on port {} of the guest; start the service "
                 "and have it listen on 127.0.0.1 or 0.0.0.0",
                 port_);
  }
  return Error(absl::StatusCode::kUnavailable,
               "connecting to port {} inside the guest: {}", port_,
               ErrnoText(answer.error));
}

void SocketRelay::OnEnd(absl::StatusOr<agent::Encoded> result) {
  const base::MutexLock lock(&mutex_);
  state_ = StreamState::kOver;
  absl::Status error;
  if (result.ok()) {
    error = ErrorOfLocked(*result);
  } else if (!guest_ended_ || !end_sent_) {
    // With both ways at their end it is how the guest ends what it opened.
    error = result.status();
  }
  if (!error.ok() && !broken_.has_value()) broken_ = error;
  guest_ended_ = true;
  // What the guest sent before goes to the socket first.
  if (!broken_.has_value()) ShutWhenDrainedLocked();
  PostSettleLocked();
}

void SocketRelay::PostSettleLocked() {
  if (finished_) return;
  loop_->Post([self = shared_from_this()] { self->Settle(); });
}

void SocketRelay::Settle() {
  absl::Status why;
  std::shared_ptr<agent::Client> client;
  {
    const base::MutexLock lock(&mutex_);
    const bool open =
        state_ == StreamState::kOpening || state_ == StreamState::kOpen;
    const bool in_order = state_ == StreamState::kOver && shut_;
    if (finished_ || open || (!broken_.has_value() && !in_order)) return;
    if (watch_.has_value()) {
      // The descriptor is the loop's until its last call.
      if (!std::exchange(watch_cancelled_, true)) loop_->Cancel(*watch_);
      return;
    }
    finished_ = true;
    if (broken_.has_value()) {
      ResetOnClose(socket_.get());
      why = *broken_;
    }
    socket_.Reset();
    waiting_ = {};
    client = std::move(client_);
  }
  const auto self = shared_from_this();
  pending_ = {};
  Events events = std::exchange(events_, {});
  // Not in a call of the client's, so it may go here.
  client.reset();
  if (events.on_end != nullptr) std::move(events.on_end)(why);
  events = {};
  group_->Remove(self);
}

}  // namespace catnap::runtime
