#ifndef CATNAP_LIB_VIRTIO_MMIO_TRANSPORT_H_
#define CATNAP_LIB_VIRTIO_MMIO_TRANSPORT_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "base/mutex.h"
#include "device/device.h"
#include "device/register_page.h"
#include "state/decoder.h"
#include "state/encoder.h"
#include "virtio/virtio_device.h"

namespace catnap::virtio {

// Registers of a virtio-mmio device (virtio 1.2, 4.2.2), version 2 only.
enum class MmioRegister : uint32_t {
  kMagic = 0x000,
  kVersion = 0x004,
  kDeviceId = 0x008,
  kVendorId = 0x00c,
  kDeviceFeatures = 0x010,
  kDeviceFeaturesSelect = 0x014,
  kDriverFeatures = 0x020,
  kDriverFeaturesSelect = 0x024,
  kQueueSelect = 0x030,
  kQueueSizeMax = 0x034,
  kQueueSize = 0x038,
  kQueueReady = 0x044,
  kQueueNotify = 0x050,
  kInterruptStatus = 0x060,
  kInterruptAck = 0x064,
  kStatus = 0x070,
  kQueueDescriptorsLow = 0x080,
  kQueueDescriptorsHigh = 0x084,
  kQueueDriverLow = 0x090,
  kQueueDriverHigh = 0x094,
  kQueueDeviceLow = 0x0a0,
  kQueueDeviceHigh = 0x0a4,
  kSharedMemorySelect = 0x0ac,
  kSharedMemoryLengthLow = 0x0b0,
  kSharedMemoryLengthHigh = 0x0b4,
  kSharedMemoryBaseLow = 0x0b8,
  kSharedMemoryBaseHigh = 0x0bc,
  kQueueReset = 0x0c0,
  kConfigGeneration = 0x0fc,
  kConfig = 0x100,
};

// Device status (virtio 1.2, 2.1).
inline constexpr uint32_t kStatusAcknowledge = 1;
inline constexpr uint32_t kStatusDriver = 2;
inline constexpr uint32_t kStatusDriverOk = 4;
inline constexpr uint32_t kStatusFeaturesOk = 8;
inline constexpr uint32_t kStatusNeedsReset = 64;
inline constexpr uint32_t kStatusFailed = 128;

// Bits of InterruptStatus.
inline constexpr uint32_t kInterruptUsedBuffer = 1;
inline constexpr uint32_t kInterruptConfigChange = 2;

// The registers of one device. The guest reads them from the register page,
// without leaving the guest; its writes come here, but for QueueNotify and
// for the acknowledgement of a used-buffer interrupt, which the machine makes
// ioeventfds. For this the used-buffer bit of InterruptStatus stays set as long
// as the device runs: with one edge-triggered interrupt for each device, a
// driver loses nothing by looking at its queues on every interrupt.
//
// Thread safety: thread-safe.
class MmioTransport final : public device::IoHandler, private DeviceLink {
 public:
  struct Hooks {
    // Calls Kick() of the device at or after the time. Null: nobody does.
    std::function<void(std::chrono::steady_clock::time_point)> kick_at{};
    // The driver broke the rules; for the log. Comes once for each reset.
    std::function<void(const absl::Status&)> on_failure{};
  };

  // `device` and `irq` are borrowed and must outlive this; the page is
  // filled. Hooks are called on any thread, must not block and must not call
  // back.
  MmioTransport(VirtioDevice* device, device::RegisterPage page,
                device::IrqLine* irq, Hooks hooks);
  ~MmioTransport() override;

  // device::IoHandler. The guest's reads come here only where KVM does not
  // serve them from the page.
  void Read(uint64_t offset, std::span<uint8_t> data) override;
  // May block as VirtioDevice::Reset().
  void Write(uint64_t offset, std::span<const uint8_t> data) override;

  // Of transport and device. REQUIRES: the device is quiesced and no vCPU
  // runs.
  absl::Status SaveState(state::StateEncoder& out) const;
  // Into a fresh transport, before the guest runs. The device is quiesced
  // afterwards.
  // Errors: DATA_LOSS, INVALID_ARGUMENT, FAILED_PRECONDITION (features that
  // this device does not offer).
  absl::Status LoadState(state::StateDecoder in);

 private:
  // DeviceLink.
  void Interrupt() override;
  void ChangeConfig(std::span<const uint8_t> config) override;
  void NeedReset(const absl::Status& why) override;
  void KickAt(std::chrono::steady_clock::time_point when) override;

  void WriteRegisterLocked(MmioRegister which, uint32_t value)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void WriteStatusLocked(uint32_t value) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void WriteQueueLocked(MmioRegister which, uint32_t value)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ResetLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool FeaturesAcceptableLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Writes what the driver may read to the page, after any change.
  void ShowLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  uint32_t status() const;
  void SetStatus(uint32_t set, uint32_t keep);
  uint32_t Load(MmioRegister which) const;
  void Store(MmioRegister which, uint32_t value);
  absl::Status LoadQueueLocked(size_t index, state::StateDecoder in)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  VirtioDevice* const device_;  // Not owned.
  device::IrqLine* const irq_;  // Not owned.
  const Hooks hooks_;
  const uint64_t offered_features_;

  // Serialises the guest's writes. Comes before the device's mutex.
  mutable base::Mutex mutex_;
  uint64_t driver_features_ ABSL_GUARDED_BY(mutex_) = 0;
  uint32_t device_features_select_ ABSL_GUARDED_BY(mutex_) = 0;
  uint32_t driver_features_select_ ABSL_GUARDED_BY(mutex_) = 0;
  uint32_t queue_select_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<QueueConfig> queues_ ABSL_GUARDED_BY(mutex_);

  // Guards the words of the page that device and driver both change: Status,
  // InterruptStatus, ConfigGeneration, Config. Comes last.
  mutable base::Mutex page_mutex_;
  device::RegisterPage page_;
};

}  // namespace catnap::virtio

#endif  // CATNAP_LIB_VIRTIO_MMIO_TRANSPORT_H_
