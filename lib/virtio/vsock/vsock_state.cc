#include <algorithm>
#include <utility>
#include <vector>

#include "base/status.h"
#include "virtio/vsock/vsock.h"

// What a saved vsock device consists of. Events are not part of it: they are
// told before the device is saved.

namespace catnap::virtio {
namespace {

// Field ids; FORMAT: state/FORMAT.md.
constexpr uint32_t kStreamField = 1;  // A message, one for each stream.
constexpr uint32_t kResetField = 2;   // A message, one for each that waits.
constexpr uint32_t kNextPortField = 3;
constexpr uint32_t kNextGenerationField = 4;
constexpr uint32_t kTransportResetField = 5;
constexpr uint32_t kHostPortField = 1;  // Of a stream, and of a reset.
constexpr uint32_t kGuestPortField = 2;
constexpr uint32_t kGenerationField = 3;
constexpr uint32_t kStateField = 4;
constexpr uint32_t kWishesField = 5;
constexpr uint32_t kOurShutdownField = 6;
constexpr uint32_t kPeerShutdownField = 7;
constexpr uint32_t kSentField = 8;
constexpr uint32_t kReceivedField = 9;
constexpr uint32_t kConsumedField = 10;
constexpr uint32_t kConsumedToldField = 11;
constexpr uint32_t kPeerBufferField = 12;
constexpr uint32_t kPeerConsumedField = 13;
constexpr uint32_t kWantsWritableField = 14;
static_assert(kStreamField == 1 && kResetField == 2 && kNextPortField == 3 &&
                  kNextGenerationField == 4 && kTransportResetField == 5,
              "field ids are on disk: read lib/state/FORMAT.md first");
static_assert(kHostPortField == 1 && kGuestPortField == 2 &&
                  kGenerationField == 3 && kStateField == 4 &&
                  kWishesField == 5 && kOurShutdownField == 6 &&
                  kPeerShutdownField == 7 && kSentField == 8 &&
                  kReceivedField == 9 && kConsumedField == 10 &&
                  kConsumedToldField == 11 && kPeerBufferField == 12 &&
                  kPeerConsumedField == 13 && kWantsWritableField == 14,
              "field ids are on disk: read lib/state/FORMAT.md first");

}  // namespace

void Vsock::SaveOwnLocked(state::StateEncoder& out) const {
  static_assert(static_cast<int>(State::kRequested) == 0 &&
                    static_cast<int>(State::kAccepting) == 1 &&
                    static_cast<int>(State::kConnected) == 2 &&
                    static_cast<int>(State::kClosing) == 3,
                "states are on disk: read lib/state/FORMAT.md first");
  // Equal states are equal bytes, so not in the table's order.
  std::vector<Key> keys;
  keys.reserve(streams_.size());
  for (const auto& [key, stream] : streams_) keys.push_back(key);
  std::sort(keys.begin(), keys.end(), [](const Key& a, const Key& b) {
    return std::pair(a.host_port, a.guest_port) <
           std::pair(b.host_port, b.guest_port);
  });
  for (const Key& key : keys) {
    const Stream& stream = streams_.find(key)->second;
    const auto nested = out.Message(kStreamField);
    out.Unsigned(kHostPortField, key.host_port);
    out.Unsigned(kGuestPortField, key.guest_port);
    out.Unsigned(kGenerationField, stream.generation);
    out.Unsigned(kStateField, static_cast<uint32_t>(stream.state));
    out.Unsigned(kWishesField, stream.wishes);
    out.Unsigned(kOurShutdownField, stream.our_shutdown);
    out.Unsigned(kPeerShutdownField, stream.peer_shutdown);
    out.Unsigned(kSentField, stream.sent);
    out.Unsigned(kReceivedField, stream.received);
    out.Unsigned(kConsumedField, stream.consumed);
    out.Unsigned(kConsumedToldField, stream.consumed_told);
    out.Unsigned(kPeerBufferField, stream.peer_buffer);
    out.Unsigned(kPeerConsumedField, stream.peer_consumed);
    out.Bool(kWantsWritableField, stream.wants_writable);
  }
  for (const Key& key : resets_) {
    const auto nested = out.Message(kResetField);
    out.Unsigned(kHostPortField, key.host_port);
    out.Unsigned(kGuestPortField, key.guest_port);
  }
  out.Unsigned(kNextPortField, next_port_);
  out.Unsigned(kNextGenerationField, next_generation_);
  out.Bool(kTransportResetField, transport_reset_);
}

absl::Status Vsock::LoadStreamLocked(state::StateDecoder in) {
  Key key;
  Stream stream;
  uint32_t state = 0;
  while (in.Next()) {
    switch (in.id()) {
      case kHostPortField:
        key.host_port = in.U32();
        break;
      case kGuestPortField:
        key.guest_port = in.U32();
        break;
      case kGenerationField:
        stream.generation = in.U64();
        break;
      case kStateField:
        state = in.U32();
        break;
      case kWishesField:
        stream.wishes = in.U32() & (kWishRequest | kWishResponse |
                                    kWishCreditUpdate | kWishShutdown);
        break;
      case kOurShutdownField:
        stream.our_shutdown = in.U32() & (kVsockNoReceive | kVsockNoSend);
        break;
      case kPeerShutdownField:
        stream.peer_shutdown = in.U32() & (kVsockNoReceive | kVsockNoSend);
        break;
      case kSentField:
        stream.sent = in.U32();
        break;
      case kReceivedField:
        stream.received = in.U32();
        break;
      case kConsumedField:
        stream.consumed = in.U32();
        break;
      case kConsumedToldField:
        stream.consumed_told = in.U32();
        break;
      case kPeerBufferField:
        stream.peer_buffer = in.U32();
        break;
      case kPeerConsumedField:
        stream.peer_consumed = in.U32();
        break;
      case kWantsWritableField:
        stream.wants_writable = in.Bool();
        break;
      default:
        break;
    }
  }
  CATNAP_RETURN_IF_ERROR(in.status());
  if (state > static_cast<uint32_t>(State::kClosing) ||
      stream.received - stream.consumed > options_.buffer_bytes ||
      streams_.size() >= options_.max_streams || streams_.contains(key)) {
    return Error(absl::StatusCode::kDataLoss,
                 "a saved vsock stream {}:{} cannot be", key.host_port,
                 key.guest_port);
  }
  stream.state = static_cast<State>(state);
  stream.slot = std::make_shared<HandlerSlot>();
  Stream& added = streams_[key] = std::move(stream);
  if (added.state == State::kRequested || added.state == State::kAccepting) {
    // Whoever asked, and whoever was to answer, is not here.
    streams_.erase(key);
    SendResetLocked(key);
    return absl::OkStatus();
  }
  if (added.state == State::kClosing) closing_.push_back(IdOf(key, added));
  if (added.wishes != 0) WishLocked(key, added, 0);
  return absl::OkStatus();
}

absl::Status Vsock::LoadOwnLocked(state::StateDecoder in) {
  while (in.Next()) {
    switch (in.id()) {
      case kStreamField:
        CATNAP_RETURN_IF_ERROR(LoadStreamLocked(in.Message()));
        break;
      case kResetField: {
        state::StateDecoder reset = in.Message();
        Key key;
        while (reset.Next()) {
          if (reset.id() == kHostPortField) key.host_port = reset.U32();
          if (reset.id() == kGuestPortField) key.guest_port = reset.U32();
        }
        CATNAP_RETURN_IF_ERROR(reset.status());
        SendResetLocked(key);
        break;
      }
      case kNextPortField:
        next_port_ = std::max(in.U32(), uint32_t{1} << 30);
        break;
      case kNextGenerationField:
        next_generation_ = in.U64();
        break;
      case kTransportResetField:
        transport_reset_ = in.Bool();
        break;
      default:
        break;
    }
  }
  return in.status();
}

}  // namespace catnap::virtio
