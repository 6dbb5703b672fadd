#ifndef CATNAP_LIB_RUNTIME_VM_H_
#define CATNAP_LIB_RUNTIME_VM_H_

#include <chrono>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
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
#include "runtime/guest.h"
#include "runtime/image_record.h"
#include "runtime/relay_group.h"
#include "runtime/service_table.h"

namespace catnap::runtime {

// What a MicroVM uses of its Host. What is borrowed outlives its guest; what is
// shared may be used by a Vm that outlives the Host.
struct VmEnvironment {
  GuestFactory* factory = nullptr;  // Borrowed.
  io::EventLoop* loop = nullptr;    // Borrowed.
  base::Clock* clock = nullptr;     // Borrowed.
  std::shared_ptr<Executor> executor;
  std::shared_ptr<Executor> worker;  // Ends guests.
  std::shared_ptr<LogSink> log;
  std::filesystem::path directory;  // The VM's own; removed when it ends.
  // Another handle of this VM, for a callback. May outlive the Host.
  std::function<absl::StatusOr<MicroVM>()> handle;
};

// One MicroVM: its state, its guest while it has one, and how it ends.
//
// Thread-safe. Outlives its Host; then only the plain questions have answers.
class Vm : public std::enable_shared_from_this<Vm> {
 public:
  using Time = std::chrono::steady_clock::time_point;

  Vm(std::string id, std::shared_ptr<const ImageRecord> image,
     RunOptions options, VmEnvironment environment);
  Vm(const Vm&) = delete;
  Vm& operator=(const Vm&) = delete;
  ~Vm();

  // Boots the guest and starts the application; blocks. Afterwards the state is
  // kRunning, or kTerminated and the status says why. Once.
  absl::Status Start(const agent::CallLimits& limits);
  // Ends it. Blocks until it has ended, whoever ends it. Idempotent; the first
  // reason stays. `host_closed`: calls are told so from now on. Not on the
  // loop's thread.
  void End(TerminationReason reason, const std::string& text,
           bool host_closed = false);
  // The same, soon, on the worker. Does not block.
  void EndSoon(TerminationReason reason, const std::string& text);

  const std::string& id() const { return id_; }
  const ImageRecord& image() const { return *image_; }
  const RunOptions& options() const { return options_; }
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

  // The agent's connection, for one call. May block for some seconds, when the
  // agent connects again.
  absl::StatusOr<std::shared_ptr<agent::Client>> Client(
      const agent::CallLimits& limits);
  // The same, without blocking.
  absl::StatusOr<std::shared_ptr<agent::Client>> ClientNow();
  // What a call says that failed with `status`: that the VM ended meanwhile or
  // that the Host was closed, if so.
  absl::Status Explain(absl::Status status) const;
  // Whether `status`, of a call that was running, is due to the VM's end.
  bool EndedMeanwhile() const;

  // Its connections with the host; null when it does not run.
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

  // Runs `end` when the VM ends, before its guest does, on the thread that ends
  // it, unless the result is removed before. It may come at once.
  using EndHook = std::shared_ptr<std::function<void()>>;
  EndHook AddEndHook(std::function<void()> end);
  void RemoveEndHook(const EndHook& hook);

 private:
  absl::StatusOr<std::shared_ptr<ServiceTable>> MakeServices(
      const std::shared_ptr<Traffic>& traffic) const;
  ServiceTable::OnConnection CallbackOf(
      std::shared_ptr<GuestService> service) const;
  absl::Status Boot(const agent::CallLimits& limits);
  absl::Status StartApplication(const agent::CallLimits& limits);
  void OnApplicationEnd(const std::string& text);
  absl::StatusOr<std::shared_ptr<Guest>> RunningGuest() const;
  absl::Status RefusalLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool IsWanted() const;

  const std::string id_;
  const std::shared_ptr<const ImageRecord> image_;
  const RunOptions options_;
  const VmEnvironment environment_;
  const base::Logger log_;

  mutable base::Mutex mutex_;
  mutable base::CondVar changed_;
  MicroVMState state_ ABSL_GUARDED_BY(mutex_) = MicroVMState::kPending;
  bool booting_ ABSL_GUARDED_BY(mutex_) = false;  // In the factory.
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;   // Somebody ends it.
  bool host_closed_ ABSL_GUARDED_BY(mutex_) = false;
  TerminationReason reason_ ABSL_GUARDED_BY(mutex_) = TerminationReason::kNone;
  std::string text_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<Guest> guest_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<ServiceTable> services_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<RelayGroup> relays_ ABSL_GUARDED_BY(mutex_);
  std::set<EndHook> hooks_ ABSL_GUARDED_BY(mutex_);
  std::optional<Time> started_at_ ABSL_GUARDED_BY(mutex_);
  std::optional<Time> ended_at_ ABSL_GUARDED_BY(mutex_);
  double last_vcpu_seconds_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace catnap::runtime

#endif  // CATNAP_LIB_RUNTIME_VM_H_
