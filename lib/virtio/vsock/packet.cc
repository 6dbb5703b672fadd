#include "virtio/vsock/packet.h"

#include "base/byte_order.h"

namespace catnap::virtio {

VsockHeader DecodeVsockHeader(
    std::span<const uint8_t, kVsockHeaderBytes> bytes) {
  const uint8_t* const from = bytes.data();
  return {.source_cid = base::LoadLe<uint64_t>(from),
          .destination_cid = base::LoadLe<uint64_t>(from + 8),
          .source_port = base::LoadLe<uint32_t>(from + 16),
          .destination_port = base::LoadLe<uint32_t>(from + 20),
          .length = base::LoadLe<uint32_t>(from + 24),
          .type = base::LoadLe<uint16_t>(from + 28),
          .operation =
              static_cast<VsockOperation>(base::LoadLe<uint16_t>(from + 30)),
          .flags = base::LoadLe<uint32_t>(from + 32),
          .buffer_bytes = base::LoadLe<uint32_t>(from + 36),
          .forwarded_bytes = base::LoadLe<uint32_t>(from + 40)};
}

std::array<uint8_t, kVsockHeaderBytes> EncodeVsockHeader(
    const VsockHeader& header) {
  std::array<uint8_t, kVsockHeaderBytes> bytes{};
  uint8_t* const to = bytes.data();
  base::StoreLe(to, header.source_cid);
  base::StoreLe(to + 8, header.destination_cid);
  base::StoreLe(to + 16, header.source_port);
  base::StoreLe(to + 20, header.destination_port);
  base::StoreLe(to + 24, header.length);
  base::StoreLe(to + 28, header.type);
  base::StoreLe(to + 30, static_cast<uint16_t>(header.operation));
  base::StoreLe(to + 32, header.flags);
  base::StoreLe(to + 36, header.buffer_bytes);
  base::StoreLe(to + 40, header.forwarded_bytes);
  return bytes;
}

}  // namespace catnap::virtio
