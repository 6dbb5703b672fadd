#ifndef CATNAP_LIB_VIRTIO_RNG_RNG_H_
#define CATNAP_LIB_VIRTIO_RNG_RNG_H_

#include <cstddef>
#include <vector>

#include "base/token_bucket.h"
#include "virtio/virtio_device.h"

namespace catnap::virtio {

struct RngOptions {
  // Bytes of entropy that the guest gets in the long run, and at once. A guest
  // that asks for more waits. At least kMaxRequestBytes at once.
  double bytes_per_second = 64.0 * 1024;
  double burst_bytes = 64.0 * 1024;
};

// The entropy device (virtio 1.2, 5.4): fills the guest's buffers with the host
// kernel's random bytes, at a bounded rate.
class Rng final : public VirtioDevice {
 public:
  // What one buffer gets at most; drivers take less than they asked for.
  static constexpr size_t kMaxRequestBytes = 4096;

  Rng(const RngOptions& options, memory::GuestMemory* memory);

 private:
  std::vector<uint8_t> ConfigLocked() const override { return {}; }
  bool WantsLocked(size_t index) override ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void HandleLocked(size_t index, const Chain& chain) override
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SaveOwnLocked(state::StateEncoder& /*out*/) const override {}
  absl::Status LoadOwnLocked(state::StateDecoder /*in*/) override {
    return absl::OkStatus();
  }

  base::TokenBucket bucket_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace catnap::virtio

#endif  // CATNAP_LIB_VIRTIO_RNG_RNG_H_
