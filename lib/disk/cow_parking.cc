#include <algorithm>
#include <utility>

#include "base/status.h"
#include "disk/cow_layer.h"

// Requests that wait for room on the host's disk. They keep their place among
// those they overlap with, so that their order stays.

namespace catnap::disk {

void CowLayer::Park(const std::shared_ptr<LayerRequest>& request,
                    const absl::Status& why) {
  if (!park_) return Finish(request, why);
  {
    const base::MutexLock lock(&mutex_);
    if (!request->unable) ++unable_;
    request->unable = true;
    parked_.push_back(request);
    parked_reason_ = why.ToString();
    ArmTimerLocked();
  }
  ReportParking();
  GiveUpFreeze(why);
}

void CowLayer::RetryParked() {
  file_->Post([self = shared_from_this()] { self->RetryParkedNow(); });
}

void CowLayer::CancelParked() {
  file_->Post([self = shared_from_this()] { self->CancelParkedNow(); });
}

void CowLayer::RetryParkedNow() {
  std::vector<std::shared_ptr<LayerRequest>> parked;
  {
    const base::MutexLock lock(&mutex_);
    parked.swap(parked_);
    commit_parked_ = false;
  }
  for (const auto& request : parked) Run(request);
  StartCommit();
}

void CowLayer::CancelParkedNow() {
  std::vector<std::shared_ptr<LayerRequest>> parked;
  std::vector<FlushWaiter> flushes;
  {
    const base::MutexLock lock(&mutex_);
    parked.swap(parked_);
    if (commit_parked_) {
      flushes.swap(flushes_);
      commit_parked_ = false;
      commit_unable_ = false;
    }
  }
  const absl::Status cancelled =
      absl::CancelledError("cancelled while the host's disk was full");
  for (const auto& request : parked) Finish(request, cancelled);
  FinishFlushes(std::move(flushes), cancelled);
  ReportParking();
}

void CowLayer::ArmTimerLocked() {
  if (timer_armed_) return;
  timer_armed_ = true;
  // Weak: a layer that is not used any more does not wait for it.
  file_->StartTimer(retry_delay_, [weak = weak_from_this()](
                                      const absl::StatusOr<size_t>& fired) {
    const auto self = weak.lock();
    if (self == nullptr) return;
    {
      const base::MutexLock lock(&self->mutex_);
      self->timer_armed_ = false;
      self->retry_delay_ = std::min(self->retry_delay_ * 2, self->last_retry_);
    }
    // A loop that stops tries nothing again.
    if (!fired.ok()) return self->CancelParkedNow();
    self->RetryParkedNow();
  });
}

void CowLayer::ReportParking() {
  {
    const base::MutexLock lock(&mutex_);
    const bool any = unable_ > 0 || commit_unable_;
    if (any == parking_reported_) return;
    parking_reported_ = any;
    if (!any) {
      parked_reason_.clear();
      retry_delay_ = first_retry_;
    }
  }
  file_->Post([self = shared_from_this()] {
    std::string reason;
    {
      const base::MutexLock lock(&self->mutex_);
      reason = self->parked_reason_;
    }
    if (self->on_parked_) self->on_parked_(reason);
  });
}

}  // namespace catnap::disk
