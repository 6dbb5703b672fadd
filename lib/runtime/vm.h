#ifndef CATNAP_LIB_RUNTIME_VM_H_
#define CATNAP_LIB_RUNTIME_VM_H_

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "agent/client.h"
#include "base/log.h"
#include "base/mutex.h"
#include "catnap/microvm.h"
#include "catnap/process.h"
#include "catnap/run_options.h"
#include "io/event_loop.h"
#include "runtime/guest.h"
#include "runtime/image_record.h"
#include "runtime/relay_group.h"
#include "runtime/service_table.h"
#include "runtime/vm_activity.h"
#include "runtime/vm_record.h"
#include "runtime/vm_store.h"

namespace catnap::runtime {

class HostCore;

// What a MicroVM uses of its Host. What is borrowed outlives its guest; what is
// shared may be used by a Vm that outlives the Host.
struct VmEnvironment {
  GuestFactory* factory = nullptr;  // Borrowed.
  io::EventLoop* loop = nullptr;    // Borrowed.
  base::Clock* clock = nullptr;     // Borrowed.
  std::shared_ptr<Executor> executor;
  // Tasks of these two may block, and run side by side.
  std::shared_ptr<Executor> worker;   // Ends and wakes guests.
  std::shared_ptr<Executor> sleeper;  // Suspends them.
  std::shared_ptr<LogSink> log;
  std::filesystem::path directory;  // The VM's own; removed when it ends.
  std::weak_ptr<HostCore> host;
  // Told of an image's build; mostly null.
  std::function<void(BuildPhase)> on_phase;
  // Another handle of this VM, for a callback. May outlive the Host.
  std::function<absl::StatusOr<MicroVM>()> handle;
};

// One MicroVM: its state, its guest while it has one, how it sleeps and wakes,
// and how it ends.
//
// Going to sleep, waking up and being copied are "moves": one at a time, on the
// thread of who asked for it; others wait for its end. While it sleeps in this
// process it keeps its guest, whose connection waits; a VM that another process
// left sleeping has none until it wakes.
//
// Thread-safe. Outlives its Host; then only the plain questions have answers.
class Vm : public std::enable_shared_from_this<Vm> {
 public:
  using Time = std::chrono::steady_clock::time_point;

  Vm(std::string id, std::shared_ptr<const ImageRecord> image,
     RunOptions options, VmEnvironment environment);
  // One that was there before this process; it sleeps.
  Vm(std::shared_ptr<const ImageRecord> image, StoredVm stored,
     VmEnvironment environment);
  Vm(const Vm&) = delete;
  Vm& operator=(const Vm&) = delete;
  ~Vm();

  // To be called once, first.
  absl::Status Prepare();
  // Has the worker make durable what was written without.
  void SyncSoon();

  // Starts the guest, from `origin` or by a boot, and its application; blocks.
  // Afterwards the state is kRunning, or kTerminated and the status says why.
  // SyncSoon() then makes its files durable. Once.
  absl::Status Start(const agent::CallLimits& limits,
                     std::optional<GuestOrigin> origin = std::nullopt);
  // Ends it. Blocks until it has ended, whoever ends it. Idempotent; the first
  // reason stays. `host_closed`: calls are told so from now on. Not on the
  // loop's thread.
  void End(TerminationReason reason, const std::string& text,
           bool host_closed = false);
  // The same, soon, on the worker. Does not block.
  void EndSoon(TerminationReason reason, const std::string& text);
  // The Host closes: calls are refused from now on. A durable VM is left asleep
  // on the disk, suspended before if it runs and `suspend` is set; any other
  // ends. Blocks. Errors: it could not be suspended, and was left as after a
  // crash.
  absl::Status Close(bool suspend, Time deadline);

  // See MicroVM. `why` is for people.
  absl::Status Suspend(const agent::CallLimits& limits, const std::string& why);
  absl::Status Resume(const agent::CallLimits& limits);
  // Suspends it soon, in the background.
  void SuspendSoon(const std::string& why);
  absl::Status SetIdlePolicy(std::optional<IdlePolicy> policy);
  // Is let go of when it has ended.
  void KeepImage(ImageUse use) {
    const base::MutexLock lock(&mutex_);
    image_use_ = std::move(use);
  }

