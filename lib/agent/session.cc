#include "agent/session.h"

#include <algorithm>

#include "state/decoder.h"
#include "state/encoder.h"

namespace catnap::agent {
namespace {

enum HelloField : uint32_t {
  kVersion = 1,
  kMinVersion = 2,
  kFeatures = 3,
  kName = 4,
};
enum OpenField : uint32_t { kKind = 1, kRequest = 2 };
enum CreditField : uint32_t { kBytes = 1 };
enum ResetField : uint32_t { kCode = 1, kText = 2 };
static_assert(kVersion == 1 && kMinVersion == 2 && kFeatures == 3 &&
                  kName == 4 && kKind == 1 && kRequest == 2 && kBytes == 1 &&
                  kCode == 1 && kText == 2,
              "on the wire: read lib/agent/PROTOCOL.md first");
static_assert(static_cast<int>(ResetCode::kProtocol) == 1 &&
                  static_cast<int>(ResetCode::kCancelled) == 2 &&
                  static_cast<int>(ResetCode::kDeadline) == 3 &&
                  static_cast<int>(ResetCode::kRefused) == 4 &&
                  static_cast<int>(ResetCode::kUnknown) == 5,
              "on the wire: read lib/agent/PROTOCOL.md first");

constexpr size_t kMaxName = 64;
// An id of this or more is never given out, so that ids never come again.
constexpr uint32_t kLastId = 0x7fff'fff0;

}  // namespace

Session::Session(Role role, Handler* handler, const Hello& hello)
    : role_(role),
      handler_(handler),
      hello_(hello),
      next_id_(role == Role::kHost ? 2 : 1) {
  std::vector<uint8_t> body;
  state::StateEncoder fields(&body);
  fields.Unsigned(kVersion, hello.version);
  fields.Unsigned(kMinVersion, hello.min_version);
  fields.Unsigned(kFeatures, hello.features);
  fields.Text(kName, std::string_view(hello.name).substr(0, kMaxName));
  Put({.type = FrameType::kHello, .body = body});
}

bool Session::IsOurs(uint32_t stream) const {
  return (stream % 2 == 0) == (role_ == Role::kHost);
}

void Session::Put(const Frame& frame) {
  if (failed_) return;
  if (out_.size() - sent_ > kMaxUnsentBytes) {
    Fail(ResetCode::kProtocol, "the peer does not read");
    return;
  }
  AppendFrame(frame, &out_);
}

void Session::Sent(size_t bytes) {
  sent_ += std::min(bytes, out_.size() - sent_);
  if (sent_ == out_.size()) {
    out_.clear();
    sent_ = 0;
    if (out_.capacity() > kMaxUnsentData) out_.shrink_to_fit();
  } else if (sent_ >= kMaxUnsentData) {
    out_.erase(out_.begin(), out_.begin() + static_cast<ptrdiff_t>(sent_));
    sent_ = 0;
  }
}

bool Session::Receive(Bytes bytes) {
  while (!failed_) {
    const std::optional<Frame> frame = reader_.Next(&bytes);
    if (!frame.has_value()) {
      if (reader_.error() != nullptr) {
        Fail(ResetCode::kProtocol, reader_.error());
      }
      break;
    }
    Dispatch(*frame);
  }
  return !failed_;
}

void Session::Dispatch(const Frame& frame) {
  if (frame.type == FrameType::kHello) {
    ReceiveHello(frame);
    return;
  }
  if (!ready_) {
    Fail(ResetCode::kProtocol, "a frame before the hello");
    return;
  }
  switch (frame.type) {
    case FrameType::kPing:
      Put({.type = FrameType::kPong, .body = frame.body});
      return;
    case FrameType::kPong:
      handler_->OnPong(frame.body);
      return;
    case FrameType::kOpen:
      ReceiveOpen(frame);
      return;
    default:
      break;
  }
  const auto at = streams_.find(frame.stream);
  if (at == streams_.end()) {
    // One that ended here while the frame was under way is no error; one that
    // never was open is.
    const bool was_open = IsOurs(frame.stream) ? frame.stream < next_id_
                                               : frame.stream <= last_peer_;
    if (!was_open) Fail(ResetCode::kProtocol, "a frame of an unknown stream");
    return;
  }
  switch (frame.type) {
    case FrameType::kData:
      ReceiveData(frame, &at->second);
      break;
    case FrameType::kCredit:
      ReceiveCredit(frame, &at->second);
      break;
    case FrameType::kMessage:
      handler_->OnMessage(frame.stream, frame.body);
      break;
    case FrameType::kClose:
      if (!IsOurs(frame.stream)) {
        Fail(ResetCode::kProtocol, "close of the peer's own stream");
        break;
      }
      Erase(frame.stream);
      handler_->OnClose(frame.stream, frame.body);
      break;
    default:
      ReceiveReset(frame);
      break;
  }
}

void Session::ReceiveHello(const Frame& frame) {
  if (ready_) {
    Fail(ResetCode::kProtocol, "a second hello");
    return;
  }
  Hello peer;
  peer.version = 0;
  state::StateDecoder in(frame.body);
  while (in.Next()) {
    switch (in.id()) {
      case kVersion:
        peer.version = in.U32();
        break;
      case kMinVersion:
        peer.min_version = in.U32();
        break;
      case kFeatures:
        peer.features = in.U64();
        break;
      case kName:
        peer.name = in.Text(kMaxName);
        break;
    }
  }
  if (!in.ok()) {
    Fail(ResetCode::kProtocol, "malformed hello");
    return;
  }
  if (peer.version < hello_.min_version || hello_.version < peer.min_version) {
    Fail(ResetCode::kVersion, "no protocol version in common");
    return;
  }
  ready_ = true;
  handler_->OnHello(peer);
}

void Session::ReceiveOpen(const Frame& frame) {
  if (IsOurs(frame.stream) || frame.stream <= last_peer_) {
    Fail(ResetCode::kProtocol, "stream id out of order");
    return;
  }
  last_peer_ = frame.stream;
  uint32_t kind = 0;
  Bytes request;
  state::StateDecoder in(frame.body);
  while (in.Next()) {
    switch (in.id()) {
      case kKind:
        kind = in.U32();
        break;
      case kRequest:
        request = in.Bytes(kMaxBodyBytes);
        break;
    }
  }
  if (!in.ok()) {
    Fail(ResetCode::kProtocol, "malformed open");
    return;
  }
  const size_t limit = role_ == Role::kHost ? kMaxGuestStreams : kMaxStreams;
  if (peer_streams_ >= limit) {
    PutReset(frame.stream, ResetCode::kRefused, "too many streams");
    return;
  }
  streams_.emplace(frame.stream, Stream());
  ++peer_streams_;
  handler_->OnOpen(frame.stream, kind, request);
}

void Session::ReceiveData(const Frame& frame, Stream* stream) {
  const auto bit = static_cast<uint8_t>(1 << frame.channel);
  if ((stream->received_end & bit) != 0) {
    Fail(ResetCode::kProtocol, "data behind the end of a channel");
    return;
  }
  uint32_t& window = stream->window[frame.channel];
  if (frame.body.size() > window) {
    Fail(ResetCode::kProtocol, "data without credit");
    return;
  }
  window -= static_cast<uint32_t>(frame.body.size());
  if (frame.end) stream->received_end |= bit;
  handler_->OnData(frame.stream, frame.channel, frame.body, frame.end);
}

void Session::ReceiveCredit(const Frame& frame, Stream* stream) {
  uint32_t bytes = 0;
  state::StateDecoder in(frame.body);
  while (in.Next()) {
    if (in.id() == kBytes) bytes = in.U32();
  }
  uint32_t& credit = stream->credit[frame.channel];
  if (!in.ok() || bytes > kMaxCredit - std::min(credit, kMaxCredit)) {
    Fail(ResetCode::kProtocol, "malformed credit");
    return;
  }
  credit += bytes;
  handler_->OnCredit(frame.stream, frame.channel);
}

void Session::ReceiveReset(const Frame& frame) {
  uint8_t code = 0;
  std::string text;
  state::StateDecoder in(frame.body);
  while (in.Next()) {
    switch (in.id()) {
      case kCode:
        code = in.U8();
        break;
      case kText:
        text = in.Text(kMaxResetText);
        break;
    }
  }
  if (!in.ok() || code < static_cast<uint8_t>(ResetCode::kProtocol) ||
      code > static_cast<uint8_t>(ResetCode::kUnknown)) {
    Fail(ResetCode::kProtocol, "malformed reset");
    return;
  }
  Erase(frame.stream);
  handler_->OnReset(frame.stream, static_cast<ResetCode>(code), text);
}

void Session::Erase(uint32_t stream) {
  const auto at = streams_.find(stream);
  if (at == streams_.end()) return;
  if (at->second.deadline.has_value()) {
    deadlines_.erase({*at->second.deadline, stream});
  }
  streams_.erase(at);
  if (!IsOurs(stream)) --peer_streams_;
}

std::optional<uint32_t> Session::Open(uint32_t kind, Bytes request) {
  const size_t limit = role_ == Role::kHost ? kMaxStreams : kMaxGuestStreams;
  if (failed_ || streams_.size() - peer_streams_ >= limit ||
      next_id_ >= kLastId) {
    return std::nullopt;
  }
  std::vector<uint8_t> body;
  state::StateEncoder fields(&body);
  fields.Unsigned(kKind, kind);
  fields.Bytes(kRequest, request);
  if (!fields.ok() || body.size() > kMaxBodyBytes) return std::nullopt;
  const uint32_t stream = next_id_;
  next_id_ += 2;
  streams_.emplace(stream, Stream());
  Put({.type = FrameType::kOpen, .stream = stream, .body = body});
  if (failed_) return std::nullopt;
  return stream;
}

size_t Session::WritableBytes(uint32_t stream, uint8_t channel) const {
  const auto at = streams_.find(stream);
  if (failed_ || at == streams_.end()) return 0;
  if ((at->second.sent_end & (1 << channel)) != 0) return 0;
  const size_t unsent = out_.size() - sent_;
  if (unsent >= kMaxUnsentData) return 0;
  return std::min<size_t>(at->second.credit[channel], kMaxUnsentData - unsent);
}

size_t Session::Write(uint32_t stream, uint8_t channel, Bytes data, bool end) {
  const auto at = streams_.find(stream);
  if (failed_ || at == streams_.end()) return 0;
  if ((at->second.sent_end & (1 << channel)) != 0) return 0;
  const size_t total = std::min(data.size(), WritableBytes(stream, channel));
  const bool last = end && total == data.size();
  size_t done = 0;
  while (done < total || (last && data.empty())) {
    const size_t size = std::min(total - done, kMaxDataBytes);
    Put({.type = FrameType::kData,
         .channel = channel,
         .end = last && done + size == total,
         .stream = stream,
         .body = data.subspan(done, size)});
    if (failed_) return done;  // The stream is gone.
    done += size;
    if (size == 0) break;
  }
  at->second.credit[channel] -= static_cast<uint32_t>(total);
  if (last) at->second.sent_end |= static_cast<uint8_t>(1 << channel);
  return total;
}

void Session::Consume(uint32_t stream, uint8_t channel, size_t bytes) {
  const auto at = streams_.find(stream);
  if (failed_ || at == streams_.end()) return;
  Stream& to = at->second;
  if ((to.received_end & (1 << channel)) != 0) return;
  // Never more than the peer once had.
  const size_t most =
      kInitialCredit -
      std::min(to.window[channel] + to.owed[channel], kInitialCredit);
  to.owed[channel] += static_cast<uint32_t>(std::min(bytes, most));
  // A frame for each half window, not for each read.
  if (to.owed[channel] < kInitialCredit / 2) return;
  std::vector<uint8_t> body;
  state::StateEncoder fields(&body);
  fields.Unsigned(kBytes, to.owed[channel]);
  to.window[channel] += to.owed[channel];
  to.owed[channel] = 0;
  Put({.type = FrameType::kCredit,
       .channel = channel,
       .stream = stream,
       .body = body});
}

void Session::SendMessage(uint32_t stream, Bytes fields) {
  if (!IsOpen(stream) || fields.size() > kMaxBodyBytes) return;
  Put({.type = FrameType::kMessage, .stream = stream, .body = fields});
}

void Session::Close(uint32_t stream, Bytes fields) {
  if (!IsOpen(stream) || IsOurs(stream)) return;
  Erase(stream);
  Put({.type = FrameType::kClose,
       .stream = stream,
       .body = fields.first(std::min(fields.size(), kMaxBodyBytes))});
}

void Session::PutReset(uint32_t stream, ResetCode code, std::string_view text) {
  std::vector<uint8_t> body;
  state::StateEncoder fields(&body);
  fields.Unsigned(kCode, static_cast<uint64_t>(code));
  fields.Text(kText, text.substr(0, kMaxResetText));
  Put({.type = FrameType::kReset, .stream = stream, .body = body});
}

void Session::Reset(uint32_t stream, ResetCode code, std::string_view text) {
  if (!IsOpen(stream)) return;
  Erase(stream);
  PutReset(stream, code, text);
}

void Session::Ping(Bytes body) {
  Put({.type = FrameType::kPing,
       .body = body.first(std::min(body.size(), kMaxPingBytes))});
}

void Session::SetDeadline(uint32_t stream, Time time) {
  const auto at = streams_.find(stream);
  if (at == streams_.end()) return;
  if (at->second.deadline.has_value()) {
    deadlines_.erase({*at->second.deadline, stream});
  }
  at->second.deadline = time;
  deadlines_.insert({time, stream});
}

std::optional<Session::Time> Session::NextDeadline() const {
  if (deadlines_.empty()) return std::nullopt;
  return deadlines_.begin()->first;
}

void Session::OnTime(Time now) {
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    const uint32_t stream = deadlines_.begin()->second;
    Reset(stream, ResetCode::kDeadline, "deadline");
    handler_->OnReset(stream, ResetCode::kDeadline, "deadline");
  }
}

void Session::Fail(ResetCode code, std::string_view text) {
  if (failed_) return;
  failed_ = true;
  fail_code_ = code;
  fail_text_ = text;
  deadlines_.clear();
  peer_streams_ = 0;
  std::vector<uint32_t> ids;
  ids.reserve(streams_.size());
  for (const auto& [id, stream] : streams_) ids.push_back(id);
  std::sort(ids.begin(), ids.end());
  streams_.clear();
  for (const uint32_t id : ids) handler_->OnReset(id, code, fail_text_);
}

}  // namespace catnap::agent
