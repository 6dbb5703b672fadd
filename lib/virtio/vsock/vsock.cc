#include "virtio/vsock/vsock.h"

#include <algorithm>
#include <utility>

#include "base/byte_order.h"
#include "base/status.h"

// The guest's side: packets in, packets out. The host's side is in
// vsock_streams.cc.

namespace catnap::virtio {
namespace {

constexpr uint16_t kQueueSize = 256;
constexpr uint32_t kMaxDataBytes = 64 << 10;  // Of one packet to the guest.
constexpr uint32_t kEventTransportReset = 0;
// VMADDR_PORT_ANY (linux/vm_sockets.h): no socket has it.
constexpr uint32_t kNobodysPort = UINT32_MAX;

// What waits for handlers, and resets that wait for the driver's buffers. A
// guest that makes more waits.
constexpr size_t kMaxEventBytes = 1 << 20;
constexpr size_t kMaxEvents = 4096;
constexpr size_t kMaxResets = 1024;

}  // namespace

Vsock::Vsock(const VsockOptions& options, memory::GuestMemory* memory)
    : VirtioDevice({.id = DeviceId::kVsock,
                    .queue_sizes = {kQueueSize, kQueueSize, kQueueSize}},
                   memory),
      options_(options) {}

std::vector<uint8_t> Vsock::ConfigLocked() const {
  std::vector<uint8_t> config(sizeof(uint64_t));
  base::StoreLe(config.data(), options_.guest_cid);
  return config;
}

bool Vsock::WantsLocked(size_t index) {
  switch (index) {
    case kReceiveQueue: {
      if (!resets_.empty() || !ready_.empty()) return true;
      if (!sending_.has_value() || sending_->rest.empty()) return false;
      const auto found = streams_.find(sending_->key);
      return found != streams_.end() && CreditOf(found->second) > 0;
    }
    case kTransmitQueue:
      stalled_ = event_bytes_ >= kMaxEventBytes ||
                 events_.size() >= kMaxEvents || resets_.size() >= kMaxResets;
      return !stalled_;
    default:
      return transport_reset_;
  }
}

void Vsock::HandleLocked(size_t index, const Chain& chain) {
  switch (index) {
    case kReceiveQueue:
      FillLocked(chain);
      break;
    case kTransmitQueue:
      HandlePacketLocked(chain);
      PushLocked(index, chain.head(), 0);
      break;
    default: {
      std::array<uint8_t, sizeof(uint32_t)> event{};
      base::StoreLe(event.data(), kEventTransportReset);
      PushLocked(kEventQueue, chain.head(),
                 static_cast<uint32_t>(chain.CopyIn(0, event)));
      transport_reset_ = false;
      break;
    }
  }
}

void Vsock::HandlePacketLocked(const Chain& chain) {
  std::array<uint8_t, kVsockHeaderBytes> bytes{};
  if (chain.CopyOut(0, bytes) < bytes.size()) return;
  const VsockHeader header = DecodeVsockHeader(bytes);
  if (header.source_cid != options_.guest_cid ||
      header.destination_cid != kVsockHostCid) {
    return;  // There is nobody else here.
  }
  const Key key{.host_port = header.destination_port,
                .guest_port = header.source_port};
  if (header.operation == VsockOperation::kReset) {
    RemoveLocked(key, absl::UnavailableError("the guest reset the stream"));
    return;
  }
  if (header.type != kVsockTypeStream ||
      header.length > chain.readable_bytes() - kVsockHeaderBytes) {
    SendResetLocked(key);
    return;
  }
  if (header.operation == VsockOperation::kRequest) {
    HandleRequestLocked(header);
    return;
  }
  const auto found = streams_.find(key);
  if (found == streams_.end()) {
    SendResetLocked(key);
    return;
  }
  Stream& stream = found->second;
  stream.peer_buffer = header.buffer_bytes;
  stream.peer_consumed = header.forwarded_bytes;
  if (!HandleStreamPacketLocked(key, stream, header, chain)) {
    RemoveLocked(key,
                 absl::UnavailableError("the guest broke the vsock protocol"));
    SendResetLocked(key);
  }
}

void Vsock::HandleRequestLocked(const VsockHeader& header) {
  const Key key{.host_port = header.destination_port,
                .guest_port = header.source_port};
  if (streams_.contains(key)) {
    RemoveLocked(key, absl::UnavailableError("the guest reused the port"));
    SendResetLocked(key);
    return;
  }
  if (!acceptors_.contains(key.host_port) ||
      streams_.size() >= options_.max_streams) {
    SendResetLocked(key);
    return;
  }
  Stream& stream = AddLocked(key, State::kAccepting, nullptr);
  stream.peer_buffer = header.buffer_bytes;
  stream.peer_consumed = header.forwarded_bytes;
  PutEventLocked({.kind = Event::Kind::kAccept, .id = IdOf(key, stream)});
}

bool Vsock::HandleStreamPacketLocked(const Key& key, Stream& stream,
                                     const VsockHeader& header,
                                     const Chain& chain) {
  switch (header.operation) {
    case VsockOperation::kResponse:
      if (stream.state != State::kRequested) return false;
      stream.state = State::kConnected;
      PutEventLocked({.kind = Event::Kind::kConnected,
                      .id = IdOf(key, stream),
                      .slot = stream.slot});
      break;
    case VsockOperation::kData:
      if (!HandleDataLocked(key, stream, header, chain)) return false;
      break;
    case VsockOperation::kShutdown:
      return HandleShutdownLocked(key, stream, header.flags);
    case VsockOperation::kCreditUpdate:
      break;
    case VsockOperation::kCreditRequest:
      WishLocked(key, stream, kWishCreditUpdate);
      break;
    default:
      return false;
  }
  if (stream.wants_writable && stream.state == State::kConnected &&
      CreditOf(stream) > 0) {
    stream.wants_writable = false;
    PutEventLocked({.kind = Event::Kind::kWritable,
                    .id = IdOf(key, stream),
                    .slot = stream.slot});
  }
  return true;
}

bool Vsock::HandleDataLocked(const Key& key, Stream& stream,
                             const VsockHeader& header, const Chain& chain) {
  if (stream.state != State::kConnected && stream.state != State::kClosing) {
    return false;
  }
  if ((stream.peer_shutdown & kVsockNoSend) != 0) return false;
  const uint32_t held = stream.received - stream.consumed;
  if (header.length > options_.buffer_bytes - held) return false;
  if (header.length == 0) return true;
  stream.received += header.length;
  if (stream.state == State::kClosing) {
    stream.consumed = stream.received;  // Nobody wants it.
    return true;
  }
  Event event{.kind = Event::Kind::kData,
              .id = IdOf(key, stream),
              .slot = stream.slot,
              .bytes = std::vector<uint8_t>(header.length)};
  chain.CopyOut(kVsockHeaderBytes, event.bytes);
  PutEventLocked(std::move(event));
  return true;
}

bool Vsock::HandleShutdownLocked(const Key& key, Stream& stream,
                                 uint32_t flags) {
  const bool could_send = (stream.peer_shutdown & kVsockNoSend) == 0;
  stream.peer_shutdown |= flags & (kVsockNoSend | kVsockNoReceive);
  if (stream.peer_shutdown == (kVsockNoSend | kVsockNoReceive)) {
    // It is done; our reset lets it forget the stream.
    RemoveLocked(key, absl::OkStatus());
    SendResetLocked(key);
    return true;
  }
  if (could_send && (flags & kVsockNoSend) != 0) {
    PutEventLocked({.kind = Event::Kind::kPeerClosed,
                    .id = IdOf(key, stream),
                    .slot = stream.slot});
  }
  return true;
}

void Vsock::FillLocked(const Chain& chain) {
  if (chain.writable_bytes() < kVsockHeaderBytes) {
    FailLocked(Error(absl::StatusCode::kInvalidArgument,
                     "a receive buffer has {} bytes, a header has {}",
                     chain.writable_bytes(), kVsockHeaderBytes));
    return;
  }
  std::optional<VsockHeader> header;
  std::span<const uint8_t> data;
  if (!resets_.empty()) {
    const Key key = resets_.front();
    resets_.pop_front();
    header = VsockHeader{.source_cid = kVsockHostCid,
                         .destination_cid = options_.guest_cid,
                         .source_port = key.host_port,
                         .destination_port = key.guest_port,
                         .operation = VsockOperation::kReset};
  } else if (!ready_.empty()) {
    const Key key = ready_.front();
    ready_.pop_front();
    header = NextWishLocked(key);
  } else {
    Stream& stream = streams_.find(sending_->key)->second;
    data = sending_->rest.first(std::min<size_t>(
        {sending_->rest.size(), CreditOf(stream), kMaxDataBytes,
         chain.writable_bytes() - kVsockHeaderBytes}));
    header = HeaderLocked(sending_->key, stream, VsockOperation::kData);
    header->length = static_cast<uint32_t>(data.size());
    stream.sent += header->length;
    sending_->rest = sending_->rest.subspan(data.size());
  }
  chain.CopyIn(0, EncodeVsockHeader(*header));
  chain.CopyIn(kVsockHeaderBytes, data);
  PushLocked(kReceiveQueue, chain.head(),
             static_cast<uint32_t>(kVsockHeaderBytes + data.size()));
}

VsockHeader Vsock::HeaderLocked(const Key& key, Stream& stream,
                                VsockOperation operation) {
  // Every packet tells how much room there is.
  stream.consumed_told = stream.consumed;
  stream.wishes &= ~uint32_t{kWishCreditUpdate};
  return {.source_cid = kVsockHostCid,
          .destination_cid = options_.guest_cid,
          .source_port = key.host_port,
          .destination_port = key.guest_port,
          .operation = operation,
          .buffer_bytes = options_.buffer_bytes,
          .forwarded_bytes = stream.consumed};
}

VsockHeader Vsock::NextWishLocked(const Key& key) {
  Stream& stream = streams_.find(key)->second;
  stream.queued = false;
  VsockOperation operation = VsockOperation::kCreditUpdate;
  uint32_t flags = 0;
  if ((stream.wishes & kWishRequest) != 0) {
    operation = VsockOperation::kRequest;
    stream.wishes &= ~uint32_t{kWishRequest};
  } else if ((stream.wishes & kWishResponse) != 0) {
    operation = VsockOperation::kResponse;
    stream.wishes &= ~uint32_t{kWishResponse};
  } else if ((stream.wishes & kWishShutdown) != 0) {
    operation = VsockOperation::kShutdown;
    flags = stream.our_shutdown;
    stream.wishes &= ~uint32_t{kWishShutdown};
  }
  VsockHeader header = HeaderLocked(key, stream, operation);
  header.flags = flags;
  if (stream.wishes != 0) WishLocked(key, stream, 0);
  return header;
}

void Vsock::WishLocked(const Key& key, Stream& stream, uint32_t wish) {
  stream.wishes |= wish;
  if (stream.queued) return;
  stream.queued = true;
  ready_.push_back(key);
}

void Vsock::SendResetLocked(const Key& key) { resets_.push_back(key); }

uint32_t Vsock::CreditOf(const Stream& stream) {
  if (stream.state != State::kConnected ||
      (stream.our_shutdown & kVsockNoSend) != 0 ||
      (stream.peer_shutdown & kVsockNoReceive) != 0) {
    return 0;
  }
  const uint32_t in_flight = stream.sent - stream.peer_consumed;
  return stream.peer_buffer > in_flight ? stream.peer_buffer - in_flight : 0;
}

void Vsock::ResetLocked() {
  RemoveAllLocked(absl::UnavailableError("the guest reset its vsock device"));
  transport_reset_ = false;
}

void Vsock::ResetTransport() {
  {
    const base::MutexLock lock(&mutex_);
    RemoveAllLocked(absl::UnavailableError(
        "the machine was restored; its streams did not come with it"));
    transport_reset_ = true;
    ServeQueueLocked(kEventQueue);
  }
  Deliver(SIZE_MAX);
}

void Vsock::RenewReceiveBuffers() {
  const base::MutexLock lock(&mutex_);
  const auto [size, waiting] = FillOfQueueLocked(kReceiveQueue);
  const int half = size / 2;
  if (waiting < half || waiting >= half + size / 4) return;
  // To where less than half of them is left.
  for (int i = half - 1; i < waiting && resets_.size() < kMaxResets; ++i) {
    SendResetLocked({.host_port = kNobodysPort, .guest_port = kNobodysPort});
  }
  ServeQueueLocked(kReceiveQueue);
}

}  // namespace catnap::virtio
