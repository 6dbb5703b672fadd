#include <algorithm>
#include <utility>

#include "base/status.h"
#include "virtio/vsock/vsock.h"

// The host's side: streams, and what their handlers are told.

namespace catnap::virtio {
namespace {

// A guest that never ends what we closed does not fill the table with it.
constexpr size_t kMaxClosing = 256;
// Told in one go by a thread; a flood of the guest's goes on by way of the
// event loop, so that no caller is kept for ever.
constexpr size_t kEventsAtOnce = 512;

absl::Status GoneError() {
  return absl::UnavailableError("the vsock stream is gone");
}

}  // namespace

VsockStreamId Vsock::IdOf(const Key& key, const Stream& stream) {
  return {.host_port = key.host_port,
          .guest_port = key.guest_port,
          .generation = stream.generation};
}

Vsock::Stream* Vsock::FindLocked(VsockStreamId id) {
  const auto found =
      streams_.find({.host_port = id.host_port, .guest_port = id.guest_port});
  if (found == streams_.end() || found->second.generation != id.generation) {
    return nullptr;
  }
  return &found->second;
}

Vsock::Stream& Vsock::AddLocked(const Key& key, State state,
                                std::shared_ptr<VsockHandler> handler) {
  Stream& stream = streams_[key];
  stream = Stream{};
  stream.generation = next_generation_++;
  stream.state = state;
  stream.slot = std::make_shared<HandlerSlot>();
  stream.slot->handler = std::move(handler);
  return stream;
}

void Vsock::RemoveLocked(const Key& key, const absl::Status& why) {
  const auto found = streams_.find(key);
  if (found == streams_.end()) return;
  Stream& stream = found->second;
  if (stream.queued) std::erase(ready_, key);
  PutEventLocked({.kind = Event::Kind::kClosed,
                  .id = IdOf(key, stream),
                  .slot = stream.slot,
                  .why = why});
  streams_.erase(found);
}

void Vsock::RemoveAllLocked(const absl::Status& why) {
  while (!streams_.empty()) RemoveLocked(streams_.begin()->first, why);
  resets_.clear();
  closing_.clear();
}

std::shared_ptr<VsockHandler> Vsock::LetGoLocked(Stream& stream) {
  stream.consumed = stream.received;
  return std::exchange(stream.slot->handler, nullptr);
}

void Vsock::PutEventLocked(Event event) {
  event_bytes_ += event.bytes.size();
  events_.push_back(std::move(event));
}

void Vsock::WakeWritersLocked() {
  if (!starved_) return;
  starved_ = false;
  for (auto& [key, stream] : streams_) {
    if (!stream.wants_writable || CreditOf(stream) == 0) continue;
    stream.wants_writable = false;
    PutEventLocked({.kind = Event::Kind::kWritable,
                    .id = IdOf(key, stream),
                    .slot = stream.slot});
  }
}

void Vsock::AfterServing() {
  {
    const base::MutexLock lock(&mutex_);
    WakeWritersLocked();
  }
  Deliver(kEventsAtOnce);
}

void Vsock::Deliver(size_t limit) {
  const base::MutexLock lock(&mutex_);
  DeliverLocked(limit);
  // Answers, and what handlers made us say.
  ServeQueueLocked(kReceiveQueue);
}

void Vsock::DeliverLocked(size_t limit) {
  if (delivering_) return;  // Somebody does it, in order.
  delivering_ = true;
  while (true) {
    if (events_.empty() && stalled_) ServeQueueLocked(kTransmitQueue);
    if (events_.empty()) break;
    if (limit-- == 0) {
      KickAtLocked(std::chrono::steady_clock::now());
      break;
    }
    Event event = std::move(events_.front());
    events_.pop_front();
    event_bytes_ -= event.bytes.size();
    if (event.kind == Event::Kind::kAccept) {
      AcceptLocked(event.id);
      continue;
    }
    // A copy: the stream may be let go of meanwhile. It goes with the mutex
    // free, since a handler's destructor may call us.
    std::shared_ptr<VsockHandler> handler = event.slot->handler;
    if (handler == nullptr) continue;
    if (event.kind == Event::Kind::kClosed) event.slot->handler.reset();
    mutex_.Unlock();
    Tell(*handler, event);
    handler.reset();
    mutex_.Lock();
  }
  delivering_ = false;
  delivered_.NotifyAll();
}

void Vsock::Tell(VsockHandler& handler, Event& event) {
  switch (event.kind) {
    case Event::Kind::kAccept:
      break;
    case Event::Kind::kConnected:
      handler.OnConnected();
      break;
    case Event::Kind::kData:
      handler.OnData(event.bytes);
      break;
    case Event::Kind::kWritable:
      handler.OnWritable();
      break;
    case Event::Kind::kPeerClosed:
      handler.OnPeerClosed();
      break;
    case Event::Kind::kClosed:
      handler.OnClosed(event.why);
      break;
  }
}

void Vsock::AcceptLocked(VsockStreamId id) {
  const auto found = acceptors_.find(id.host_port);
  std::shared_ptr<VsockHandler> handler;
  if (found != acceptors_.end()) {
    std::shared_ptr<const Acceptor> acceptor = found->second;
    mutex_.Unlock();
    handler = (*acceptor)(id);
    acceptor.reset();
    mutex_.Lock();
  }
  const Key key{.host_port = id.host_port, .guest_port = id.guest_port};
  Stream* const stream = FindLocked(id);
  if (stream == nullptr) {
    if (handler == nullptr) return;
    mutex_.Unlock();
    handler->OnClosed(GoneError());
    handler.reset();
    mutex_.Lock();
    return;
  }
  if (handler == nullptr) {
    RemoveLocked(key, absl::OkStatus());
    SendResetLocked(key);
    return;
  }
  stream->slot->handler = std::move(handler);
  stream->state = State::kConnected;
  WishLocked(key, *stream, kWishResponse);
  PutEventLocked(
      {.kind = Event::Kind::kConnected, .id = id, .slot = stream->slot});
}

void Vsock::DrainLocked() {
  // What was received is told before anything is saved or forgotten.
  while (delivering_) delivered_.Wait(&mutex_);
  DeliverLocked(SIZE_MAX);
}

void Vsock::Listen(uint32_t port, Acceptor acceptor) {
  // Swapped out, so that what was there goes with the mutex free.
  std::shared_ptr<const Acceptor> entry;
  if (acceptor) entry = std::make_shared<const Acceptor>(std::move(acceptor));
  const base::MutexLock lock(&mutex_);
  if (entry != nullptr) {
    acceptors_[port].swap(entry);
  } else if (const auto found = acceptors_.find(port);
             found != acceptors_.end()) {
    entry = std::move(found->second);
    acceptors_.erase(found);
  }
}

absl::StatusOr<VsockStreamId> Vsock::Connect(
    uint32_t port, std::shared_ptr<VsockHandler> handler) {
  const base::MutexLock lock(&mutex_);
  if (!serving_locked()) {
    return absl::FailedPreconditionError(
        "the guest's vsock driver is not there (yet)");
  }
  if (streams_.size() >= options_.max_streams) {
    return Error(absl::StatusCode::kResourceExhausted,
                 "there are {} vsock streams already", streams_.size());
  }
  // From 2^30 up, as Linux numbers the ports of its own connecting sockets.
  Key key{.host_port = 0, .guest_port = port};
  do {
    key.host_port = next_port_;
    next_port_ = next_port_ == UINT32_MAX - 1 ? 1u << 30 : next_port_ + 1;
  } while (streams_.contains(key));
  Stream& stream = AddLocked(key, State::kRequested, std::move(handler));
  WishLocked(key, stream, kWishRequest);
  const VsockStreamId id = IdOf(key, stream);
  ServeQueueLocked(kReceiveQueue);
  return id;
}

absl::StatusOr<size_t> Vsock::Send(VsockStreamId id,
                                   std::span<const uint8_t> bytes) {
  const base::MutexLock lock(&mutex_);
  Stream* const stream = FindLocked(id);
  if (stream == nullptr || stream->state == State::kClosing ||
      (stream->our_shutdown & kVsockNoSend) != 0 ||
      (stream->peer_shutdown & kVsockNoReceive) != 0) {
    return GoneError();
  }
  sending_ =
      Sending{.key = {.host_port = id.host_port, .guest_port = id.guest_port},
              .rest = bytes};
  ServeQueueLocked(kReceiveQueue);
  const size_t rest = sending_->rest.size();
  sending_.reset();
  if (rest > 0) {
    stream->wants_writable = true;
    // With credit left it is the driver's buffers that lack.
    if (CreditOf(*stream) > 0) starved_ = true;
  }
  return bytes.size() - rest;
}

void Vsock::Consumed(VsockStreamId id, size_t bytes) {
  const base::MutexLock lock(&mutex_);
  Stream* const stream = FindLocked(id);
  if (stream == nullptr) return;
  const uint32_t held = stream->received - stream->consumed;
  stream->consumed += static_cast<uint32_t>(std::min<size_t>(bytes, held));
  // Told in large steps: each costs the guest an interrupt.
  if (stream->consumed - stream->consumed_told >= options_.buffer_bytes / 2) {
    WishLocked({.host_port = id.host_port, .guest_port = id.guest_port},
               *stream, kWishCreditUpdate);
    ServeQueueLocked(kReceiveQueue);
  }
}

void Vsock::CloseSend(VsockStreamId id) {
  const base::MutexLock lock(&mutex_);
  Stream* const stream = FindLocked(id);
  if (stream == nullptr || stream->state != State::kConnected ||
      (stream->our_shutdown & kVsockNoSend) != 0) {
    return;
  }
  stream->our_shutdown |= kVsockNoSend;
  WishLocked({.host_port = id.host_port, .guest_port = id.guest_port}, *stream,
             kWishShutdown);
  ServeQueueLocked(kReceiveQueue);
}

void Vsock::Close(VsockStreamId id) {
  std::shared_ptr<VsockHandler> handler;
  const base::MutexLock lock(&mutex_);
  Stream* const stream = FindLocked(id);
  if (stream == nullptr || stream->state == State::kClosing) return;
  const Key key{.host_port = id.host_port, .guest_port = id.guest_port};
  handler = LetGoLocked(*stream);
  if (stream->state != State::kConnected) {
    RemoveLocked(key, absl::OkStatus());
    SendResetLocked(key);
  } else {
    stream->state = State::kClosing;
    stream->our_shutdown = kVsockNoSend | kVsockNoReceive;
    WishLocked(key, *stream, kWishShutdown);
    closing_.push_back(id);
    LimitClosingLocked();
  }
  ServeQueueLocked(kReceiveQueue);
}

void Vsock::LimitClosingLocked() {
  if (closing_.size() <= kMaxClosing) return;
  std::erase_if(closing_,
                [this](VsockStreamId id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
                  return FindLocked(id) == nullptr;
                });
  while (closing_.size() > kMaxClosing) {
    const Key key{.host_port = closing_.front().host_port,
                  .guest_port = closing_.front().guest_port};
    closing_.pop_front();
    RemoveLocked(key, absl::OkStatus());
    SendResetLocked(key);
  }
}

void Vsock::Abort(VsockStreamId id) {
  std::shared_ptr<VsockHandler> handler;
  const base::MutexLock lock(&mutex_);
  Stream* const stream = FindLocked(id);
  if (stream == nullptr) return;
  const Key key{.host_port = id.host_port, .guest_port = id.guest_port};
  handler = LetGoLocked(*stream);
  RemoveLocked(key, absl::OkStatus());
  SendResetLocked(key);
  ServeQueueLocked(kReceiveQueue);
}

std::vector<VsockStreamId> Vsock::LoadedStreams() const {
  const base::MutexLock lock(&mutex_);
  std::vector<VsockStreamId> ids;
  for (const auto& [key, stream] : streams_) {
    if (stream.state == State::kConnected && stream.slot->handler == nullptr) {
      ids.push_back(IdOf(key, stream));
    }
  }
  return ids;
}

absl::Status Vsock::Adopt(VsockStreamId id,
                          std::shared_ptr<VsockHandler> handler) {
  const base::MutexLock lock(&mutex_);
  Stream* const stream = FindLocked(id);
  if (stream == nullptr || stream->slot->handler != nullptr) return GoneError();
  stream->slot->handler = std::move(handler);
  // What the one before wanted to send after the save, nobody knows here.
  stream->wants_writable = true;
  return absl::OkStatus();
}

void Vsock::ResumeLocked() {
  starved_ = true;  // Whoever wants to send tries.
  std::vector<Key> orphans;
  for (const auto& [key, stream] : streams_) {
    if (stream.state == State::kConnected && stream.slot->handler == nullptr) {
      orphans.push_back(key);
    }
  }
  for (const Key& key : orphans) {
    RemoveLocked(key, absl::OkStatus());
    SendResetLocked(key);
  }
}

size_t Vsock::stream_count() const {
  const base::MutexLock lock(&mutex_);
  return streams_.size();
}

void Vsock::LetGoOfStreams() {
  // Destroyed with the mutex free: that may call us.
  std::vector<std::shared_ptr<VsockHandler>> handlers;
  std::unordered_map<uint32_t, std::shared_ptr<const Acceptor>> acceptors;
  const base::MutexLock lock(&mutex_);
  acceptors.swap(acceptors_);
  handlers.reserve(streams_.size());
  for (auto& [key, stream] : streams_) handlers.push_back(LetGoLocked(stream));
}

}  // namespace catnap::virtio
