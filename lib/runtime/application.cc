#include "runtime/application.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "agent/process.h"
#include "base/status.h"
#include "runtime/completion.h"
#include "runtime/vm_ports.h"
#include "runtime/vm_process.h"

namespace catnap::runtime {
namespace {

// Between two looks at whether the application is ready.
constexpr auto kLookAgain = std::chrono::milliseconds(20);
constexpr uint64_t kMaxProbeOutput = 4096;

std::string TextOf(const agent::ExitReport& report) {
  switch (report.kind) {
    case agent::ExitKind::kExited:
      return fmt::format("the application exited with code {}",
                         report.exit_code);
    case agent::ExitKind::kSignaled:
      return fmt::format("the application was ended by signal {}",
                         report.signal);
    case agent::ExitKind::kNotStarted:
      return fmt::format("the application could not be started: {}",
                         report.text);
    case agent::ExitKind::kTimeout:
    case agent::ExitKind::kMemoryLimit:
      break;
  }
  return "the application was ended by a limit";
}

absl::Status NotReady(const std::string& text) {
  return absl::FailedPreconditionError(text);
}

// Its events. `started` gets OK when it runs, else what it said instead.
agent::ProcessEvents EventsOf(
    Vm* vm, const Completion<absl::Status>& started,
    const std::function<void(const std::string&)>& on_end) {
  agent::ProcessEvents events;
  events.on_started = [started](const agent::Started& /*it*/) {
    started.Set(absl::OkStatus());
  };
  events.on_output = vm->ApplicationOutput();
  events.on_exit = [started, on_end](absl::StatusOr<agent::ExitReport> report) {
    if (!report.ok()) {
      started.Set(report.status());
      return;
    }
    const std::string text = TextOf(*report);
    started.Set(NotReady(text));
    on_end(text);
  };
  return events;
}

// Starts it; returns when it runs.
absl::Status StartIt(Vm* vm,
                     const std::function<void(const std::string&)>& on_end,
                     const agent::CallLimits& limits) {
  CATNAP_ASSIGN_OR_RETURN(const auto client, vm->Client(limits));
  const ImageRecord& image = vm->image();
  agent::ExecRequest request;
  request.argv = image.application;
  request.env = vm->Environment({});
  request.cwd = image.workdir;
  request.user = image.user;
  request.application = true;
  request.report_start = true;
  const Completion<absl::Status> started;
  const auto process = agent::GuestProcess::Start(
      client.get(), request, EventsOf(vm, started, on_end));
  if (!process.ok()) return vm->Explain(process.status());
  return vm->Explain(started.Wait());
}

// Whether a connection to the port is taken.
bool PortAnswers(Vm* vm, uint16_t port, const agent::CallLimits& limits) {
  const Completion<bool> answered;
  ConnectToVm(vm, port, limits, [answered](absl::StatusOr<base::UniqueFd> fd) {
    answered.Set(fd.ok());
  });
  return answered.Wait();
}

bool CommandSucceeds(Vm* vm, const std::vector<std::string>& argv,
                     const agent::CallLimits& limits) {
  Command command;
  command.argv = argv;
  command.max_output_bytes = kMaxProbeOutput;
  const Completion<bool> succeeded;
  VmProcess::Exec(vm->shared_from_this(), command, limits,
                  [succeeded](absl::StatusOr<ExecResult> result) {
                    succeeded.Set(result.ok() &&
                                  result->reason == ExitReason::kExited &&
                                  result->exit_code == 0);
                  });
  return succeeded.Wait();
}

// Waits for what ImageSpec::ready names.
class Readiness {
 public:
  Readiness(Vm* vm, const agent::CallLimits& limits)
      : vm_(vm), limits_(limits), ready_(vm->image().ready) {
    const auto own = std::chrono::steady_clock::now() + ready_.timeout;
    within_ = limits;
    within_.deadline =
        limits.deadline.has_value() ? std::min(*limits.deadline, own) : own;
  }

