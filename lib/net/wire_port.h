#ifndef CATNAP_LIB_NET_WIRE_PORT_H_
#define CATNAP_LIB_NET_WIRE_PORT_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/unique_fd.h"
#include "net/frame.h"
#include "net/frame_stream.h"

namespace catnap::net {

// A descriptor that frames go out to and come in from: a helper's stream or a
// tap. Thread-compatible; nothing blocks. After an error it is of no more use.
class WirePort {
 public:
  virtual ~WirePort() = default;
  const std::shared_ptr<base::UniqueFd>& fd() const { return fd_; }

  // kNone: the frame is on its way. An error: the port is broken.
  virtual absl::StatusOr<Refusal> Send(std::span<const uint8_t> frame) = 0;
  // Writes what Send() kept, now that the descriptor is writable.
  virtual absl::Status Flush() = 0;
  // Takes frames until none is there, or `take` returns false. Returns whether
  // there may be more.
  virtual absl::StatusOr<bool> Receive(
      const std::function<bool(std::span<const uint8_t>)>& take) = 0;

 protected:
  explicit WirePort(std::shared_ptr<base::UniqueFd> fd) : fd_(std::move(fd)) {}

 private:
  const std::shared_ptr<base::UniqueFd> fd_;
};

// A stream socket with a helper on its other end.
class StreamPort final : public WirePort {
 public:
  explicit StreamPort(std::shared_ptr<base::UniqueFd> socket)
      : WirePort(std::move(socket)) {}
  absl::StatusOr<Refusal> Send(std::span<const uint8_t> frame) override;
  absl::Status Flush() override;
  absl::StatusOr<bool> Receive(
      const std::function<bool(std::span<const uint8_t>)>& take) override;

 private:
  FrameReader reader_;
  FrameWriter writer_;
};

// A descriptor that keeps frames apart by itself: a tap device, or a socket of
// type SOCK_DGRAM or SOCK_SEQPACKET.
class PacketPort final : public WirePort {
 public:
  // Makes `fd` non-blocking, for all who have it.
  // Errors: INVALID_ARGUMENT, it is neither, or a tap with headers of its own.
  static absl::StatusOr<std::unique_ptr<PacketPort>> Create(base::UniqueFd fd);
  absl::StatusOr<Refusal> Send(std::span<const uint8_t> frame) override;
  absl::Status Flush() override { return absl::OkStatus(); }
  absl::StatusOr<bool> Receive(
      const std::function<bool(std::span<const uint8_t>)>& take) override;

 private:
  explicit PacketPort(base::UniqueFd fd);
  std::vector<uint8_t> buffer_;
};

}  // namespace catnap::net

#endif  // CATNAP_LIB_NET_WIRE_PORT_H_
