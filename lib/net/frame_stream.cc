#include "net/frame_stream.h"

#include <sys/socket.h>
#include <sys/uio.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "net/frame.h"
#include "net/wire.h"

namespace catnap::net {
namespace {

constexpr size_t kLengthBytes = 4;
// A frame of the greatest length, and as much again so that most are not moved.
constexpr size_t kBufferBytes = 2 * (kLengthBytes + kMaxFrameBytes);

// Returns how many bytes went; below 0: `*error` says why none.
ssize_t SendNow(int socket, std::span<const iovec> parts, int* error) {
  msghdr message{};
  message.msg_iov = const_cast<iovec*>(parts.data());
  message.msg_iovlen = parts.size();
  ssize_t sent = 0;
  do {
    sent = ::sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  if (sent < 0) *error = errno;
  return sent;
}

}  // namespace

std::span<uint8_t> FrameReader::Room() {
  if (buffer_.empty()) buffer_.resize(kBufferBytes);
  if (begin_ > 0 && buffer_.size() - end_ < kLengthBytes + kMaxFrameBytes) {
    std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
    end_ -= begin_;
    begin_ = 0;
  }
  return std::span(buffer_).subspan(end_);
}

FrameReader::Next FrameReader::Take(std::span<const uint8_t>* frame) {
  const std::span<const uint8_t> rest =
      std::span(buffer_).subspan(begin_, end_ - begin_);
  if (rest.size() < kLengthBytes) return Next::kMore;
  const size_t length = Load32(rest, 0);
  if (length > kMaxFrameBytes) return Next::kBroken;
  if (rest.size() - kLengthBytes < length) return Next::kMore;
  *frame = rest.subspan(kLengthBytes, length);
  begin_ += kLengthBytes + length;
  return Next::kFrame;
}

bool FrameWriter::Send(int socket, std::span<const uint8_t> frame, int* error) {
  std::array<uint8_t, kLengthBytes> length{};
  Store16(length, 0, static_cast<uint16_t>(frame.size() >> 16));
  Store16(length, 2, static_cast<uint16_t>(frame.size()));
  size_t sent = 0;
  if (empty()) {
    kept_.clear();
    begin_ = 0;
    const std::array<iovec, 2> parts = {
        {{length.data(), length.size()},
         {const_cast<uint8_t*>(frame.data()), frame.size()}}};
    int why = 0;
    const ssize_t now = SendNow(socket, parts, &why);
    if (now < 0 && why != EAGAIN) {
      *error = why;
      return false;
    }
    sent = now < 0 ? 0 : static_cast<size_t>(now);
    if (sent == length.size() + frame.size()) return true;
  } else if (kept_.size() - begin_ + length.size() + frame.size() > kMaxBytes) {
    return false;
  }
  if (begin_ > kMaxBytes) {
    kept_.erase(kept_.begin(),
                kept_.begin() + static_cast<std::ptrdiff_t>(begin_));
    begin_ = 0;
  }
  if (sent < length.size()) {
    AppendBytes(&kept_, std::span(length).subspan(sent));
    sent = 0;
  } else {
    sent -= length.size();
  }
  AppendBytes(&kept_, frame.subspan(sent));
  return true;
}

int FrameWriter::Flush(int socket) {
  while (!empty()) {
    const iovec part = {kept_.data() + begin_, kept_.size() - begin_};
    int why = 0;
    const ssize_t sent = SendNow(socket, {&part, 1}, &why);
    if (sent < 0) return why == EAGAIN ? 0 : why;
    begin_ += static_cast<size_t>(sent);
  }
  // Nothing is kept for a stream that flows.
  kept_ = {};
  begin_ = 0;
  return 0;
}

}  // namespace catnap::net