  absl::Status Wait() {
    if (ready_.port.has_value()) {
      while (!PortAnswers(vm_, *ready_.port, within_)) {
        CATNAP_RETURN_IF_ERROR(Pause(kLookAgain, "did not listen on its port"));
      }
    }
    if (!ready_.command.empty()) {
      while (!CommandSucceeds(vm_, ready_.command, within_)) {
        CATNAP_RETURN_IF_ERROR(
            Pause(kLookAgain, "was not ready by ready.command"));
      }
    }
    const auto end = std::chrono::steady_clock::now() + ready_.delay;
    for (auto now = std::chrono::steady_clock::now(); now < end;
         now = std::chrono::steady_clock::now()) {
      CATNAP_RETURN_IF_ERROR(Pause(
          std::min<std::chrono::steady_clock::duration>(kLookAgain, end - now),
          "was not ready"));
    }
    return absl::OkStatus();
  }

 private:
  // Errors: what ends the wait.
  absl::Status Pause(std::chrono::steady_clock::duration time,
                     const char* what) {
    if (limits_.stop.stop_requested()) {
      return absl::CancelledError("cancelled while the application started");
    }
    const auto now = std::chrono::steady_clock::now();
    if (limits_.deadline.has_value() && now >= *limits_.deadline) {
      return absl::DeadlineExceededError(
          fmt::format("the application {} within CallOptions::timeout", what));
    }
    if (now >= *within_.deadline) {
      return NotReady(
          fmt::format("the application {} within {} ms "
                      "(ImageSpec::ready.timeout)",
                      what, ready_.timeout.count()));
    }
    if (vm_->EndedMeanwhile()) {
      return NotReady(
          fmt::format("it ended before it was ready: {}", vm_->state_reason()));
    }
    // Returns early when the VM ends.
    const auto state = vm_->WaitForState(MicroVMState::kTerminated, now + time);
    return absl::IsDeadlineExceeded(state.status())
               ? absl::OkStatus()
               : NotReady(fmt::format("it ended before it was ready: {}",
                                      vm_->state_reason()));
  }

  Vm* const vm_;  // Not owned.
  const agent::CallLimits& limits_;
  const Ready ready_;
  agent::CallLimits within_;
};

}  // namespace

absl::Status RunApplication(
    Vm* vm, const std::function<void(const std::string& text)>& on_end,
    const agent::CallLimits& limits) {
  const auto& on_phase = vm->environment().on_phase;
  if (on_phase != nullptr) on_phase(BuildPhase::kStarting);
  CATNAP_RETURN_IF_ERROR(StartIt(vm, on_end, limits));
  if (on_phase != nullptr) on_phase(BuildPhase::kWaitingReady);
  return Readiness(vm, limits).Wait();
}

absl::Status AttachApplication(
    Vm* vm, const std::function<void(const std::string& text)>& on_end,
    const agent::CallLimits& limits) {
  CATNAP_ASSIGN_OR_RETURN(const auto client, vm->Client(limits));
  using Entries = absl::StatusOr<std::vector<agent::ProcessEntry>>;
  const Completion<Entries> listed;
  CATNAP_RETURN_IF_ERROR(vm->Explain(agent::ListProcesses(
      client.get(), limits,
      [listed](Entries entries) { listed.Set(std::move(entries)); })));
  const Entries entries = listed.Wait();
  if (!entries.ok()) return vm->Explain(entries.status());
  const auto at = std::find_if(
      entries->begin(), entries->end(),
      [](const agent::ProcessEntry& entry) { return entry.application; });
  if (at == entries->end()) {
    if (vm->image().on_app_exit == OnAppExit::kKeepRunning) {
      return absl::OkStatus();
    }
    return NotReady("the application had ended before the state was stored");
  }
  const Completion<absl::Status> attached;
  const auto process = agent::GuestProcess::Attach(
      client.get(), at->process_id, EventsOf(vm, attached, on_end));
  if (!process.ok()) return vm->Explain(process.status());
  return vm->Explain(attached.Wait());
}

}  // namespace catnap::runtime
