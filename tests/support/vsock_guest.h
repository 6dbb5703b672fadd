#ifndef CATNAP_TESTS_SUPPORT_VSOCK_GUEST_H_
#define CATNAP_TESTS_SUPPORT_VSOCK_GUEST_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "support/virtio_driver.h"
#include "virtio/vsock/vsock.h"

namespace catnap::test {

struct VsockPacket {
  virtio::VsockHeader header;
  std::string data{};
};

// A guest's vsock driver that does only what it is told.
class VsockGuest {
 public:
  static constexpr uint64_t kCid = 3;
  static constexpr uint32_t kReceiveBufferBytes = 4096;

  explicit VsockGuest(const virtio::VsockOptions& options = {})
      : driver_([&options](memory::GuestMemory* memory) {
          return std::make_unique<virtio::Vsock>(options, memory);
        }) {}

  VirtioDriver& driver() { return driver_; }
  virtio::Vsock& device() {
    return static_cast<virtio::Vsock&>(driver_.device());
  }

  // Starts the device and offers `buffers` (to 16) for packets to the guest.
  bool Start(uint16_t buffers = 16) {
    if (!driver_.Start(16)) return false;
    Offer(buffers);
    return true;
  }
  void Offer(uint16_t buffers) {
    for (; buffers > 0; --buffers) {
      const auto head = static_cast<uint16_t>(offered_++ % 16);
      driver_.Add(0, head, {{BufferOf(head), kReceiveBufferBytes, true}});
    }
    driver_.Kick();
  }

  // The packet's cids are filled in when they are 0.
  void Send(virtio::VsockHeader header, const std::string& data = "") {
    if (header.source_cid == 0) header.source_cid = kCid;
    if (header.destination_cid == 0) header.destination_cid = 2;
    const auto bytes = virtio::EncodeVsockHeader(header);
    driver_.Fill(kTransmit, std::string(bytes.begin(), bytes.end()) + data);
    driver_.Add(1, 0,
                {{kTransmit, static_cast<uint32_t>(bytes.size() + data.size()),
                  false}});
    driver_.Kick();
    // A device with much to say takes nothing until it is rid of some of that.
    while (driver_.TakeUsed(1).empty() && driver_.failures() == 0) Receive();
  }
  // The common case: a packet of a stream, with much credit.
  void Send(uint32_t guest_port, uint32_t host_port,
            virtio::VsockOperation operation, const std::string& data = "",
            uint32_t flags = 0) {
    Send({.source_port = guest_port,
          .destination_port = host_port,
          .length = static_cast<uint32_t>(data.size()),
          .operation = operation,
          .flags = flags,
          .buffer_bytes = buffer_bytes,
          .forwarded_bytes = forwarded_bytes},
         data);
  }

  // What came, and offers the buffers again if `offer_again`.
  std::vector<VsockPacket> Receive(bool offer_again = true) {
    std::vector<VsockPacket> packets;
    for (const UsedBuffer& used : driver_.TakeUsed(0)) {
      const std::string bytes =
          driver_.Bytes(BufferOf(used.head), used.written);
      if (bytes.size() < virtio::kVsockHeaderBytes) std::abort();
      packets.push_back(
          {.header = virtio::DecodeVsockHeader(
               std::span<const uint8_t, virtio::kVsockHeaderBytes>(
                   reinterpret_cast<const uint8_t*>(bytes.data()),
                   virtio::kVsockHeaderBytes)),
           .data = bytes.substr(virtio::kVsockHeaderBytes)});
    }
    if (offer_again && !packets.empty()) {
      Offer(static_cast<uint16_t>(packets.size()));
    }
    return packets;
  }

  // What every later packet says of the guest's socket buffer.
  uint32_t buffer_bytes = 1 << 20;
  uint32_t forwarded_bytes = 0;

 private:
  static constexpr uint64_t kTransmit = VirtioDriver::kBuffers;
  static uint64_t BufferOf(uint32_t head) {
    return VirtioDriver::kBuffers + 0x80000 + uint64_t{head} * 0x2000;
  }

  VirtioDriver driver_;
  uint32_t offered_ = 0;
};

}  // namespace catnap::test

#endif  // CATNAP_TESTS_SUPPORT_VSOCK_GUEST_H_
