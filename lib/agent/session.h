#ifndef CATNAP_LIB_AGENT_SESSION_H_
#define CATNAP_LIB_AGENT_SESSION_H_

#include <array>
#include <chrono>
#include <cstdint>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "agent/frame.h"

namespace catnap::agent {

// Why a stream or a session ended. On the wire in RESET: never renumbered.
enum class ResetCode : uint8_t {
  kProtocol = 1,   // The peer broke the protocol.
  kCancelled = 2,  // Its opener wants it no longer.
  kDeadline = 3,   // Its time is over.
  kRefused = 4,    // Too many streams, or no memory.
  kUnknown = 5,    // A kind that the peer does not know.
  kClosed = 6,     // The connection ended. Never on the wire.
  kVersion = 7,    // No common version. Never on the wire.
};

// Streams that the peer may have open at once; the host's own are bounded by
// what its callers ask for, up to kMaxStreams.
inline constexpr size_t kMaxStreams = 1024;
inline constexpr size_t kMaxGuestStreams = 128;
// Bytes that may be under way on a channel when its stream opens.
inline constexpr uint32_t kInitialCredit = 128 << 10;
inline constexpr uint32_t kMaxCredit = 16 << 20;
// Write() takes no data while more than this waits to be sent...
inline constexpr size_t kMaxUnsentData = 256 << 10;
// ... and a peer that makes us answer without reading the answers is cut off.
inline constexpr size_t kMaxUnsentBytes = 4 << 20;
inline constexpr size_t kMaxResetText = 512;

static_assert(kInitialCredit == 131'072 && kMaxCredit == 16'777'216 &&
                  kMaxStreams == 1024 && kMaxGuestStreams == 128,
              "on the wire: read lib/agent/PROTOCOL.md first");

struct Hello {
  uint32_t version = kProtocolVersion;
  uint32_t min_version = 1;
  uint64_t features = 0;
  std::string name{};  // For logs. At most 64 bytes.
};

// One end of the connection between host and guest agent, without I/O, threads
// or clock: received bytes go in, bytes to send come out. The peer is hostile.
// What it can make this object hold: one frame that is not whole, one entry for
// each open stream, and kMaxUnsentBytes. Data is handed on at once and never
// kept; a receiver that cannot use it now returns the credit later.
//
// Thread-compatible. The handler may call everything but Receive().
class Session {
 public:
  using Time = std::chrono::steady_clock::time_point;
  using Bytes = std::span<const uint8_t>;
  enum class Role : uint8_t { kHost, kGuest };

  class Handler {
   public:
    virtual ~Handler() = default;
    virtual void OnHello(const Hello& hello) = 0;
    virtual void OnPong(Bytes body) = 0;
    // The peer opened a stream; `request` is the OPEN's nested message.
    virtual void OnOpen(uint32_t stream, uint32_t kind, Bytes request) = 0;
    virtual void OnData(uint32_t stream, uint8_t channel, Bytes data,
                        bool end) = 0;
    virtual void OnMessage(uint32_t stream, Bytes fields) = 0;
    // More may be written to the stream.
    virtual void OnCredit(uint32_t stream, uint8_t channel) = 0;
    // The last two: the stream is gone when they are called.
    virtual void OnClose(uint32_t stream, Bytes fields) = 0;
    virtual void OnReset(uint32_t stream, ResetCode code,
                         std::string_view text) = 0;
  };

  // Puts our hello into the bytes to send. `handler` must outlive the session.
  Session(Role role, Handler* handler, const Hello& hello);
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // Takes what the peer sent. Returns ok().
  bool Receive(Bytes bytes);
  // The bytes to send now; Sent() removes them from the front.
  Bytes unsent() const { return {out_.data() + sent_, out_.size() - sent_}; }
  void Sent(size_t bytes);

  // Opens a stream of `kind` with a request of tagged fields. None: too many
  // streams, the request is too long, or the session has failed.
  std::optional<uint32_t> Open(uint32_t kind, Bytes request);
  // Sends from the front of `data` as much as credit and the bound on unsent
  // bytes allow, and returns how much; `end` counts when that is all of it.
  // After less, OnCredit() or Sent() makes room.
  size_t Write(uint32_t stream, uint8_t channel, Bytes data, bool end);
  // How much Write() would take now.
  size_t WritableBytes(uint32_t stream, uint8_t channel) const;
  // Lets the peer send as many bytes more: they were received and used.
  void Consume(uint32_t stream, uint8_t channel, size_t bytes);
  void SendMessage(uint32_t stream, Bytes fields);
  // Ends a stream that the peer opened, with its result.
  void Close(uint32_t stream, Bytes fields);
  // Ends a stream of either side. OnReset() is not called.
  void Reset(uint32_t stream, ResetCode code, std::string_view text);
  void Ping(Bytes body);

  // When `time` comes first, the stream is reset and OnReset(kDeadline) called.
  void SetDeadline(uint32_t stream, Time time);
  // When OnTime() is to be called next, if at all.
  std::optional<Time> NextDeadline() const;
  void OnTime(Time now);

  // Ends the session and, with OnReset, all its streams. Idempotent; the first
  // reason stands.
  void Fail(ResetCode code, std::string_view text);
  bool ok() const { return !failed_; }
  bool ready() const { return ready_; }  // The peer's hello has come.
  ResetCode fail_code() const { return fail_code_; }
  const std::string& fail_text() const { return fail_text_; }
  size_t stream_count() const { return streams_.size(); }
  bool IsOpen(uint32_t stream) const { return streams_.contains(stream); }

 private:
  struct Stream {
    Stream() {
      credit.fill(kInitialCredit);
      window.fill(kInitialCredit);
    }
    std::array<uint32_t, kMaxChannels> credit{};  // What we may send.
    std::array<uint32_t, kMaxChannels> window{};  // What the peer may send.
    // Used, but not yet worth a CREDIT frame of its own.
    std::array<uint32_t, kMaxChannels> owed{};
    uint8_t sent_end = 0;  // A bit for each channel.
    uint8_t received_end = 0;
    std::optional<Time> deadline{};
  };

  bool IsOurs(uint32_t stream) const;
  void Dispatch(const Frame& frame);
  void ReceiveHello(const Frame& frame);
  void ReceiveOpen(const Frame& frame);
  void ReceiveData(const Frame& frame, Stream* stream);
  void ReceiveCredit(const Frame& frame, Stream* stream);
  void ReceiveReset(const Frame& frame);
  void Erase(uint32_t stream);
  void Put(const Frame& frame);
  void PutReset(uint32_t stream, ResetCode code, std::string_view text);

  const Role role_;
  Handler* const handler_;  // Not owned.
  const Hello hello_;
  FrameReader reader_;
  std::vector<uint8_t> out_;
  size_t sent_ = 0;  // Of out_.
  std::unordered_map<uint32_t, Stream> streams_;
  std::set<std::pair<Time, uint32_t>> deadlines_;
  size_t peer_streams_ = 0;
  uint32_t next_id_;        // Of our next stream.
  uint32_t last_peer_ = 0;  // The highest id that the peer opened.
  bool ready_ = false;
  bool failed_ = false;
  ResetCode fail_code_ = ResetCode::kClosed;
  std::string fail_text_;
};

}  // namespace catnap::agent

#endif  // CATNAP_LIB_AGENT_SESSION_H_
