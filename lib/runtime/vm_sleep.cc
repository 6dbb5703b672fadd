#include <utility>

#include "base/status.h"
#include "catnap/errors.h"
#include "runtime/options.h"
#include "runtime/vm.h"

namespace catnap::runtime {
namespace {

// For a wake-up that nobody waits for.
constexpr auto kLongestWake = std::chrono::seconds(120);

// Calls `done` with CANCELLED if nobody else does.
class Answer {
 public:
  explicit Answer(absl::AnyInvocable<void(absl::Status) &&> done)
      : done_(std::move(done)) {}
  Answer(Answer&& other) noexcept
      : done_(std::exchange(other.done_, nullptr)) {}
  Answer& operator=(Answer&&) = delete;
  ~Answer() {
    Give(WithReason(absl::CancelledError("the Host was closed"),
                    ErrorReason::kHostClosed));
  }
  void Give(absl::Status status) {
    auto done = std::exchange(done_, nullptr);
    if (done != nullptr) std::move(done)(std::move(status));
  }

 private:
  absl::AnyInvocable<void(absl::Status) &&> done_;
};

bool IsOwn(const absl::Status& status) {
  return absl::IsCancelled(status) || absl::IsDeadlineExceeded(status);
}

}  // namespace

void Vm::EnterLocked(MicroVMState state) {
  state_ = state;
  // What wakes is no longer over the memory that copies share.
  if (state == MicroVMState::kSuspended) settles_at_.reset();
  ++entered_[static_cast<size_t>(state)];
  changed_.NotifyAll();
}

void Vm::BeginMoveLocked(Move move) {
  move_ = move;
  move_stop_ = std::stop_source();
  used_meanwhile_ = false;
}

void Vm::EndMove(const absl::Status& status, bool own) {
  const base::MutexLock lock(&mutex_);
  move_ = Move::kNone;
  ++moves_;
  move_status_ = status;
  move_was_own_ = own;
  changed_.NotifyAll();
}

absl::Status Vm::WaitLocked(const agent::CallLimits& limits) {
  if (limits.stop.stop_requested()) return absl::CancelledError("cancelled");
  if (!limits.deadline.has_value()) {
    changed_.Wait(&mutex_);
    return absl::OkStatus();
  }
  if (std::chrono::steady_clock::now() >= *limits.deadline) {
    return absl::DeadlineExceededError(fmt::format(
        "MicroVM {} was not there within CallOptions::timeout", id_));
  }
  changed_.WaitUntil(&mutex_, *limits.deadline);
  return absl::OkStatus();
}

absl::StatusOr<std::optional<absl::Status>> Vm::JoinLocked(
    const agent::CallLimits& limits) {
  const uint64_t before = moves_;
  while (moves_ == before) CATNAP_RETURN_IF_ERROR(WaitLocked(limits));
  // More than one may have ended meanwhile, or that one's caller gave up.
  if (moves_ != before + 1 || move_was_own_) {
    return std::optional<absl::Status>();
  }
  return std::optional<absl::Status>(move_status_);
}

bool Vm::MayWakeLocked() const {
  return wakes_on_use_ || (policy_.has_value() && policy_->auto_resume_enabled);
}

absl::Status Vm::Suspend(const agent::CallLimits& limits,
                         const std::string& why) {
  return SuspendAs(Cause::kUser, limits, why);
}

void Vm::SuspendSoon(const std::string& why) {
  environment_.sleeper->Post([self = shared_from_this(), why] {
    const absl::Status status = self->SuspendAs(Cause::kUser, {}, why);
    if (!self->EndedMeanwhile()) {
      self->log_.LogIfError(status, "it could not be suspended");
    }
  });
}

absl::Status Vm::SuspendAs(Cause cause, const agent::CallLimits& limits,
                           const std::string& why) {
  const std::stop_callback wake(limits.stop, [this] {
    const base::MutexLock lock(&mutex_);
    changed_.NotifyAll();
  });
  std::shared_ptr<Guest> guest;
  {
    const base::MutexLock lock(&mutex_);
    for (;;) {
      if (ending_ || (host_closed_ && cause != Cause::kClose)) {
        return RefusalLocked();
      }
      if (move_ == Move::kSuspending) {
        if (cause == Cause::kIdle) return absl::OkStatus();
        CATNAP_ASSIGN_OR_RETURN(const auto joined, JoinLocked(limits));
        if (joined.has_value() && (joined->ok() || cause == Cause::kUser)) {
          return *joined;
        }
        continue;
      }
      if (move_ == Move::kNone && state_ == MicroVMState::kSuspended) {
        return absl::OkStatus();
      }
      if (move_ == Move::kNone && state_ == MicroVMState::kRunning) break;
      CATNAP_RETURN_IF_ERROR(WaitLocked(limits));
    }
    if (limits.stop.stop_requested()) return absl::CancelledError("cancelled");
    activity_->forwards()->SetAsleep(true);
    activity_->services()->SetAsleep(true);
    // A use that is not seen here sees the new state.
    if (cause == Cause::kIdle &&
        !IsIdleLocked(std::chrono::steady_clock::now())) {
      activity_->forwards()->SetAsleep(false);
      activity_->services()->SetAsleep(false);
      return absl::OkStatus();
    }
    BeginMoveLocked(Move::kSuspending);
    EnterLocked(MicroVMState::kSuspending);
    trouble_.clear();
    guest = guest_;
  }
  absl::Status status = RunSuspend(guest, limits, why);
  bool own = false;
  {
    const base::MutexLock lock(&mutex_);
    const bool sleeps = !sleeps_in_.empty();
    if (!status.ok()) {
      own = IsOwn(status) && !used_meanwhile_ && !ending_;
      if (ending_) {
        status = RefusalLocked();
      } else if (absl::IsCancelled(status) && used_meanwhile_) {
        status = absl::CancelledError(fmt::format(
            "MicroVM {} was used while it was being suspended: it goes on",
            id_));
      }
    }
    if (!sleeps) {
      activity_->forwards()->SetAsleep(false);
      activity_->services()->SetAsleep(false);
    }
    if (!ending_) {
      EnterLocked(sleeps ? MicroVMState::kSuspended : MicroVMState::kRunning);
    }
  }
  EndMove(status, own);
  ArmTimer();
  return status;
}

absl::Status Vm::RunSuspend(const std::shared_ptr<Guest>& guest,
                            const agent::CallLimits& limits,
                            const std::string& why) {
  uint64_t number = 0;
  std::stop_source stop;
  {
    const base::MutexLock lock(&mutex_);
    number = next_snapshot_++;
    stop = move_stop_;
  }
  // A copy of it was moved from, not it: libstdc++ assigns so.
  // NOLINTNEXTLINE(clang-analyzer-cplusplus.Move)
  std::stop_source caller_stop = stop;
  const std::stop_callback by_caller(
      limits.stop, [caller_stop]() mutable { caller_stop.request_stop(); });
  CATNAP_ASSIGN_OR_RETURN(const std::filesystem::path directory,
                          store_.BeginSnapshot(number));
  StoreOptions options;
  options.durable = store_.durable();
  options.stop = stop.get_token();
  options.deadline = limits.deadline;
  const auto sizes = guest->Suspend(directory, options);
  if (!sizes.ok()) {
    store_.DropSnapshot(number);
    return sizes.status();
  }
  absl::Status published = PublishSleep(number, *sizes, why);
  if (published.ok() || !IsWanted()) return published;
  // It must not sleep where nobody would find it.
  const std::filesystem::path where = store_.FindSnapshot(number);
  absl::Status back = store_.MarkAwake(number);
  if (back.ok()) back = guest->Resume(where, {});
  if (back.ok()) {
    store_.DropSnapshot(number);
    return published;
  }
  log_.LogIfError(back, "it could not go on either");
  const base::MutexLock lock(&mutex_);
  sleeps_in_ = where;
  text_ = fmt::format("it was suspended, but that could not be recorded: {}",
                      std::string(published.message()));
  const auto now = std::chrono::steady_clock::now();
  CountTimeLocked(now);
  asleep_since_ = now;
  return published;
}

absl::Status Vm::PublishSleep(uint64_t number, const StoredSizes& sizes,
                              const std::string& why) {
  const base::MutexLock record_lock(&record_mutex_);
  VmRecord record;
  std::shared_ptr<Guest> guest;
  const auto now = std::chrono::steady_clock::now();
  {
    const base::MutexLock lock(&mutex_);
    if (ending_) return RefusalLocked();
    CountTimeLocked(now);
    awake_since_ = now;
    record = RecordLocked();
    guest = guest_;
    record.vcpu_seconds = past_vcpu_seconds_;
  }
  record.vcpu_seconds += guest->VcpuSeconds();
  record.snapshot = number;
  record.sleep_reason = why;
  record.suspended_at = environment_.clock->WallNow();
  record.bytes_written += sizes.stored_bytes;
  record.stored_bytes = sizes.stored_bytes;
  record.own_bytes = sizes.own_bytes;
  CATNAP_RETURN_IF_ERROR(store_.PublishSnapshot(record));
  const base::MutexLock lock(&mutex_);
  record_.snapshot = record.snapshot;
  record_.sleep_reason = record.sleep_reason;
  record_.vcpu_seconds = record.vcpu_seconds;
  record_.suspended_at = record.suspended_at;
  record_.bytes_written = record.bytes_written;
  record_.stored_bytes = record.stored_bytes;
  record_.own_bytes = record.own_bytes;
  sleeps_in_ = store_.SnapshotPath(number);
  text_ = why;
  awake_since_.reset();
  asleep_since_ = now;
  return absl::OkStatus();
}

absl::Status Vm::Resume(const agent::CallLimits& limits) {
  const std::stop_callback wake(limits.stop, [this] {
    const base::MutexLock lock(&mutex_);
    changed_.NotifyAll();
  });
  for (bool begun = false; !begun;) {
    std::stop_source stop(std::nostopstate);
    {
      const base::MutexLock lock(&mutex_);
      if (ending_ || host_closed_) return RefusalLocked();
      if (state_ == MicroVMState::kRunning) return absl::OkStatus();
      if (move_ == Move::kSuspending) {
        used_meanwhile_ = true;
        stop = move_stop_;
      } else if (move_ == Move::kResuming) {
        CATNAP_ASSIGN_OR_RETURN(const auto joined, JoinLocked(limits));
        if (joined.has_value()) return *joined;
      } else if (move_ == Move::kNone && state_ == MicroVMState::kSuspended) {
        if (limits.stop.stop_requested()) {
          return absl::CancelledError("cancelled");
        }
        BeginMoveLocked(Move::kResuming);
        begun = true;
      } else {
        CATNAP_RETURN_IF_ERROR(WaitLocked(limits));
      }
    }
    // A copy of it was moved from, not it: libstdc++ assigns so.
    // NOLINTNEXTLINE(clang-analyzer-cplusplus.Move)
    if (stop.stop_possible()) {
      // With no lock held: it may call back.
      stop.request_stop();  // NOLINT(clang-analyzer-cplusplus.Move)
      const base::MutexLock lock(&mutex_);
      while (move_ == Move::kSuspending) {
        CATNAP_RETURN_IF_ERROR(WaitLocked(limits));
      }
    }
  }
  absl::Status status = RunResume(limits);
  bool running = false;
  {
    const base::MutexLock lock(&mutex_);
    // A machine that ended by itself says why, whatever its wake failed with.
    if (ending_ && (status.ok() || reason_ != TerminationReason::kRequested)) {
      status = RefusalLocked();
    }
    running = status.ok();
    if (running) {
      const auto now = std::chrono::steady_clock::now();
      CountTimeLocked(now);
      awake_since_ = idle_least_ = now;
      record_.bytes_read += record_.stored_bytes;
      sleeps_in_.clear();
      text_.clear();
      reboots_ = false;
      wakes_on_use_ = false;
      activity_->forwards()->SetAsleep(false);
      activity_->services()->SetAsleep(false);
      EnterLocked(MicroVMState::kRunning);
    }
  }
  EndMove(status, IsOwn(status));
  if (running) {
    ArmTimer();
    SyncSoon();
  }
  return status;
}

absl::Status Vm::RunResume(const agent::CallLimits& limits) {
  std::shared_ptr<Guest> guest;
  std::filesystem::path directory;
  uint64_t snapshot = 0;
  std::stop_source stop;
  {
    const base::MutexLock lock(&mutex_);
    if (ending_) return RefusalLocked();
    guest = guest_;
    directory = sleeps_in_;
    snapshot = record_.snapshot;
    stop = move_stop_;
  }
  // A copy of it was moved from, not it: libstdc++ assigns so.
  // NOLINTNEXTLINE(clang-analyzer-cplusplus.Move)
  std::stop_source caller_stop = stop;
  const std::stop_callback by_caller(
      limits.stop, [caller_stop]() mutable { caller_stop.request_stop(); });
  const agent::CallLimits within(limits.deadline, stop.get_token());
  if (guest == nullptr) return StartAgain(within);
  CATNAP_RETURN_IF_ERROR(store_.MarkAwake(snapshot));
  absl::Status resumed = guest->Resume(directory, within);
  if (!resumed.ok()) {
    log_.LogIfError(store_.ClearAwake(snapshot), "its mark stays");
    return resumed;
  }
  NetworkPolicy egress;
  {
    const base::MutexLock lock(&mutex_);
    egress = egress_;
  }
  log_.LogIfError(guest->SetEgress(egress), "its egress policy");
  return absl::OkStatus();
}

absl::Status Vm::StartAgain(const agent::CallLimits& limits) {
  bool reboots = false;
  uint64_t snapshot = 0;
  {
    const base::MutexLock lock(&mutex_);
    reboots = reboots_;
    snapshot = record_.snapshot;
  }
  std::optional<GuestOrigin> origin;
  if (!reboots) {
    // What ran on from the snapshot, if anything did, is given up.
    CATNAP_RETURN_IF_ERROR(store_.ClearAwake(snapshot));
    CATNAP_RETURN_IF_ERROR(store_.ClearLive());
    origin.emplace();
    origin->directory = store_.SnapshotPath(snapshot);
  }
  absl::Status status = StartGuest(std::move(origin), limits);
  if (status.ok()) {
    status = reboots ? StartApplication(limits) : Rejoin(limits);
  }
  // Also of a factory that does not tell.
  if (status.ok()) status = store_.MarkAwake(snapshot);
  if (status.ok()) return status;
  std::shared_ptr<Guest> guest;
  {
    const base::MutexLock lock(&mutex_);
    if (ending_) return status;  // Whose end it is.
    guest.swap(guest_);
  }
  if (guest != nullptr) guest->Stop();
  guest.reset();
  if (!reboots) {
    log_.LogIfError(store_.ClearAwake(snapshot), "its mark stays");
  }
  return status;
}

absl::StatusOr<std::shared_ptr<CapturedGuest>> Vm::Capture(
    CaptureUse use, const agent::CallLimits& limits,
    const std::function<absl::Status(const std::filesystem::path&, uint64_t)>&
        if_asleep) {
  const std::stop_callback wake(limits.stop, [this] {
    const base::MutexLock lock(&mutex_);
    changed_.NotifyAll();
  });
  std::shared_ptr<Guest> guest;
  std::filesystem::path asleep_in;
  uint64_t own_bytes = 0;
  std::stop_source stop;
  {
    const base::MutexLock lock(&mutex_);
    for (;;) {
      if (ending_ || host_closed_) return RefusalLocked();
      if (move_ == Move::kNone && state_ != MicroVMState::kPending) break;
      CATNAP_RETURN_IF_ERROR(WaitLocked(limits));
    }
    if (state_ == MicroVMState::kSuspended) {
      if (reboots_) {
        return Error(absl::StatusCode::kFailedPrecondition,
                     "MicroVM {} has no memory, only its disk ({}): Resume() "
                     "boots it",
                     id_, text_);
      }
      asleep_in = sleeps_in_.empty() ? store_.SnapshotPath(record_.snapshot)
                                     : sleeps_in_;
      own_bytes = record_.own_bytes;
    }
    BeginMoveLocked(Move::kCapturing);
    stop = move_stop_;
    guest = guest_;
  }
  absl::StatusOr<std::shared_ptr<CapturedGuest>> captured(nullptr);
  if (!asleep_in.empty()) {
    const absl::Status taken = if_asleep(asleep_in, own_bytes);
    if (!taken.ok()) captured = taken;
  } else {
    const std::stop_callback by_caller(
        limits.stop, [stop]() mutable { stop.request_stop(); });
    captured = guest->Capture(
        use, agent::CallLimits(limits.deadline, stop.get_token()));
  }
  EndMove(captured.status(), /*own=*/true);
  if (!captured.ok() && !limits.stop.stop_requested()) {
    return Explain(captured.status());
  }
  return captured;
}

absl::Status Vm::Awake(const agent::CallLimits& limits) {
  const std::stop_callback wake(limits.stop, [this] {
    const base::MutexLock lock(&mutex_);
    changed_.NotifyAll();
  });
  for (;;) {
    {
      const base::MutexLock lock(&mutex_);
      if (ending_ || host_closed_) return RefusalLocked();
      const bool starts = state_ == MicroVMState::kPending;
      if (state_ == MicroVMState::kRunning || (starts && guest_ != nullptr)) {
        return absl::OkStatus();
      }
      if (starts || (!MayWakeLocked() && move_ != Move::kNone)) {
        CATNAP_RETURN_IF_ERROR(WaitLocked(limits));
        continue;
      }
      if (!MayWakeLocked()) return SuspendedLocked();
    }
    CATNAP_RETURN_IF_ERROR(Resume(limits));
  }
}

void Vm::WhenAwake(const agent::CallLimits& limits,
                   absl::AnyInvocable<void(absl::Status) &&> done) {
  std::optional<absl::Status> now;
  {
    const base::MutexLock lock(&mutex_);
    if (ending_ || host_closed_) {
      now = RefusalLocked();
    } else if (state_ == MicroVMState::kRunning ||
               (state_ == MicroVMState::kPending && guest_ != nullptr)) {
      now = absl::OkStatus();
    }
  }
  Answer answer(std::move(done));
  if (now.has_value()) {
    answer.Give(*std::move(now));
    return;
  }
  environment_.worker->Post([self = shared_from_this(), limits,
                             answer = std::move(answer)]() mutable {
    answer.Give(self->Awake(limits));
  });
}

absl::Status Vm::WakeSoon() {
  {
    const base::MutexLock lock(&mutex_);
    if (ending_ || host_closed_) return RefusalLocked();
    if (state_ != MicroVMState::kSuspended &&
        state_ != MicroVMState::kSuspending) {
      return absl::OkStatus();
    }
    if (!MayWakeLocked() && move_ != Move::kResuming) return SuspendedLocked();
  }
  OnTraffic();
  return absl::OkStatus();
}

// On any thread; does not block.
void Vm::OnTraffic() {
  if (use_posted_.exchange(true)) return;
  environment_.worker->Post([weak = weak_from_this()] {
    const auto self = weak.lock();
    if (self == nullptr) return;
    self->use_posted_ = false;
    self->OnUse();
  });
}

void Vm::OnUse() {
  {
    const base::MutexLock lock(&mutex_);
    if (ending_ || host_closed_ || !MayWakeLocked()) return;
  }
  const absl::Status woken = Resume(
      agent::CallLimits(std::chrono::steady_clock::now() + kLongestWake));
  if (!EndedMeanwhile()) log_.LogIfError(woken, "it could not be woken");
}

VmRecord Vm::RecordLocked() const {
  VmRecord record = record_;
  record.options = options_;
  record.options.id = id_;
  record.options.idle_policy = policy_;
  record.options.egress = egress_;
  // Those are this process's.
  record.options.services.clear();
  record.options.tap.reset();
  record.options.guest_log.reset();
  return record;
}

RunOptions Vm::CurrentOptions() const {
  const base::MutexLock lock(&mutex_);
  RunOptions options = options_;
  options.idle_policy = policy_;
  options.egress = egress_;
  return options;
}

absl::Status Vm::SaveRecord() {
  const base::MutexLock record_lock(&record_mutex_);
  VmRecord record;
  bool starts = false;
  {
    const base::MutexLock lock(&mutex_);
    if (ending_) return absl::OkStatus();
    starts = state_ == MicroVMState::kPending;
    record = RecordLocked();
  }
  // The first one is made durable behind the caller's back; a later one must
  // not put the one that is there at risk.
  return store_.Write(record, /*sync=*/!starts);
}

void Vm::SyncSoon() {
  if (!store_.durable()) return;
  environment_.worker->Post([weak = weak_from_this()] {
    const auto self = weak.lock();
    if (self == nullptr || self->EndedMeanwhile()) return;
    std::shared_ptr<Guest> guest;
    {
      const base::MutexLock lock(&self->mutex_);
      guest = self->guest_;
    }
    // The record last: it names the rest.
    absl::Status synced = guest == nullptr ? absl::OkStatus() : guest->Sync();
    if (synced.ok()) synced = self->store_.Sync();
    if (!self->EndedMeanwhile()) self->log_.LogIfError(synced, "its record");
  });
}

absl::Status Vm::SetIdlePolicy(std::optional<IdlePolicy> policy) {
  if (policy.has_value()) CATNAP_RETURN_IF_ERROR(CheckIdlePolicy(*policy));
  {
    const base::MutexLock lock(&mutex_);
    if (ending_ || host_closed_) return RefusalLocked();
    policy_ = policy;
    changed_.NotifyAll();  // Uses that wait may be let in now.
  }
  absl::Status saved = SaveRecord();
  ArmTimer();
  return saved;
}

}  // namespace catnap::runtime
