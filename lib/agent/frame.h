#ifndef CATNAP_LIB_AGENT_FRAME_H_
#define CATNAP_LIB_AGENT_FRAME_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace catnap::agent {

// The protocol between host and guest agent, cut into frames; PROTOCOL.md has
// the bytes. This code is part of both programs, so its errors are static text
// and not statuses, whose library is larger than the agent.

inline constexpr uint32_t kProtocolVersion = 1;
inline constexpr size_t kHeaderBytes = 12;
inline constexpr size_t kMaxBodyBytes = size_t{256} << 10;
inline constexpr size_t kMaxDataBytes = size_t{64} << 10;  // Of a DATA frame.
inline constexpr size_t kMaxPingBytes = 64;
inline constexpr uint8_t kMaxChannels = 4;  // Of a stream, each way.
inline constexpr uint8_t kEndFlag = 0x80;   // In the channel's byte.

enum class FrameType : uint8_t {
  kHello = 1,
  kPing = 2,
  kPong = 3,
  kOpen = 4,
  kData = 5,
  kCredit = 6,
  kMessage = 7,
  kClose = 8,
  kReset = 9,
};

static_assert(kProtocolVersion == 1 && kHeaderBytes == 12 &&
                  kMaxBodyBytes == 262'144 && kMaxDataBytes == 65'536 &&
                  kMaxPingBytes == 64 && kMaxChannels == 4 &&
                  kEndFlag == 0x80 &&
                  static_cast<int>(FrameType::kHello) == 1 &&
                  static_cast<int>(FrameType::kPing) == 2 &&
                  static_cast<int>(FrameType::kPong) == 3 &&
                  static_cast<int>(FrameType::kOpen) == 4 &&
                  static_cast<int>(FrameType::kData) == 5 &&
                  static_cast<int>(FrameType::kCredit) == 6 &&
                  static_cast<int>(FrameType::kMessage) == 7 &&
                  static_cast<int>(FrameType::kClose) == 8 &&
                  static_cast<int>(FrameType::kReset) == 9,
              "on the wire: read lib/agent/PROTOCOL.md first");

struct Frame {
  FrameType type = FrameType::kHello;
  uint8_t channel = 0;
  bool end = false;     // DATA: the channel's last byte is in this frame.
  uint32_t stream = 0;  // 0: the connection.
  std::span<const uint8_t> body{};
};

// Appends the frame's bytes. REQUIRES: body.size() <= kMaxBodyBytes.
void AppendFrame(const Frame& frame, std::vector<uint8_t>* to);

// Cuts hostile bytes into frames. Keeps at most one frame that is not whole,
// and grows with what arrived, never with what a header promises.
// Thread-compatible.
class FrameReader {
 public:
  // Takes bytes from the front of *bytes. The frame's body points into *bytes
  // or into the reader, and is good until the next call. None: *bytes is empty
  // and more is needed, or error() is set, for good.
  std::optional<Frame> Next(std::span<const uint8_t>* bytes);

  // Null, or what was wrong.
  const char* error() const { return error_; }
  size_t buffered_bytes() const { return partial_.size(); }

 private:
  // Checks a whole header; null when it is in order.
  static const char* Check(const uint8_t* header);
  static Frame Parse(const uint8_t* bytes);

  std::vector<uint8_t> partial_;
  bool handed_out_ = false;  // partial_ is the last frame's.
  const char* error_ = nullptr;
};

}  // namespace catnap::agent

#endif  // CATNAP_LIB_AGENT_FRAME_H_
