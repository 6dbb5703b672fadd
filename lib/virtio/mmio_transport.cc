#include "virtio/mmio_transport.h"

#include <algorithm>
#include <utility>

#include "base/byte_order.h"
#include "base/checked.h"
#include "base/status.h"

namespace catnap::virtio {
namespace {

constexpr uint32_t kMagic = 0x74726976;  // "virt"
constexpr uint32_t kVersion = 2;
constexpr uint32_t kVendor = 0x4e544143;  // "CATN"
constexpr uint64_t kConfigStart = static_cast<uint64_t>(MmioRegister::kConfig);
constexpr uint64_t kTransportFeatures =
    kFeatureIndirectDescriptors | kFeatureEventIndex | kFeatureVersion1;

// Field ids of a saved transport; FORMAT: state/FORMAT.md.
constexpr uint32_t kStatusField = 1;
constexpr uint32_t kDriverFeaturesField = 2;
constexpr uint32_t kDeviceFeaturesSelectField = 3;
constexpr uint32_t kDriverFeaturesSelectField = 4;
constexpr uint32_t kQueueSelectField = 5;
constexpr uint32_t kInterruptStatusField = 6;
constexpr uint32_t kConfigGenerationField = 7;
constexpr uint32_t kQueueField = 8;   // A message, one for each queue.
constexpr uint32_t kDeviceField = 9;  // A message: VirtioDevice's.
constexpr uint32_t kSizeField = 1;
constexpr uint32_t kReadyField = 2;
constexpr uint32_t kDescriptorsField = 3;
constexpr uint32_t kDriverField = 4;
constexpr uint32_t kUsedField = 5;
static_assert(kStatusField == 1 && kDriverFeaturesField == 2 &&
                  kDeviceFeaturesSelectField == 3 &&
                  kDriverFeaturesSelectField == 4 && kQueueSelectField == 5 &&
                  kInterruptStatusField == 6 && kConfigGenerationField == 7 &&
                  kQueueField == 8 && kDeviceField == 9,
              "field ids are on disk: read lib/state/FORMAT.md first");
static_assert(kSizeField == 1 && kReadyField == 2 && kDescriptorsField == 3 &&
                  kDriverField == 4 && kUsedField == 5,
              "field ids are on disk: read lib/state/FORMAT.md first");

void SetLow(memory::Gpa* gpa, uint32_t value) {
  gpa->value = (gpa->value & 0xffff'ffff'0000'0000) | value;
}

void SetHigh(memory::Gpa* gpa, uint32_t value) {
  gpa->value = (gpa->value & 0xffff'ffff) | (uint64_t{value} << 32);
}

// The 32 bits of `features` that `select` names.
uint32_t Half(uint64_t features, uint32_t select) {
  if (select > 1) return 0;
  return static_cast<uint32_t>(features >> (32 * select));
}

}  // namespace

MmioTransport::MmioTransport(VirtioDevice* device, device::RegisterPage page,
                             device::IrqLine* irq, Hooks hooks)
    : device_(device),
      irq_(irq),
      hooks_(std::move(hooks)),
      offered_features_(device->traits().features | kTransportFeatures),
      page_(page) {
  const base::MutexLock lock(&mutex_);
  Store(MmioRegister::kMagic, kMagic);
  Store(MmioRegister::kVersion, kVersion);
  Store(MmioRegister::kDeviceId, static_cast<uint32_t>(device->traits().id));
  Store(MmioRegister::kVendorId, kVendor);
  // There is no shared memory region: any length reads as all ones.
  Store(MmioRegister::kSharedMemoryLengthLow, UINT32_MAX);
  Store(MmioRegister::kSharedMemoryLengthHigh, UINT32_MAX);
  Store(MmioRegister::kSharedMemoryBaseLow, UINT32_MAX);
  Store(MmioRegister::kSharedMemoryBaseHigh, UINT32_MAX);
  page_.CopyIn(kConfigStart, device->Config());
  queues_.resize(device->traits().queue_sizes.size());
  ShowLocked();
  device_->SetLink(this);
}

MmioTransport::~MmioTransport() { device_->SetLink(nullptr); }

uint32_t MmioTransport::Load(MmioRegister which) const {
  return page_.Load32(static_cast<size_t>(which));
}

void MmioTransport::Store(MmioRegister which, uint32_t value) {
  page_.Store32(static_cast<size_t>(which), value);
}

uint32_t MmioTransport::status() const { return Load(MmioRegister::kStatus); }

void MmioTransport::SetStatus(uint32_t set, uint32_t keep) {
  const base::MutexLock lock(&page_mutex_);
  Store(MmioRegister::kStatus, (status() & keep) | set);
}

void MmioTransport::ShowLocked() {
  Store(MmioRegister::kDeviceFeatures,
        Half(offered_features_, device_features_select_));
  const std::vector<uint16_t>& sizes = device_->traits().queue_sizes;
  const bool exists = queue_select_ < queues_.size();
  Store(MmioRegister::kQueueSizeMax, exists ? sizes[queue_select_] : 0);
  Store(MmioRegister::kQueueReady,
        exists && queues_[queue_select_].ready ? 1 : 0);
}

void MmioTransport::Read(uint64_t offset, std::span<uint8_t> data) {
  for (size_t i = 0; i < data.size(); ++i) {
    const uint64_t at = offset + i;
    if (at >= device::kRegisterPageSize) break;
    const uint32_t word = page_.Load32(base::AlignDown(at, 4));
    data[i] = static_cast<uint8_t>(word >> (8 * (at % 4)));
  }
}

void MmioTransport::Write(uint64_t offset, std::span<const uint8_t> data) {
  if (offset >= kConfigStart) {
    device_->WriteConfig(offset - kConfigStart, data);
    return;
  }
  // Registers are 32 bits wide (virtio 1.2, 4.2.2.2).
  if (data.size() != 4 || offset % 4 != 0) return;
  const base::MutexLock lock(&mutex_);
  WriteRegisterLocked(static_cast<MmioRegister>(offset),
                      base::LoadLe<uint32_t>(data.data()));
}

void MmioTransport::WriteRegisterLocked(MmioRegister which, uint32_t value) {
  switch (which) {
    case MmioRegister::kDeviceFeaturesSelect:
      device_features_select_ = value;
      ShowLocked();
      break;
    case MmioRegister::kDriverFeaturesSelect:
      driver_features_select_ = value;
      break;
    case MmioRegister::kDriverFeatures:
      // Fixed once the device has agreed to them.
      if ((status() & kStatusFeaturesOk) != 0) break;
      if (driver_features_select_ == 0) {
        driver_features_ = (driver_features_ & ~uint64_t{UINT32_MAX}) | value;
      } else if (driver_features_select_ == 1) {
        driver_features_ =
            (driver_features_ & UINT32_MAX) | (uint64_t{value} << 32);
      }
      break;
    case MmioRegister::kQueueSelect:
      queue_select_ = value;
      ShowLocked();
      break;
    case MmioRegister::kQueueNotify:
      device_->Kick();
      break;
    case MmioRegister::kInterruptAck: {
      const base::MutexLock lock(&page_mutex_);
      const uint32_t cleared = value & kInterruptConfigChange;
      Store(MmioRegister::kInterruptStatus,
            Load(MmioRegister::kInterruptStatus) & ~cleared);
      break;
    }
    case MmioRegister::kStatus:
      WriteStatusLocked(value);
      break;
    default:
      WriteQueueLocked(which, value);
      break;
  }
}

void MmioTransport::WriteQueueLocked(MmioRegister which, uint32_t value) {
  // A queue is fixed once it is ready, and all are once the device runs.
  if (queue_select_ >= queues_.size() || (status() & kStatusDriverOk) != 0) {
    return;
  }
  QueueConfig& queue = queues_[queue_select_];
  if (which == MmioRegister::kQueueReady) {
    queue.ready = (value & 1) != 0;
    ShowLocked();
    return;
  }
  if (queue.ready) return;
  switch (which) {
    case MmioRegister::kQueueSize:
      // A size that is no size is refused when the device is to run.
      queue.size = base::CheckedCast<uint16_t>(value).value_or(0);
      break;
    case MmioRegister::kQueueDescriptorsLow:
      SetLow(&queue.descriptors, value);
      break;
    case MmioRegister::kQueueDescriptorsHigh:
      SetHigh(&queue.descriptors, value);
      break;
    case MmioRegister::kQueueDriverLow:
      SetLow(&queue.driver, value);
      break;
    case MmioRegister::kQueueDriverHigh:
      SetHigh(&queue.driver, value);
      break;
    case MmioRegister::kQueueDeviceLow:
      SetLow(&queue.device, value);
      break;
    case MmioRegister::kQueueDeviceHigh:
      SetHigh(&queue.device, value);
      break;
    default:
      break;  // Reserved, or for reading only.
  }
}

bool MmioTransport::FeaturesAcceptableLocked() const {
  return (driver_features_ & ~offered_features_) == 0 &&
         (driver_features_ & kFeatureVersion1) != 0;
}

void MmioTransport::WriteStatusLocked(uint32_t value) {
  if (value == 0) {
    ResetLocked();
    return;
  }
  const uint32_t old = status();
  // Only a reset clears bits (virtio 1.2, 2.1.1), and only we set this one.
  uint32_t added = value & ~old & 0xff & ~kStatusNeedsReset;
  if ((added & kStatusFeaturesOk) != 0 && !FeaturesAcceptableLocked()) {
    added &= ~kStatusFeaturesOk;
  }
  // A device that is not to run with these features does not run.
  if (((old | added) & kStatusFeaturesOk) == 0) added &= ~kStatusDriverOk;
  SetStatus(added, UINT32_MAX);
  if ((added & kStatusDriverOk) == 0) return;
  {
    const base::MutexLock lock(&page_mutex_);
    Store(MmioRegister::kInterruptStatus,
          Load(MmioRegister::kInterruptStatus) | kInterruptUsedBuffer);
  }
  const absl::Status status = device_->Activate(driver_features_, queues_);
  if (!status.ok()) NeedReset(status);
}

void MmioTransport::ResetLocked() {
  device_->Reset();
  driver_features_ = 0;
  device_features_select_ = 0;
  driver_features_select_ = 0;
  queue_select_ = 0;
  queues_.assign(queues_.size(), QueueConfig{});
  ShowLocked();
  const base::MutexLock lock(&page_mutex_);
  Store(MmioRegister::kInterruptStatus, 0);
  Store(MmioRegister::kStatus, 0);
}

void MmioTransport::Interrupt() {
  irq_->Set(true);
  irq_->Set(false);
}

void MmioTransport::ChangeConfig(std::span<const uint8_t> config) {
  bool tell = false;
  {
    const base::MutexLock lock(&page_mutex_);
    // A driver that reads several fields compares the generation before and
    // after, so it changes on both sides of the change.
    const uint32_t generation = Load(MmioRegister::kConfigGeneration);
    Store(MmioRegister::kConfigGeneration, generation + 1);
    page_.CopyIn(kConfigStart, config);
    Store(MmioRegister::kConfigGeneration, generation + 2);
    tell = (status() & kStatusDriverOk) != 0;
    if (tell) {
      Store(MmioRegister::kInterruptStatus,
            Load(MmioRegister::kInterruptStatus) | kInterruptConfigChange);
    }
  }
  if (tell) Interrupt();
}

void MmioTransport::NeedReset(const absl::Status& why) {
  {
    const base::MutexLock lock(&page_mutex_);
    Store(MmioRegister::kStatus, status() | kStatusNeedsReset);
    Store(MmioRegister::kInterruptStatus,
          Load(MmioRegister::kInterruptStatus) | kInterruptConfigChange);
  }
  if (hooks_.on_failure) hooks_.on_failure(why);
  Interrupt();
}

void MmioTransport::KickAt(std::chrono::steady_clock::time_point when) {
  if (hooks_.kick_at) hooks_.kick_at(when);
}

absl::Status MmioTransport::SaveState(state::StateEncoder& out) const {
  const base::MutexLock lock(&mutex_);
  {
    const base::MutexLock page_lock(&page_mutex_);
    out.Unsigned(kStatusField, status());
    out.Unsigned(kInterruptStatusField, Load(MmioRegister::kInterruptStatus));
    out.Unsigned(kConfigGenerationField, Load(MmioRegister::kConfigGeneration));
  }
  out.Fixed64(kDriverFeaturesField, driver_features_);
  out.Unsigned(kDeviceFeaturesSelectField, device_features_select_);
  out.Unsigned(kDriverFeaturesSelectField, driver_features_select_);
  out.Unsigned(kQueueSelectField, queue_select_);
  for (const QueueConfig& queue : queues_) {
    const auto nested = out.Message(kQueueField);
    out.Unsigned(kSizeField, queue.size);
    out.Bool(kReadyField, queue.ready);
    out.Fixed64(kDescriptorsField, queue.descriptors.value);
    out.Fixed64(kDriverField, queue.driver.value);
    out.Fixed64(kUsedField, queue.device.value);
  }
  {
    const auto nested = out.Message(kDeviceField);
    device_->SaveState(out);
  }
  return out.status();
}

absl::Status MmioTransport::LoadQueueLocked(size_t index,
                                            state::StateDecoder in) {
  if (index >= queues_.size()) {
    return Error(absl::StatusCode::kDataLoss,
                 "a saved device has more than {} queues", queues_.size());
  }
  QueueConfig& queue = queues_[index];
  while (in.Next()) {
    switch (in.id()) {
      case kSizeField:
        queue.size = in.U16();
        break;
      case kReadyField:
        queue.ready = in.Bool();
        break;
      case kDescriptorsField:
        queue.descriptors = {in.U64()};
        break;
      case kDriverField:
        queue.driver = {in.U64()};
        break;
      case kUsedField:
        queue.device = {in.U64()};
        break;
      default:
        break;
    }
  }
  return in.status();
}

absl::Status MmioTransport::LoadState(state::StateDecoder in) {
  const base::MutexLock lock(&mutex_);
  uint32_t saved_status = 0;
  uint32_t interrupt_status = 0;
  uint32_t generation = 0;
  size_t queue = 0;
  state::StateDecoder device{{}};
  while (in.Next()) {
    switch (in.id()) {
      case kStatusField:
        saved_status = in.U8();
        break;
      case kInterruptStatusField:
        interrupt_status =
            in.U8() & (kInterruptUsedBuffer | kInterruptConfigChange);
        break;
      case kConfigGenerationField:
        generation = in.U32();
        break;
      case kDriverFeaturesField:
        driver_features_ = in.U64();
        break;
      case kDeviceFeaturesSelectField:
        device_features_select_ = in.U32();
        break;
      case kDriverFeaturesSelectField:
        driver_features_select_ = in.U32();
        break;
      case kQueueSelectField:
        queue_select_ = in.U32();
        break;
      case kQueueField:
        CATNAP_RETURN_IF_ERROR(LoadQueueLocked(queue++, in.Message()));
        break;
      case kDeviceField:
        device = in.Message();
        break;
      default:
        break;
    }
  }
  CATNAP_RETURN_IF_ERROR(in.status());
  if ((saved_status & kStatusFeaturesOk) != 0 && !FeaturesAcceptableLocked()) {
    return Error(absl::StatusCode::kFailedPrecondition,
                 "the saved guest uses device features {:#x}, this device "
                 "offers {:#x}",
                 driver_features_, offered_features_);
  }
  device_->Quiesce();
  // One that needs a reset does nothing until then, whatever its queues are.
  if ((saved_status & (kStatusDriverOk | kStatusNeedsReset)) ==
      kStatusDriverOk) {
    CATNAP_RETURN_IF_ERROR(
        device_->LoadState(driver_features_, queues_, device));
  }
  ShowLocked();
  const std::vector<uint8_t> config = device_->Config();
  const base::MutexLock page_lock(&page_mutex_);
  page_.CopyIn(kConfigStart, config);
  Store(MmioRegister::kConfigGeneration, generation);
  Store(MmioRegister::kInterruptStatus, interrupt_status);
  Store(MmioRegister::kStatus, saved_status);
  return absl::OkStatus();
}

}  // namespace catnap::virtio
