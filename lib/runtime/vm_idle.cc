#include <algorithm>
#include <utility>

#include "base/status.h"
#include "runtime/vm.h"

namespace catnap::runtime {
namespace {

// How often it is looked at what cannot tell of itself: at most a second, or an
// eighth of the time after which it sleeps.
constexpr std::chrono::milliseconds kLongestSample{1000};
constexpr std::chrono::milliseconds kShortestSample{10};
// Beyond this the clock's arithmetic ends, and nobody waits so long.
constexpr Millis kLongest = std::chrono::hours(24 * 365 * 10);

// A copy is settled when nobody used it for so long, tried for as long as that
// takes at most.
constexpr std::chrono::milliseconds kRests{250};
constexpr std::chrono::seconds kSettlesUntil{10};

bool Samples(const ActivitySources& sources) {
  return sources.outbound || sources.guest_cpu;
}

}  // namespace

bool Vm::IsIdleLocked(Time now) const {
  if (!policy_.has_value()) return false;
  const auto since = activity_->IdleSince(policy_->activity, idle_least_);
  return since.has_value() &&
         now - *since >= std::min(policy_->max_idle_duration, kLongest);
}

// When there may be something to do.
std::optional<Vm::Time> Vm::NextLookLocked(Time now) const {
  std::optional<Time> next;
  const auto at = [&next](Time time) {
    next = next.has_value() ? std::min(*next, time) : time;
  };
  if (options_.max_lifetime.has_value() && state_ != MicroVMState::kPending) {
    at(created_at_ + std::min(*options_.max_lifetime, kLongest));
  }
  if (state_ == MicroVMState::kRunning && settles_at_.has_value()) {
    at(*settles_at_);
  }
  if (!policy_.has_value()) return next;
  if (state_ == MicroVMState::kSuspended && asleep_since_.has_value() &&
      policy_->suspended_duration.has_value()) {
    at(*asleep_since_ + std::min(*policy_->suspended_duration, kLongest));
  }
  if (state_ == MicroVMState::kRunning && !sleep_posted_) {
    const Millis idle = std::min(policy_->max_idle_duration, kLongest);
    at(activity_->IdleSince(policy_->activity, idle_least_).value_or(now) +
       idle);
    if (Samples(policy_->activity)) {
      at(now + std::clamp(idle / 8, kShortestSample, kLongestSample));
    }
  }
  return next;
}

void Vm::ArmTimer() {
  const base::MutexLock lock(&mutex_);
  ArmTimerLocked();
}

void Vm::ArmTimerLocked() {
  if (no_timer_) return;
  const auto due = NextLookLocked(std::chrono::steady_clock::now());
  if (timer_.has_value()) {
    // One that comes early looks again.
    if (due.has_value() && timer_due_ <= *due) return;
    environment_.loop->Cancel(*timer_);
    timer_.reset();
  }
  if (!due.has_value()) return;
  timer_due_ = *due;
  timer_ = environment_.loop->StartTimer(
      *due, [weak = weak_from_this(),
             number = ++timers_](const absl::StatusOr<size_t>& came) {
        const auto self = weak.lock();
        if (self != nullptr && came.ok()) self->OnTimer(number);
      });
}

void Vm::StopTimer() {
  const base::MutexLock lock(&mutex_);
  no_timer_ = true;
  if (timer_.has_value()) environment_.loop->Cancel(*timer_);
  timer_.reset();
}

// On the loop's thread.
void Vm::OnTimer(uint64_t number) {
  std::shared_ptr<Guest> guest;
  {
    const base::MutexLock lock(&mutex_);
    if (number != timers_ || no_timer_) return;
    timer_.reset();
    if (state_ == MicroVMState::kRunning && policy_.has_value() &&
        Samples(policy_->activity)) {
      guest = guest_;
    }
  }
  if (guest != nullptr) SampleGuest(guest);
  TerminationReason reason = TerminationReason::kNone;
  std::string text;
  bool sleep = false;
  bool settle = false;
  {
    const base::MutexLock lock(&mutex_);
    if (ending_) return;
    const auto now = std::chrono::steady_clock::now();
    settle = ShouldSettleLocked(now);
    const auto& lifetime = options_.max_lifetime;
    if (lifetime.has_value() &&
        now - created_at_ >= std::min(*lifetime, kLongest)) {
      reason = TerminationReason::kMaxLifetime;
      text = fmt::format("it has lived for max_lifetime, {} ms",
                         lifetime->count());
    } else if (policy_.has_value()) {
      const auto& longest = policy_->suspended_duration;
      if (state_ == MicroVMState::kSuspended && longest.has_value() &&
          asleep_since_.has_value() && move_ == Move::kNone &&
          now - *asleep_since_ >= std::min(*longest, kLongest)) {
        reason = TerminationReason::kSuspendedTooLong;
        text = fmt::format("it was suspended for suspended_duration, {} ms",
                           longest->count());
      } else if (state_ == MicroVMState::kRunning && IsIdleLocked(now)) {
        if (longest.has_value() && longest->count() == 0) {
          reason = TerminationReason::kSuspendedTooLong;
          text =
              fmt::format("it was idle for {} ms, and suspended_duration is 0",
                          policy_->max_idle_duration.count());
        } else {
          sleep = !std::exchange(sleep_posted_, true);
        }
      }
    }
    if (reason == TerminationReason::kNone) ArmTimerLocked();
  }
  if (reason != TerminationReason::kNone) {
    EndSoon(reason, text);
  } else if (sleep) {
    environment_.sleeper->Post([weak = weak_from_this()] {
      if (const auto self = weak.lock()) self->SuspendIdle();
    });
  } else if (settle) {
    environment_.worker->Post([weak = weak_from_this()] {
      if (const auto self = weak.lock()) self->SettleGuest();
    });
  }
}

bool Vm::ShouldSettleLocked(Time now) {
  if (state_ != MicroVMState::kRunning || !settles_at_.has_value() ||
      now < *settles_at_) {
    return false;
  }
  // Holds and what its network does are no reason not to.
  ActivitySources uses;
  uses.holds = uses.outbound = false;
  const Time rests_since =
      activity_->IdleSince(uses, idle_least_).value_or(now);
  if (now - rests_since >= kRests) {
    settles_at_.reset();
    return true;
  }
  settles_at_ = rests_since + kRests;
  if (*settles_at_ > idle_least_ + kSettlesUntil) settles_at_.reset();
  return false;
}

void Vm::SettleGuest() {
  std::shared_ptr<Guest> guest;
  {
    const base::MutexLock lock(&mutex_);
    if (ending_ || state_ != MicroVMState::kRunning || move_ != Move::kNone) {
      return;
    }
    guest = guest_;
    settling_ =
        true;  // Finish() waits: what the guest uses goes with the Host.
  }
  guest->Settle();
  guest.reset();
  const base::MutexLock lock(&mutex_);
  settling_ = false;
  changed_.NotifyAll();
}

void Vm::SampleGuest(const std::shared_ptr<Guest>& guest) {
  const double cpu = guest->VcpuSeconds();
  const uint64_t frames = guest->OutboundFrames();
  const auto now = std::chrono::steady_clock::now();
  const base::MutexLock lock(&mutex_);
  if (!policy_.has_value()) return;
  const double passed =
      std::chrono::duration<double>(now - sampled_at_).count();
  if (sampled_at_ != Time() && passed > 0) {
    if (frames != sampled_frames_) activity_->Note(UseKind::kOutbound);
    if ((cpu - sampled_cpu_) / passed >=
        policy_->activity.guest_cpu_threshold) {
      activity_->Note(UseKind::kGuestCpu);
    }
  }
  sampled_cpu_ = cpu;
  sampled_frames_ = frames;
  sampled_at_ = now;
}

void Vm::SuspendIdle() {
  Millis idle{0};
  {
    const base::MutexLock lock(&mutex_);
    if (policy_.has_value()) idle = policy_->max_idle_duration;
  }
  const absl::Status status = SuspendAs(
      Cause::kIdle, {}, fmt::format("it was idle for {} ms", idle.count()));
  {
    const base::MutexLock lock(&mutex_);
    sleep_posted_ = false;
    if (!status.ok() && !ending_ && !host_closed_) {
      // The next try is after another such time.
      idle_least_ = std::chrono::steady_clock::now();
      if (!absl::IsCancelled(status)) {
        trouble_ = fmt::format("it could not be suspended: {}",
                               std::string(status.message()));
        log_.LogIfError(status, "it could not be suspended when idle");
      }
    }
  }
  ArmTimer();
}

}  // namespace catnap::runtime