  // A copy of a guest that runs, which goes on. When it sleeps: null, after
  // `if_asleep` was called with the directory of its state, which stays during
  // the call, and how many bytes of its memory are its own. Blocks. Errors: as
  // Guest::Capture(); FAILED_PRECONDITION, it has only its disk.
  absl::StatusOr<std::shared_ptr<CapturedGuest>> Capture(
      CaptureUse use, const agent::CallLimits& limits,
      const std::function<absl::Status(const std::filesystem::path&, uint64_t)>&
          if_asleep);

  // What every use of the guest begins with: it runs when this returns OK,
  // woken by the call when it slept and may be woken. Blocks.
  // Errors: FAILED_PRECONDITION with kVmSuspended; as Resume().
  absl::Status Awake(const agent::CallLimits& limits);
  // The same without blocking; `done` is called once, on this thread when there
  // is nothing to wait for, else on the worker.
  void WhenAwake(const agent::CallLimits& limits,
                 absl::AnyInvocable<void(absl::Status) &&> done);

  // For what need not wait, as it is kept until then.
  // Errors: FAILED_PRECONDITION with kVmSuspended, it may not be woken.
  absl::Status WakeSoon();

  const std::string& id() const { return id_; }
  const ImageRecord& image() const { return *image_; }
  const std::shared_ptr<const ImageRecord>& image_record() const {
    return image_;
  }
  // As it was started with; what Set...() changed since is not here.
  const RunOptions& options() const { return options_; }
  // With what was changed since.
  RunOptions CurrentOptions() const;
  const VmEnvironment& environment() const { return environment_; }
  MicroVMState state() const;
  std::string state_reason() const;
  TerminationReason termination_reason() const;
  // When it ended, if it has.
  std::optional<Time> ended_at() const;
  // See MicroVM::WaitForState.
  absl::StatusOr<MicroVMState> WaitForState(MicroVMState wanted, Time deadline);
  // Blocks while it is kPending, and until `limits`.
  absl::Status WaitUntilStarted(const agent::CallLimits& limits);
  Usage GetUsage() const;

  // The agent's connection, for one call; wakes nobody: see Awake(). May block
  // for some seconds, when the agent connects again.
  absl::StatusOr<std::shared_ptr<agent::Client>> Client(
      const agent::CallLimits& limits);
  // The same, without blocking.
  absl::StatusOr<std::shared_ptr<agent::Client>> ClientNow();
  // What a call says that failed with `status`: that the VM ended meanwhile or
  // that the Host was closed, if so.
  absl::Status Explain(absl::Status status) const;
  // Why no call is taken any more. REQUIRES: it has ended.
  absl::Status Refusal() const;
  // Whether `status`, of a call that was running, is due to the VM's end.
  bool EndedMeanwhile() const;

  // Its connections with the host; null when it has ended.
  std::shared_ptr<RelayGroup> relays() const;
  // Takes what the application writes, for agent::ProcessEvents::on_output;
  // null: nobody wants it.
  absl::AnyInvocable<size_t(uint8_t channel, std::span<const uint8_t> data)>
  ApplicationOutput() const;

  absl::Status SetEgress(const NetworkPolicy& policy);
  absl::Status SetService(uint16_t port, std::shared_ptr<GuestService> service);

  // Variables for everything that runs in it, with those of a command over
  // them, as NAME=value.
  std::vector<std::string> Environment(
      const std::map<std::string, std::string>& more) const;
  // Those of its RunOptions alone, which programs that run already find in
  // /run/catnap/env.
  std::vector<std::string> OwnEnvironment() const;

  // Runs `end` when the VM ends, before its guest does, on the thread that ends
  // it, unless the result is removed before. It may come at once.
  using EndHook = std::shared_ptr<std::function<void()>>;
  EndHook AddEndHook(std::function<void()> end);
  void RemoveEndHook(const EndHook& hook);

  VmActivity& activity() { return *activity_; }
  // A hold's reason, for state_reason().
  void AddHold(const std::string& reason);
  void RemoveHold(const std::string& reason);

 private:
  enum class Move { kNone, kStarting, kSuspending, kResuming, kCapturing };
  // Who suspends it: only the user's may be joined by others, what is idle is
  // looked at once more, and at the Host's end no use stops it.
  enum class Cause { kUser, kIdle, kClose };

