#include "virtio/rng/rng.h"

#include <algorithm>
#include <array>
#include <chrono>

#include "base/random.h"

namespace catnap::virtio {
namespace {

constexpr uint16_t kQueueSize = 64;
// How long a guest waits that has used up its rate. Short against the time in
// which a request's worth of tokens comes back.
constexpr auto kRetry = std::chrono::milliseconds(10);

}  // namespace

Rng::Rng(const RngOptions& options, memory::GuestMemory* memory)
    : VirtioDevice({.id = DeviceId::kEntropy, .queue_sizes = {kQueueSize}},
                   memory),
      bucket_(options.bytes_per_second,
              std::max<double>(options.burst_bytes, kMaxRequestBytes)) {}

bool Rng::WantsLocked(size_t /*index*/) {
  const auto now = std::chrono::steady_clock::now();
  if (bucket_.Has(kMaxRequestBytes, now)) return true;
  KickAtLocked(now + kRetry);
  return false;
}

void Rng::HandleLocked(size_t index, const Chain& chain) {
  std::array<uint8_t, kMaxRequestBytes> bytes;
  const size_t size = std::min<size_t>(chain.writable_bytes(), bytes.size());
  const std::span<uint8_t> part = std::span(bytes).first(size);
  const absl::Status filled = base::FillRandom(part);
  if (!filled.ok()) {
    // Better no entropy than some that is none.
    FailLocked(filled);
    return;
  }
  bucket_.Take(static_cast<double>(size));
  PushLocked(index, chain.head(), static_cast<uint32_t>(chain.CopyIn(0, part)));
}

}  // namespace catnap::virtio
