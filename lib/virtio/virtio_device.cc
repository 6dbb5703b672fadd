#include "virtio/virtio_device.h"

#include <utility>

#include "base/status.h"

namespace catnap::virtio {
namespace {

// Field ids of a saved device; FORMAT: state/FORMAT.md.
constexpr uint32_t kQueueField = 1;  // A message, one for each queue.
constexpr uint32_t kOwnField = 2;    // A message: the device's own.
constexpr uint32_t kNextAvailableField = 1;
constexpr uint32_t kNextUsedField = 2;
static_assert(kQueueField == 1 && kOwnField == 2 && kNextAvailableField == 1 &&
                  kNextUsedField == 2,
              "field ids are on disk: read lib/state/FORMAT.md first");

absl::StatusOr<QueueProgress> LoadProgress(state::StateDecoder in) {
  QueueProgress progress;
  while (in.Next()) {
    switch (in.id()) {
      case kNextAvailableField:
        progress.next_available = in.U16();
        break;
      case kNextUsedField:
        progress.next_used = in.U16();
        break;
      default:
        break;
    }
  }
  CATNAP_RETURN_IF_ERROR(in.status());
  return progress;
}

}  // namespace

VirtioDevice::VirtioDevice(DeviceTraits traits, memory::GuestMemory* memory)
    : traits_(std::move(traits)), memory_(memory) {
  queues_.reserve(traits_.queue_sizes.size());
  for (size_t i = 0; i < traits_.queue_sizes.size(); ++i) {
    waiters_.push_back(std::make_shared<memory::PageWaiter>());
    queues_.emplace_back(memory, waiters_.back());
  }
}

void VirtioDevice::SetLink(DeviceLink* link) {
  // With the mutex free, which is held while guest memory is touched.
  for (const auto& waiter : waiters_) {
    if (link == nullptr) {
      waiter->Set(nullptr);
    } else {
      waiter->Set([link] { link->KickAt(std::chrono::steady_clock::now()); });
    }
  }
  const base::MutexLock lock(&mutex_);
  link_ = link;
}

std::vector<uint8_t> VirtioDevice::Config() const {
  const base::MutexLock lock(&mutex_);
  return ConfigLocked();
}

void VirtioDevice::WriteConfig(uint64_t /*offset*/,
                               std::span<const uint8_t> /*bytes*/) {}

absl::Status VirtioDevice::StartQueuesLocked(
    uint64_t features, std::span<const QueueConfig> queues,
    std::span<const QueueProgress> progress) {
  features_ = features;
  failed_ = false;
  for (size_t index = 0; index < queues_.size(); ++index) {
    queues_[index].Stop();
    if (index >= queues.size() || !queues[index].ready) continue;
    const absl::Status status = queues_[index].Start(
        queues[index], features,
        index < progress.size() ? progress[index] : QueueProgress{});
    if (!status.ok()) {
      StopLocked();
      return Error(status.code(), "queue {}: {}", index,
                   std::string(status.message()));
    }
  }
  active_ = true;
  return absl::OkStatus();
}

void VirtioDevice::StopLocked() {
  active_ = false;
  for (SplitQueue& queue : queues_) queue.Stop();
}

absl::Status VirtioDevice::Activate(uint64_t features,
                                    std::span<const QueueConfig> queues) {
  {
    const base::MutexLock lock(&mutex_);
    CATNAP_RETURN_IF_ERROR(StartQueuesLocked(features, queues, {}));
    ServeAllLocked();
  }
  AfterServing();
  return absl::OkStatus();
}

void VirtioDevice::Reset() {
  {
    const base::MutexLock lock(&mutex_);
    active_ = false;
    DrainLocked();
    StopLocked();
    failed_ = false;
    features_ = 0;
    ResetLocked();
  }
  AfterServing();
}

void VirtioDevice::Kick() {
  {
    const base::MutexLock lock(&mutex_);
    ServeAllLocked();
  }
  AfterServing();
}

void VirtioDevice::Quiesce() {
  const base::MutexLock lock(&mutex_);
  quiesced_ = true;
  DrainLocked();
}

void VirtioDevice::Resume() { ServeAgain(/*interrupt=*/true); }

void VirtioDevice::Continue() { ServeAgain(/*interrupt=*/false); }

void VirtioDevice::ServeAgain(bool interrupt) {
  {
    const base::MutexLock lock(&mutex_);
    quiesced_ = false;
    ResumeLocked();
    if (interrupt && active_ && link_ != nullptr) link_->Interrupt();
    ServeAllLocked();
  }
  AfterServing();
}

void VirtioDevice::ServeAllLocked() {
  for (size_t index = 0; index < queues_.size(); ++index) {
    ServeQueueLocked(index);
  }
}

void VirtioDevice::ServeQueueLocked(size_t index) {
  SplitQueue& queue = queues_[index];
  if (!serving_locked() || !queue.started() || !queue.ReachRings()) return;
  queue.DisableNotifications();
  // A driver that refills as fast as we serve must not keep us here for ever.
  size_t left = size_t{2} * kMaxQueueSize;
  bool more = true;
  while (more && left > 0 && WantsLocked(index)) {
    const absl::StatusOr<bool> popped = queue.Pop(&chain_, UseOfLocked(index));
    if (!popped.ok()) {
      FailLocked(Error(popped.status().code(), "queue {}: {}", index,
                       std::string(popped.status().message())));
      return;
    }
    if (*popped) {
      --left;
      HandleLocked(index, chain_);
      more = serving_locked();
    } else if (queue.waits_for_pages()) {
      more = false;
    } else {
      more = queue.EnableNotifications();
    }
  }
  if (left == 0) KickAtLocked(std::chrono::steady_clock::now());
  InterruptLocked(index);
}

bool VirtioDevice::ReachRingsLocked(size_t index) {
  return queues_[index].started() && queues_[index].ReachRings();
}

VirtioDevice::QueueFill VirtioDevice::FillOfQueueLocked(size_t index) {
  if (!serving_locked() || !ReachRingsLocked(index)) return {};
  const SplitQueue& queue = queues_[index];
  return {.size = queue.size(), .waiting = queue.waiting()};
}

void VirtioDevice::PushLocked(size_t index, uint16_t head, uint32_t written) {
  if (queues_[index].started()) queues_[index].Push(head, written);
}

void VirtioDevice::InterruptLocked(size_t index) {
  SplitQueue& queue = queues_[index];
  if (link_ != nullptr && queue.started() && queue.TakeInterrupt()) {
    link_->Interrupt();
  }
}

void VirtioDevice::FailLocked(const absl::Status& why) {
  if (failed_) return;
  failed_ = true;
  if (link_ != nullptr) link_->NeedReset(why);
}

void VirtioDevice::KickAtLocked(std::chrono::steady_clock::time_point when) {
  if (link_ != nullptr) link_->KickAt(when);
}

void VirtioDevice::ChangeConfigLocked() {
  if (link_ != nullptr) link_->ChangeConfig(ConfigLocked());
}

void VirtioDevice::SaveState(state::StateEncoder& out) const {
  const base::MutexLock lock(&mutex_);
  for (const SplitQueue& queue : queues_) {
    const auto nested = out.Message(kQueueField);
    out.Unsigned(kNextAvailableField, queue.progress().next_available);
    out.Unsigned(kNextUsedField, queue.progress().next_used);
  }
  const auto nested = out.Message(kOwnField);
  SaveOwnLocked(out);
}

absl::Status VirtioDevice::LoadState(uint64_t features,
                                     std::span<const QueueConfig> queues,
                                     state::StateDecoder in) {
  const base::MutexLock lock(&mutex_);
  quiesced_ = true;
  std::vector<QueueProgress> progress;
  while (in.Next()) {
    switch (in.id()) {
      case kQueueField: {
        if (progress.size() == queues_.size()) {
          return Error(absl::StatusCode::kDataLoss,
                       "a saved device has more than {} queues",
                       queues_.size());
        }
        CATNAP_ASSIGN_OR_RETURN(const QueueProgress loaded,
                                LoadProgress(in.Message()));
        progress.push_back(loaded);
        break;
      }
      case kOwnField:
        CATNAP_RETURN_IF_ERROR(LoadOwnLocked(in.Message()));
        break;
      default:
        break;
    }
  }
  CATNAP_RETURN_IF_ERROR(in.status());
  return StartQueuesLocked(features, queues, progress);
}

}  // namespace catnap::virtio
