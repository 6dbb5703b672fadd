#include "runtime/vm.h"

#include <algorithm>
#include <utility>

#include "base/status.h"
#include "catnap/errors.h"
#include "runtime/application.h"

namespace catnap::runtime {
namespace {

// A guest whose agent does not come back in this time is as good as gone for a
// call.
constexpr auto kReconnect = std::chrono::seconds(10);
// For a boot without CallOptions::timeout: many times what the slowest host
// takes.
constexpr auto kLongestBoot = std::chrono::seconds(120);
// Through Connect(), ForwardPort() and services, all together.
// A copy is woken by then, and has said so.
constexpr std::chrono::milliseconds kSettlesAfter{500};
constexpr size_t kMaxConnections = 1024;
constexpr double kGiB = 1024.0 * 1024 * 1024;

absl::Status Closed() {
  return WithReason(absl::CancelledError("the Host was closed"),
                    ErrorReason::kHostClosed);
}

}  // namespace

Vm::Vm(std::string id, std::shared_ptr<const ImageRecord> image,
       RunOptions options, VmEnvironment environment)
    : id_(std::move(id)),
      image_(std::move(image)),
      options_(std::move(options)),
      environment_(std::move(environment)),
      log_({.sink = environment_.log,
            .executor = environment_.executor,
            .vm_id = id_,
            .source = "vm"}),
      store_(environment_.directory,
             options_.durability == Durability::kDurable),
      policy_(options_.idle_policy),
      egress_(options_.egress),
      created_at_(std::chrono::steady_clock::now()) {
  record_.image_name = image_->name;
  record_.image_major = image_->major;
  record_.image_disk_id = image_->disk_id;
  record_.had_tap = options_.tap != nullptr;
  record_.created_at = environment_.clock->WallNow();
}

Vm::Vm(std::shared_ptr<const ImageRecord> image, StoredVm stored,
       VmEnvironment environment)
    : Vm(stored.record.options.id, std::move(image), stored.record.options,
         std::move(environment)) {
  const base::MutexLock lock(&mutex_);
  record_ = std::move(stored.record);
  const auto now = std::chrono::steady_clock::now();
  const auto wall = environment_.clock->WallNow();
  // A clock that was set back makes nothing younger than it is.
  const auto since = [&](VmRecord::WallTime then) {
    return now - std::max(wall - then, VmRecord::WallTime::duration::zero());
  };
  created_at_ = since(record_.created_at);
  asleep_since_ = stored.ran ? now : since(record_.suspended_at);
  past_vcpu_seconds_ = record_.vcpu_seconds;
  next_snapshot_ = record_.snapshot + 1;
  const bool last_checkpoint =
      options_.after_crash == AfterCrash::kLastCheckpoint;
  reboots_ = stored.ran && !(last_checkpoint && record_.snapshot != 0);
  wakes_on_use_ = stored.ran;
  text_ = stored.ran ? "the process of its Host ended while it ran"
                     : record_.sleep_reason;
  EnterLocked(MicroVMState::kSuspended);
}

Vm::~Vm() = default;

absl::Status Vm::Prepare() {
  if (state() == MicroVMState::kPending) {
    CATNAP_RETURN_IF_ERROR(store_.Create());
  } else {
    store_.Adopt();
  }
  const auto on_use = [self = weak_from_this()] {
    if (const auto vm = self.lock()) vm->OnTraffic();
  };
  activity_ = std::make_shared<VmActivity>(
      std::make_shared<Traffic>(environment_.clock, on_use),
      std::make_shared<Traffic>(environment_.clock, on_use));
  CATNAP_ASSIGN_OR_RETURN(auto services, MakeServices());
  {
    const base::MutexLock lock(&mutex_);
    services_ = std::move(services);
    relays_ = std::make_shared<RelayGroup>(
        environment_.loop, activity_->forwards(), kMaxConnections);
    const bool asleep = state_ == MicroVMState::kSuspended;
    activity_->forwards()->SetAsleep(asleep);
    activity_->services()->SetAsleep(asleep);
  }
  ArmTimer();
  return absl::OkStatus();
}

absl::Status Vm::Start(const agent::CallLimits& limits,
                       std::optional<GuestOrigin> origin) {
  {
    const base::MutexLock lock(&mutex_);
    BeginMoveLocked(Move::kStarting);
  }
  const bool boots = !origin.has_value();
  const bool is_copy = !boots && origin->is_copy;
  absl::Status status = StartGuest(std::move(origin), limits);
  if (status.ok()) status = boots ? StartApplication(limits) : Rejoin(limits);
  if (status.ok()) status = SaveRecord();
  bool running = false;
  {
    const base::MutexLock lock(&mutex_);
    if (status.ok() && (ending_ || reason_ != TerminationReason::kNone)) {
      status = absl::UnavailableError(fmt::format("it ended: {}", text_));
    }
    running = status.ok();
    if (running) {
      awake_since_ = idle_least_ = std::chrono::steady_clock::now();
      if (is_copy) settles_at_ = *awake_since_ + kSettlesAfter;
      EnterLocked(MicroVMState::kRunning);
    }
  }
  EndMove(status, /*own=*/false);
  if (running) {
    ArmTimer();
    return absl::OkStatus();
  }
  status = Explain(std::move(status));
  const bool silent = ReasonOf(status) == ErrorReason::kAgentUnresponsive;
  End(silent ? TerminationReason::kAgentUnresponsive
             : TerminationReason::kRequested,
      fmt::format("it could not be started: {}",
                  std::string(status.message())));
  return status;
}

absl::Status Vm::StartGuest(std::optional<GuestOrigin> origin,
                            const agent::CallLimits& limits) {
  GuestConfig config;
  config.image = image_;
  const bool boots = !origin.has_value();
  config.origin = std::move(origin);
  config.directory = store_.live();
  config.disks = options_.disks;
  config.tap = options_.tap;
  config.prefetch = options_.memory;
  config.vm_id = id_;
  config.env = OwnEnvironment();
  config.log = environment_.log;
  config.executor = environment_.executor;
  config.loop = environment_.loop;
  config.on_end = [self = weak_from_this()](const GuestEnd& end) {
    // On a vCPU's thread, which must not be the one that ends the guest.
    if (const auto vm = self.lock()) vm->EndSoon(end.reason, end.text);
  };
  uint64_t snapshot = 0;
  {
    const base::MutexLock lock(&mutex_);
    if (ending_) return RefusalLocked();
    config.egress = egress_;
    config.services = services_->listener();
    config.sync_later = state_ == MicroVMState::kPending;
    snapshot = record_.snapshot;
    booting_ = true;  // End() waits: the factory goes with the Host.
  }
  config.on_prepared = [this, snapshot] { return store_.MarkAwake(snapshot); };
  auto made = environment_.factory->Start(std::move(config));
  absl::Status started = made.status();
  std::shared_ptr<Guest> guest;
  {
    const base::MutexLock lock(&mutex_);
    if (made.ok()) guest = guest_ = *std::move(made);
    booting_ = false;
    changed_.NotifyAll();
  }
  if (guest == nullptr) return started;
  CATNAP_RETURN_IF_ERROR(WaitForAgent(guest, limits));
  return boots ? IntroduceGuest(limits) : absl::OkStatus();
}

absl::Status Vm::WaitForAgent(const std::shared_ptr<Guest>& guest,
                              const agent::CallLimits& limits) {
  agent::CallLimits within = limits;
  const Time latest = std::chrono::steady_clock::now() + kLongestBoot;
  if (!within.deadline.has_value()) within.deadline = latest;
  const std::stop_callback wake(within.stop, [&guest] { guest->Wake(); });
  const auto client = guest->WaitForClient(*within.deadline, [this, &within] {
    return within.stop.stop_requested() || !IsWanted();
  });
  if (client.ok()) return absl::OkStatus();
  if (within.stop.stop_requested()) {
    return absl::CancelledError("cancelled while the guest started");
  }
  if (limits.deadline.has_value() &&
      std::chrono::steady_clock::now() >= *limits.deadline) {
    return absl::DeadlineExceededError(
        "the guest did not start within CallOptions::timeout");
  }
  return client.status();
}

absl::Status Vm::StartApplication(const agent::CallLimits& limits) {
  if (image_->application.empty()) return absl::OkStatus();
  return RunApplication(
      this,
      [self = weak_from_this()](const std::string& text) {
        if (const auto vm = self.lock()) vm->OnApplicationEnd(text);
      },
      limits);
}

absl::Status Vm::Rejoin(const agent::CallLimits& limits) {
  if (image_->application.empty()) return absl::OkStatus();
  return AttachApplication(
      this,
      [self = weak_from_this()](const std::string& text) {
        if (const auto vm = self.lock()) vm->OnApplicationEnd(text);
      },
      limits);
}

void Vm::OnApplicationEnd(const std::string& text) {
  if (image_->on_app_exit == OnAppExit::kKeepRunning) {
    log_.Info("{}", text);
    return;
  }
  EndSoon(TerminationReason::kAppExited, text);
}

void Vm::EndSoon(TerminationReason reason, const std::string& text) {
  {
    const base::MutexLock lock(&mutex_);
    if (ending_) return;
    // Calls that fail from now on say why.
    if (reason_ == TerminationReason::kNone) {
      reason_ = reason;
      text_ = text;
    }
  }
  environment_.worker->Post(
      [self = shared_from_this(), reason, text] { self->End(reason, text); });
}

void Vm::End(TerminationReason reason, const std::string& text,
             bool host_closed) {
  if (host_closed) {
    const base::MutexLock lock(&mutex_);
    host_closed_ = true;
  }
  Finish(reason, text, /*keep=*/false);
}

absl::Status Vm::Close(bool suspend, Time deadline) {
  bool runs = false;
  {
    const base::MutexLock lock(&mutex_);
    host_closed_ = true;
    changed_.NotifyAll();
    // What wakes is suspended when it runs: its memory is not to be lost.
    while (move_ == Move::kResuming &&
           std::chrono::steady_clock::now() < deadline) {
      changed_.WaitUntil(&mutex_, deadline);
    }
    runs =
        state_ == MicroVMState::kRunning || state_ == MicroVMState::kSuspending;
    if (!store_.durable() || state_ == MicroVMState::kPending ||
        (runs && !suspend)) {
      runs = false;
      suspend = false;
    } else {
      suspend = true;
    }
  }
  if (!suspend) {
    Finish(TerminationReason::kRequested, "the Host was closed",
           /*keep=*/false);
    return absl::OkStatus();
  }
  absl::Status status = absl::OkStatus();
  if (runs || state() == MicroVMState::kSuspending) {
    status = SuspendAs(Cause::kClose, agent::CallLimits(deadline),
                       "the Host was closed");
    // Who ends it meanwhile does not want it stored.
    const base::MutexLock lock(&mutex_);
    if (ending_) status = absl::OkStatus();
  }
  Finish(TerminationReason::kRequested, "the Host was closed", /*keep=*/true);
  return status;
}

void Vm::Finish(TerminationReason reason, const std::string& text, bool keep) {
  std::shared_ptr<Guest> guest;
  std::shared_ptr<RelayGroup> relays;
  std::shared_ptr<ServiceTable> services;
  std::set<EndHook> hooks;
  std::stop_source stop;
  {
    const base::MutexLock lock(&mutex_);
    if (ending_) {
      while (!over_) changed_.Wait(&mutex_);
      return;
    }
    ending_ = true;
    if (reason_ != TerminationReason::kNone) keep = false;
    if (!keep) {
      EnterLocked(MicroVMState::kTerminating);
      if (reason_ == TerminationReason::kNone) {
        reason_ = reason;
        text_ = text;
      }
    }
    changed_.NotifyAll();
    stop = move_stop_;
  }
  // A copy of it was moved from, not it: libstdc++ assigns so.
  stop.request_stop();  // NOLINT(clang-analyzer-cplusplus.Move)
  StopTimer();
  {
    const base::MutexLock lock(&mutex_);
    // What is being written is given up first; what starts is stopped.
    while (booting_ || settling_ || move_ == Move::kSuspending ||
           move_ == Move::kCapturing) {
      changed_.Wait(&mutex_);
    }
    guest = guest_;
    relays.swap(relays_);
    services.swap(services_);
    hooks.swap(hooks_);
  }
  double vcpu_seconds = 0;
  if (guest != nullptr) {
    guest->Wake();
    // First, so that callbacks which wait for the guest return: the services'
    // end waits for those.
    guest->Stop();
    vcpu_seconds = guest->VcpuSeconds();
  }
  {
    const base::MutexLock lock(&mutex_);
    while (move_ == Move::kResuming) changed_.Wait(&mutex_);
  }
  for (const EndHook& hook : hooks) (*hook)();
  if (relays != nullptr) relays->Close();
  services.reset();
  if (!keep) {
    log_.LogIfError(store_.Remove(), "its directory stays");
  }
  std::shared_ptr<Guest> last;
  ImageUse image_use;
  {
    const base::MutexLock lock(&mutex_);
    last.swap(guest_);
    image_use.swap(image_use_);
    past_vcpu_seconds_ += vcpu_seconds;
    ended_at_ = std::chrono::steady_clock::now();
    CountTimeLocked(*ended_at_);
    over_ = true;
    EnterLocked(keep ? MicroVMState::kSuspended : MicroVMState::kTerminated);
    changed_.NotifyAll();
  }
}

MicroVMState Vm::state() const {
  const base::MutexLock lock(&mutex_);
  return state_;
}

std::string Vm::state_reason() const {
  std::shared_ptr<Guest> guest;
  std::string known;
  {
    const base::MutexLock lock(&mutex_);
    if (reason_ != TerminationReason::kNone || guest_ == nullptr ||
        state_ == MicroVMState::kSuspended) {
      return text_;
    }
    if (!trouble_.empty()) {
      known = trouble_;
    } else if (!holds_.empty()) {
      known = fmt::format("kept awake: {}", *holds_.begin());
    }
    guest = guest_;
  }
  std::string waits = guest->WaitsFor();
  return waits.empty() ? known : waits;
}

TerminationReason Vm::termination_reason() const {
  const base::MutexLock lock(&mutex_);
  // Until it is in that state it has not ended, though it is known why it will.
  return state_ == MicroVMState::kTerminating ||
                 state_ == MicroVMState::kTerminated
             ? reason_
             : TerminationReason::kNone;
}

std::optional<Vm::Time> Vm::ended_at() const {
  const base::MutexLock lock(&mutex_);
  return ended_at_;
}

absl::StatusOr<MicroVMState> Vm::WaitForState(MicroVMState wanted,
                                              Time deadline) {
  const base::MutexLock lock(&mutex_);
  const uint64_t before = entered_[static_cast<size_t>(wanted)];
  for (;;) {
    // It may have gone on from there since.
    if (state_ == wanted || entered_[static_cast<size_t>(wanted)] != before) {
      return wanted;
    }
    const bool can_come = !over_ && wanted != MicroVMState::kPending &&
                          (state_ != MicroVMState::kTerminating ||
                           wanted == MicroVMState::kTerminated);
    if (!can_come) {
      if (over_ && host_closed_ && state_ != MicroVMState::kTerminated) {
        return Closed();
      }
      return absl::FailedPreconditionError(
          fmt::format("MicroVM {} can no longer come to that state: {}", id_,
                      text_.empty() ? "it has started" : text_));
    }
    if (!changed_.WaitUntil(&mutex_, deadline) &&
        std::chrono::steady_clock::now() >= deadline && state_ != wanted &&
        entered_[static_cast<size_t>(wanted)] == before) {
      return absl::DeadlineExceededError(
          fmt::format("MicroVM {} did not come to that state in time", id_));
    }
  }
}

absl::Status Vm::WaitUntilStarted(const agent::CallLimits& limits) {
  const std::stop_callback wake(limits.stop, [this] {
    const base::MutexLock lock(&mutex_);
    changed_.NotifyAll();
  });
  const base::MutexLock lock(&mutex_);
  while (state_ == MicroVMState::kPending) {
    if (limits.stop.stop_requested()) {
      return absl::CancelledError("cancelled while another call starts it");
    }
    if (!limits.deadline.has_value()) {
      changed_.Wait(&mutex_);
    } else if (!changed_.WaitUntil(&mutex_, *limits.deadline) &&
               std::chrono::steady_clock::now() >= *limits.deadline) {
      return absl::DeadlineExceededError(
          "another call starts it, and has not within CallOptions::timeout");
    }
  }
  return ending_ || host_closed_ ? RefusalLocked() : absl::OkStatus();
}

void Vm::CountTimeLocked(Time now) {
  if (awake_since_.has_value()) {
    record_.running += std::chrono::duration_cast<Millis>(now - *awake_since_);
  }
  if (asleep_since_.has_value()) {
    record_.suspended +=
        std::chrono::duration_cast<Millis>(now - *asleep_since_);
  }
  awake_since_.reset();
  asleep_since_.reset();
}

Usage Vm::GetUsage() const {
  std::shared_ptr<Guest> guest;
  Usage usage;
  {
    const base::MutexLock lock(&mutex_);
    const auto now = std::chrono::steady_clock::now();
    usage.running = record_.running;
    usage.suspended = record_.suspended;
    if (awake_since_.has_value()) {
      usage.running += std::chrono::duration_cast<Millis>(now - *awake_since_);
    }
    if (asleep_since_.has_value()) {
      usage.suspended +=
          std::chrono::duration_cast<Millis>(now - *asleep_since_);
    }
    usage.memory_gib_seconds =
        static_cast<double>(image_->memory_bytes) / kGiB *
        std::chrono::duration<double>(usage.running).count();
    usage.vcpu_seconds = past_vcpu_seconds_;
    usage.snapshot_bytes_written = record_.bytes_written;
    usage.snapshot_bytes_read = record_.bytes_read;
    const bool over = over_ && state_ == MicroVMState::kTerminated;
    usage.stored_bytes = over ? 0 : record_.stored_bytes;
    guest = guest_;
  }
  if (guest != nullptr) {
    usage.vcpu_seconds += guest->VcpuSeconds();
    usage.stored_bytes += guest->StoredBytes();
  }
  return usage;
}

absl::Status Vm::Refusal() const {
  const base::MutexLock lock(&mutex_);
  return RefusalLocked();
}

absl::Status Vm::RefusalLocked() const {
  if (host_closed_) return Closed();
  return WithReason(absl::FailedPreconditionError(
                        fmt::format("MicroVM {} has ended: {}", id_, text_)),
                    ErrorReason::kVmTerminated);
}

absl::Status Vm::SuspendedLocked() const {
  return WithReason(
      absl::FailedPreconditionError(fmt::format(
          "MicroVM {} is suspended ({}); Resume() wakes it, and an IdlePolicy "
          "with auto_resume_enabled lets every use do so",
          id_, text_)),
      ErrorReason::kVmSuspended);
}

bool Vm::IsWanted() const {
  const base::MutexLock lock(&mutex_);
  return reason_ == TerminationReason::kNone && !ending_;
}

absl::StatusOr<std::shared_ptr<Guest>> Vm::RunningGuest() const {
  const base::MutexLock lock(&mutex_);
  if (ending_ || host_closed_) return RefusalLocked();
  if (guest_ != nullptr) return guest_;
  if (state_ == MicroVMState::kSuspended) return SuspendedLocked();
  return RefusalLocked();
}

absl::StatusOr<std::shared_ptr<agent::Client>> Vm::Client(
    const agent::CallLimits& limits) {
  CATNAP_ASSIGN_OR_RETURN(const std::shared_ptr<Guest> guest, RunningGuest());
  Time deadline = std::chrono::steady_clock::now() + kReconnect;
  if (limits.deadline.has_value()) {
    deadline = std::min(deadline, *limits.deadline);
  }
  const std::stop_callback wake(limits.stop, [&guest] { guest->Wake(); });
  auto client = guest->WaitForClient(deadline, [this, &limits] {
    return limits.stop.stop_requested() || !IsWanted();
  });
  if (client.ok()) return client;
  if (limits.stop.stop_requested()) return absl::CancelledError("cancelled");
  return Explain(client.status());
}

absl::StatusOr<std::shared_ptr<agent::Client>> Vm::ClientNow() {
  CATNAP_ASSIGN_OR_RETURN(const std::shared_ptr<Guest> guest, RunningGuest());
  auto client = guest->WaitForClient(Time(), nullptr);
  if (client.ok()) return client;
  return Explain(client.status());
}

bool Vm::EndedMeanwhile() const {
  const base::MutexLock lock(&mutex_);
  return reason_ != TerminationReason::kNone || ending_;
}

absl::Status Vm::Explain(absl::Status status) const {
  if (status.ok()) return status;
  const base::MutexLock lock(&mutex_);
  if (reason_ == TerminationReason::kNone && !ending_) return status;
  // What the guest or the caller said before stands.
  const bool of_the_connection =
      status.code() == absl::StatusCode::kUnavailable ||
      status.code() == absl::StatusCode::kCancelled;
  if (!of_the_connection) return status;
  if (host_closed_) return Closed();
  return WithReason(absl::UnavailableError(fmt::format(
                        "MicroVM {} ended meanwhile: {}", id_, text_)),
                    ErrorReason::kVmTerminated);
}

std::shared_ptr<RelayGroup> Vm::relays() const {
  const base::MutexLock lock(&mutex_);
  return relays_;
}

void Vm::AddHold(const std::string& reason) {
  const base::MutexLock lock(&mutex_);
  holds_.insert(reason);
}

void Vm::RemoveHold(const std::string& reason) {
  const base::MutexLock lock(&mutex_);
  const auto at = holds_.find(reason);
  if (at != holds_.end()) holds_.erase(at);
}

}  // namespace catnap::runtime
