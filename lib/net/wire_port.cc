#include "net/wire_port.h"

#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <utility>

#include "base/status.h"

namespace catnap::net {
namespace {

// What one wake-up takes at most, so that one guest's traffic does not hold up
// the other guests of the loop.
constexpr int kMaxFramesAtOnce = 256;

absl::Status CheckPacketFd(int fd) {
  int type = 0;
  socklen_t size = sizeof(type);
  if (::getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0) {
    if (type == SOCK_DGRAM || type == SOCK_SEQPACKET) return absl::OkStatus();
    return Error(absl::StatusCode::kInvalidArgument,
                 "tap is a socket of type {}, must be a tap device, or a "
                 "socket that keeps messages apart",
                 type);
  }
  ifreq request{};
  if (::ioctl(fd, TUNGETIFF, &request) != 0) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "tap is neither a tap device nor a socket ({}); open "
                 "/dev/net/tun and TUNSETIFF with IFF_TAP | IFF_NO_PI",
                 ErrnoText(errno));
  }
  constexpr int kWanted = IFF_TAP | IFF_NO_PI;
  if ((request.ifr_flags & (kWanted | IFF_TUN | IFF_VNET_HDR)) != kWanted) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "tap has the flags {:#x}, must have IFF_TAP | IFF_NO_PI and "
                 "neither IFF_TUN nor IFF_VNET_HDR",
                 static_cast<unsigned>(request.ifr_flags));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Refusal> StreamPort::Send(std::span<const uint8_t> frame) {
  int error = 0;
  const bool sent = writer_.Send(fd()->get(), frame, &error);
  if (error != 0) return ErrnoError(error, "send");
  return sent ? Refusal::kNone : Refusal::kQueueFull;
}

absl::Status StreamPort::Flush() {
  const int error = writer_.Flush(fd()->get());
  return error == 0 ? absl::OkStatus() : ErrnoError(error, "send");
}

absl::StatusOr<bool> StreamPort::Receive(
    const std::function<bool(std::span<const uint8_t>)>& take) {
  for (int i = 0; i < kMaxFramesAtOnce;) {
    std::span<const uint8_t> frame;
    switch (reader_.Take(&frame)) {
      case FrameReader::Next::kBroken:
        return Error(absl::StatusCode::kUnavailable,
                     "it does not speak the protocol of its socket");
      case FrameReader::Next::kFrame:
        ++i;
        if (!take(frame)) return true;
        continue;
      case FrameReader::Next::kMore:
        break;
    }
    const std::span<uint8_t> room = reader_.Room();
    const ssize_t got =
        ::recv(fd()->get(), room.data(), room.size(), MSG_DONTWAIT);
    if (got == 0) {
      return Error(absl::StatusCode::kUnavailable, "it closed its socket");
    }
    if (got < 0) {
      if (errno == EINTR) continue;
      if (errno == EAGAIN) return false;
      return ErrnoError(errno, "recv");
    }
    reader_.Filled(static_cast<size_t>(got));
  }
  return true;
}

PacketPort::PacketPort(base::UniqueFd fd)
    : WirePort(std::make_shared<base::UniqueFd>(std::move(fd))) {}

absl::StatusOr<std::unique_ptr<PacketPort>> PacketPort::Create(
    base::UniqueFd fd) {
  CATNAP_RETURN_IF_ERROR(CheckPacketFd(fd.get()));
  const int flags = ::fcntl(fd.get(), F_GETFL);
  if (flags < 0 || ::fcntl(fd.get(), F_SETFL, flags | O_NONBLOCK) != 0) {
    return ErrnoError(errno, "F_SETFL of the tap");
  }
  return std::unique_ptr<PacketPort>(new PacketPort(std::move(fd)));
}

absl::StatusOr<Refusal> PacketPort::Send(std::span<const uint8_t> frame) {
  ssize_t sent = 0;
  do {
    sent = ::write(fd()->get(), frame.data(), frame.size());
  } while (sent < 0 && errno == EINTR);
  if (sent >= 0) return Refusal::kNone;
  // EIO: the interface is down. It may come up.
  if (errno == EAGAIN || errno == ENOBUFS || errno == EIO) {
    return Refusal::kQueueFull;
  }
  return ErrnoError(errno, "write to the tap");
}

absl::StatusOr<bool> PacketPort::Receive(
    const std::function<bool(std::span<const uint8_t>)>& take) {
  if (buffer_.empty()) buffer_.resize(kMaxFrameBytes + 1);
  for (int i = 0; i < kMaxFramesAtOnce; ++i) {
    const ssize_t got = ::read(fd()->get(), buffer_.data(), buffer_.size());
    if (got < 0) {
      if (errno == EINTR) continue;
      if (errno == EAGAIN) return false;
      return ErrnoError(errno, "read from the tap");
    }
    // An end: a stream of messages has no message of 0 bytes that is a frame.
    if (got == 0) {
      return Error(absl::StatusCode::kUnavailable, "the tap has ended");
    }
    const std::span<const uint8_t> frame =
        std::span(buffer_).first(static_cast<size_t>(got));
    if (!take(frame)) return true;
  }
  return true;
}

}  // namespace catnap::net