  // vm.cc
  absl::Status StartGuest(std::optional<GuestOrigin> origin,
                          const agent::CallLimits& limits);
  absl::Status WaitForAgent(const std::shared_ptr<Guest>& guest,
                            const agent::CallLimits& limits);
  // Of a guest that booted: tells it what a wake tells a copy.
  absl::Status IntroduceGuest(const agent::CallLimits& limits);
  absl::Status StartApplication(const agent::CallLimits& limits);
  void OnApplicationEnd(const std::string& text);
  // Takes part in the application of a guest that did not boot.
  absl::Status Rejoin(const agent::CallLimits& limits);
  // Adds to the usage what was not counted yet.
  void CountTimeLocked(Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Ends it or, `keep`, leaves it asleep on the disk.
  void Finish(TerminationReason reason, const std::string& text, bool keep);

  // vm_services.cc
  absl::StatusOr<std::shared_ptr<ServiceTable>> MakeServices() const;
  ServiceTable::OnConnection CallbackOf(
      std::shared_ptr<GuestService> service) const;

  // vm_sleep.cc
  absl::Status SuspendAs(Cause cause, const agent::CallLimits& limits,
                         const std::string& why);
  absl::Status RunSuspend(const std::shared_ptr<Guest>& guest,
                          const agent::CallLimits& limits,
                          const std::string& why);
  absl::Status PublishSleep(uint64_t number, const StoredSizes& sizes,
                            const std::string& why);
  absl::Status RunResume(const agent::CallLimits& limits);
  absl::Status StartAgain(const agent::CallLimits& limits);
  void BeginMoveLocked(Move move) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Tells those who wait. `own`: it is for the caller only, others try again.
  void EndMove(const absl::Status& status, bool own);
  // Waits for a change until `limits`.
  absl::Status WaitLocked(const agent::CallLimits& limits)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Waits for the end of the move that runs. None: it is for others to try
  // again.
  absl::StatusOr<std::optional<absl::Status>> JoinLocked(
      const agent::CallLimits& limits) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void EnterLocked(MicroVMState state) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool MayWakeLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void OnUse();
  void OnTraffic();
  absl::Status SaveRecord();
  VmRecord RecordLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // vm_idle.cc
  void ArmTimer();
  void ArmTimerLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void StopTimer();
  void OnTimer(uint64_t number);
  std::optional<Time> NextLookLocked(Time now) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool IsIdleLocked(Time now) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SampleGuest(const std::shared_ptr<Guest>& guest);
  bool ShouldSettleLocked(Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SettleGuest();
  void SuspendIdle();

  absl::StatusOr<std::shared_ptr<Guest>> RunningGuest() const;
  absl::Status RefusalLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status SuspendedLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool IsWanted() const;

  const std::string id_;
  const std::shared_ptr<const ImageRecord> image_;
  const RunOptions options_;
  const VmEnvironment environment_;
  const base::Logger log_;
  VmStore store_;
  std::shared_ptr<VmActivity> activity_;  // Set by Prepare().
  std::atomic<bool> use_posted_{false};

  // Orders what is written of the record; taken before mutex_.
  base::Mutex record_mutex_;

  mutable base::Mutex mutex_;
  mutable base::CondVar changed_;
  MicroVMState state_ ABSL_GUARDED_BY(mutex_) = MicroVMState::kPending;
  // How often it came to each state.
  std::array<uint64_t, 6> entered_ ABSL_GUARDED_BY(mutex_){};
  Move move_ ABSL_GUARDED_BY(mutex_) = Move::kNone;
  uint64_t moves_ ABSL_GUARDED_BY(mutex_) = 0;  // That ended.
  absl::Status move_status_ ABSL_GUARDED_BY(mutex_);
  bool move_was_own_ ABSL_GUARDED_BY(mutex_) = false;
  // Of the suspend that runs.
  std::stop_source move_stop_ ABSL_GUARDED_BY(mutex_);
  bool used_meanwhile_ ABSL_GUARDED_BY(mutex_) = false;

  bool booting_ ABSL_GUARDED_BY(mutex_) = false;   // In the factory.
  bool settling_ ABSL_GUARDED_BY(mutex_) = false;  // In Guest::Settle().
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;    // Somebody ends it.
  bool over_ ABSL_GUARDED_BY(mutex_) = false;      // Ended, or left asleep.
  bool host_closed_ ABSL_GUARDED_BY(mutex_) = false;
  TerminationReason reason_ ABSL_GUARDED_BY(mutex_) = TerminationReason::kNone;
  std::string text_ ABSL_GUARDED_BY(mutex_);
  std::string trouble_ ABSL_GUARDED_BY(mutex_);  // Why it does not sleep.
  std::multiset<std::string> holds_ ABSL_GUARDED_BY(mutex_);
  ImageUse image_use_ ABSL_GUARDED_BY(mutex_);  // Until it has ended.
  std::shared_ptr<Guest> guest_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<ServiceTable> services_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<RelayGroup> relays_ ABSL_GUARDED_BY(mutex_);
  std::set<EndHook> hooks_ ABSL_GUARDED_BY(mutex_);

  std::optional<IdlePolicy> policy_ ABSL_GUARDED_BY(mutex_);
  NetworkPolicy egress_ ABSL_GUARDED_BY(mutex_);
  // Where the guest that sleeps in this process is.
  std::filesystem::path sleeps_in_ ABSL_GUARDED_BY(mutex_);
  // It was running when its process died: its disk is what there is.
  bool reboots_ ABSL_GUARDED_BY(mutex_) = false;
  bool wakes_on_use_ ABSL_GUARDED_BY(mutex_) = false;  // Whatever the policy.
  VmRecord record_ ABSL_GUARDED_BY(mutex_);  // Of the newest snapshot.
  uint64_t next_snapshot_ ABSL_GUARDED_BY(mutex_) = 1;

  std::optional<io::OperationId> timer_ ABSL_GUARDED_BY(mutex_);
  Time timer_due_ ABSL_GUARDED_BY(mutex_);
  uint64_t timers_ ABSL_GUARDED_BY(mutex_) = 0;    // That were started.
  bool no_timer_ ABSL_GUARDED_BY(mutex_) = false;  // The loop may be gone.
  bool sleep_posted_ ABSL_GUARDED_BY(mutex_) = false;
  // When to see whether a copy rests and can be settled. None: it has been, has
  // slept, or is none.
  std::optional<Time> settles_at_ ABSL_GUARDED_BY(mutex_);
  double sampled_cpu_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t sampled_frames_ ABSL_GUARDED_BY(mutex_) = 0;
  Time sampled_at_ ABSL_GUARDED_BY(mutex_);

  // It is not idle since before.
  Time idle_least_ ABSL_GUARDED_BY(mutex_);
  Time created_at_ ABSL_GUARDED_BY(mutex_);
  std::optional<Time> awake_since_ ABSL_GUARDED_BY(mutex_);
  std::optional<Time> asleep_since_ ABSL_GUARDED_BY(mutex_);
  std::optional<Time> ended_at_ ABSL_GUARDED_BY(mutex_);
  // Of guests before this one, and of a guest up to its end.
  double past_vcpu_seconds_ ABSL_GUARDED_BY(mutex_) = 0;
};

// One use of a VM, as long as it lives. It must not be asleep, or falling
// asleep, for that: see Vm::Awake(), which comes after. Movable.
class VmUse {
 public:
  VmUse() = default;
  VmUse(std::shared_ptr<Vm> vm, UseKind kind)
      : vm_(std::move(vm)), kind_(kind) {
    vm_->activity().Begin(kind_);
  }
  VmUse(VmUse&& other) noexcept
      : vm_(std::move(other.vm_)), kind_(other.kind_) {}
  VmUse& operator=(VmUse&& other) noexcept {
    Release();
    vm_ = std::move(other.vm_);
    kind_ = other.kind_;
    return *this;
  }
  ~VmUse() { Release(); }
  void Release() {
    if (vm_ != nullptr) vm_->activity().End(kind_);
    vm_.reset();
  }

 private:
  std::shared_ptr<Vm> vm_;
  UseKind kind_ = UseKind::kUncounted;
};

// MicroVM::Hold()'s.
class VmHold {
 public:
  VmHold(const std::shared_ptr<Vm>& vm, std::string reason)
      : vm_(vm), reason_(std::move(reason)), use_(vm, UseKind::kHolds) {
    vm_->AddHold(reason_);
  }
  ~VmHold() { vm_->RemoveHold(reason_); }
  VmHold(const VmHold&) = delete;
  VmHold& operator=(const VmHold&) = delete;

 private:
  const std::shared_ptr<Vm> vm_;
  const std::string reason_;
  const VmUse use_;
};

}  // namespace catnap::runtime

#endif  // CATNAP_LIB_RUNTIME_VM_H_
