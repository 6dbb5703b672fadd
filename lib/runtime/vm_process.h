#ifndef CATNAP_LIB_RUNTIME_VM_PROCESS_H_
#define CATNAP_LIB_RUNTIME_VM_PROCESS_H_

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "agent/process.h"
#include "base/mutex.h"
#include "base/serial_queue.h"
#include "catnap/process.h"
#include "runtime/vm.h"

namespace catnap::runtime {

// A program in a guest and what it wrote: behind Exec() and behind Process.
// Keeps itself alive until the program's end has been told.
//
// Thread-safe.
class VmProcess : public std::enable_shared_from_this<VmProcess> {
 public:
  using ExecDone = absl::AnyInvocable<void(absl::StatusOr<ExecResult>) &&>;

  // Runs `command` to its end; `done` is called once, with no lock held, on the
  // executor when the command has an on_output, else on whatever thread.
  static void Exec(std::shared_ptr<Vm> vm, const Command& command,
                   const agent::CallLimits& limits, ExecDone done);
  // As MicroVM::Start() and Attach().
  static absl::StatusOr<std::shared_ptr<VmProcess>> Start(
      std::shared_ptr<Vm> vm, const Command& command,
      const agent::CallLimits& limits);
  static absl::StatusOr<std::shared_ptr<VmProcess>> Attach(
      std::shared_ptr<Vm> vm, uint64_t process_id);

  // As Process's.
  uint64_t id() const;
  absl::StatusOr<size_t> Write(std::string_view data,
                               const agent::CallLimits& limits);
  absl::Status CloseStdin();
  absl::StatusOr<size_t> Read(Stream stream, std::span<char> into,
                              const agent::CallLimits& limits);
  absl::Status Signal(int signal);
  absl::Status Resize(PtySize size);
  absl::StatusOr<ExecResult> Wait(const agent::CallLimits& limits);
  void Detach();
  // The handle goes: the program's tree is killed, on_output not called again.
  void Abandon();

  // Errors: INVALID_ARGUMENT, by member.
  static absl::Status Check(const Command& command);

 private:
  struct Channel {
    std::string waiting;  // Not read yet, and not acknowledged to the guest.
  };

  VmProcess(std::shared_ptr<Vm> vm, const Command& command, bool collects);
  agent::ProcessEvents Events();
  absl::Status Begin(const Command& command, const agent::CallLimits& limits,
                     bool is_exec);
  void Attached(const std::shared_ptr<agent::GuestProcess>& process);
  absl::Status WaitUntilStarted(const agent::CallLimits& limits);
  void OnStarted(const agent::Started& started);
  size_t OnOutput(uint8_t channel, std::span<const uint8_t> data);
  void OnExit(absl::StatusOr<agent::ExitReport> report);
  void TellEnd();
  // Says that output was taken, now or when the process is known.
  void Consume(uint8_t channel, size_t bytes);
  void AppendLocked(uint8_t channel, std::string_view data)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Blocks for a change; false when `limits` ended the wait.
  bool WaitLocked(const agent::CallLimits& limits)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status WhyNoMoreLocked(const agent::CallLimits& limits) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::shared_ptr<agent::GuestProcess> process() const;

  // Wakes the VM for a call on a process that is there.
  absl::Status Wake(const agent::CallLimits& limits);
  absl::Status WakeSoon();

  const std::shared_ptr<Vm> vm_;
  std::function<void(Stream, std::string_view)> on_output_;  // Or null.

  mutable base::Mutex mutex_;
  base::CondVar changed_;
  // Null before the agent was asked and after the end: a client must not be
  // kept longer.
  std::shared_ptr<agent::Client> client_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<agent::GuestProcess> process_ ABSL_GUARDED_BY(mutex_);
  std::array<size_t, 2> to_consume_ ABSL_GUARDED_BY(mutex_){};
  uint64_t id_ ABSL_GUARDED_BY(mutex_) = 0;
  bool collects_ ABSL_GUARDED_BY(mutex_);  // All output is for the result.
  bool detached_ ABSL_GUARDED_BY(mutex_) = false;
  VmUse use_ ABSL_GUARDED_BY(mutex_);  // Until its end.
  std::array<Channel, 2> channels_ ABSL_GUARDED_BY(mutex_);
  uint64_t room_ ABSL_GUARDED_BY(mutex_);  // Left of max_output_bytes.
  std::optional<absl::StatusOr<ExecResult>> end_ ABSL_GUARDED_BY(mutex_);
  ExecResult collected_ ABSL_GUARDED_BY(mutex_);
  ExecDone done_ ABSL_GUARDED_BY(mutex_);  // Of Exec().
  base::SerialQueue callbacks_;            // Last.
};

}  // namespace catnap::runtime

#endif  // CATNAP_LIB_RUNTIME_VM_PROCESS_H_
