#include "agent/frame.h"

#include <algorithm>

#include "base/byte_order.h"

namespace catnap::agent {
namespace {

uint32_t BodyBytes(const uint8_t* header) {
  return base::LoadLe<uint32_t>(header);
}

// More than this is not kept for the next partial frame.
constexpr size_t kKeepBytes = 4096;

}  // namespace

void AppendFrame(const Frame& frame, std::vector<uint8_t>* to) {
  const size_t at = to->size();
  to->resize(at + kHeaderBytes + frame.body.size());
  uint8_t* header = to->data() + at;
  base::StoreLe(header, static_cast<uint32_t>(frame.body.size()));
  header[4] = static_cast<uint8_t>(frame.type);
  header[5] =
      static_cast<uint8_t>(frame.channel | (frame.end ? kEndFlag : uint8_t{0}));
  base::StoreLe(header + 6, uint16_t{0});
  base::StoreLe(header + 8, frame.stream);
  std::copy(frame.body.begin(), frame.body.end(), header + kHeaderBytes);
}

const char* FrameReader::Check(const uint8_t* header) {
  const uint32_t length = BodyBytes(header);
  if (length > kMaxBodyBytes) return "frame body too long";
  if (header[4] < static_cast<uint8_t>(FrameType::kHello) ||
      header[4] > static_cast<uint8_t>(FrameType::kReset)) {
    return "unknown frame type";
  }
  const auto type = static_cast<FrameType>(header[4]);
  const bool of_channel =
      type == FrameType::kData || type == FrameType::kCredit;
  const uint8_t channel = header[5] & static_cast<uint8_t>(~kEndFlag);
  if (channel >= kMaxChannels) return "channel out of range";
  if (channel != 0 && !of_channel) return "channel on a frame without channels";
  if ((header[5] & kEndFlag) != 0 && type != FrameType::kData) {
    return "end flag on a frame other than DATA";
  }
  if (base::LoadLe<uint16_t>(header + 6) != 0) return "reserved bytes not zero";
  const bool of_connection = type == FrameType::kHello ||
                             type == FrameType::kPing ||
                             type == FrameType::kPong;
  if ((base::LoadLe<uint32_t>(header + 8) == 0) != of_connection) {
    return "frame on the wrong kind of stream";
  }
  if (type == FrameType::kData && length > kMaxDataBytes) {
    return "data frame too long";
  }
  if ((type == FrameType::kPing || type == FrameType::kPong) &&
      length > kMaxPingBytes) {
    return "ping too long";
  }
  return nullptr;
}

Frame FrameReader::Parse(const uint8_t* bytes) {
  Frame frame;
  frame.type = static_cast<FrameType>(bytes[4]);
  frame.channel = bytes[5] & static_cast<uint8_t>(~kEndFlag);
  frame.end = (bytes[5] & kEndFlag) != 0;
  frame.stream = base::LoadLe<uint32_t>(bytes + 8);
  frame.body = {bytes + kHeaderBytes, BodyBytes(bytes)};
  return frame;
}

std::optional<Frame> FrameReader::Next(std::span<const uint8_t>* bytes) {
  if (handed_out_) {
    handed_out_ = false;
    partial_.clear();
    if (partial_.capacity() > kKeepBytes) partial_.shrink_to_fit();
  }
  if (error_ != nullptr) return std::nullopt;
  if (partial_.empty() && bytes->size() >= kHeaderBytes) {
    // The usual case: the whole frame lies in what was received.
    error_ = Check(bytes->data());
    if (error_ != nullptr) return std::nullopt;
    const size_t size = kHeaderBytes + BodyBytes(bytes->data());
    if (bytes->size() >= size) {
      const Frame frame = Parse(bytes->data());
      *bytes = bytes->subspan(size);
      return frame;
    }
  }
  const auto take = [&](size_t upto) {
    const size_t count = std::min(upto - partial_.size(), bytes->size());
    const auto first = bytes->first(count);
    partial_.insert(partial_.end(), first.begin(), first.end());
    *bytes = bytes->subspan(count);
    return partial_.size() == upto;
  };
  if (partial_.size() < kHeaderBytes) {
    if (!take(kHeaderBytes)) return std::nullopt;
    error_ = Check(partial_.data());
    if (error_ != nullptr) return std::nullopt;
  }
  if (!take(kHeaderBytes + BodyBytes(partial_.data()))) return std::nullopt;
  handed_out_ = true;
  return Parse(partial_.data());
}

}  // namespace catnap::agent
