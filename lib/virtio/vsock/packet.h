#ifndef CATNAP_LIB_VIRTIO_VSOCK_PACKET_H_
#define CATNAP_LIB_VIRTIO_VSOCK_PACKET_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace catnap::virtio {

inline constexpr size_t kVsockHeaderBytes = 44;
inline constexpr uint64_t kVsockHostCid = 2;
inline constexpr uint16_t kVsockTypeStream = 1;

// virtio 1.2, 5.10.6.
enum class VsockOperation : uint16_t {
  kRequest = 1,
  kResponse = 2,
  kReset = 3,
  kShutdown = 4,
  kData = 5,
  kCreditUpdate = 6,
  kCreditRequest = 7,
};

// Flags of kShutdown: what the sender will not do any more.
inline constexpr uint32_t kVsockNoReceive = 1;
inline constexpr uint32_t kVsockNoSend = 2;

// A packet's header, which the guest may have filled with anything.
struct VsockHeader {
  uint64_t source_cid = 0;
  uint64_t destination_cid = 0;
  uint32_t source_port = 0;
  uint32_t destination_port = 0;
  uint32_t length = 0;  // Of the data behind the header.
  uint16_t type = kVsockTypeStream;
  VsockOperation operation{};
  uint32_t flags = 0;
  uint32_t buffer_bytes = 0;     // buf_alloc: the sender's receive buffer.
  uint32_t forwarded_bytes = 0;  // fwd_cnt: what left that buffer, mod 2^32.

  friend bool operator==(const VsockHeader&, const VsockHeader&) = default;
};

VsockHeader DecodeVsockHeader(
    std::span<const uint8_t, kVsockHeaderBytes> bytes);
std::array<uint8_t, kVsockHeaderBytes> EncodeVsockHeader(
    const VsockHeader& header);

}  // namespace catnap::virtio

#endif  // CATNAP_LIB_VIRTIO_VSOCK_PACKET_H_
