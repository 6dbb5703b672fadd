#include "catnap/async.h"

#include <utility>

#include "base/status.h"
#include "catnap/errors.h"
#include "runtime/completion.h"
#include "runtime/host_core.h"
#include "runtime/vm_ports.h"
#include "runtime/vm_process.h"

namespace catnap::async {
namespace {

// Has the executor call `done`.
template <typename T>
void Finish(const std::shared_ptr<Executor>& executor, Done<T> done,
            absl::StatusOr<T> result) {
  executor->Post(
      [done = std::move(done), result = std::move(result)]() mutable {
        std::move(done)(std::move(result));
      });
}

// A status that is told to the executor, CANCELLED if nobody brings one.
class StatusAnswer {
 public:
  StatusAnswer(std::shared_ptr<Executor> executor, DoneStatus done)
      : executor_(std::move(executor)), done_(std::move(done)) {}
  StatusAnswer(StatusAnswer&& other) noexcept
      : executor_(std::move(other.executor_)),
        done_(std::exchange(other.done_, nullptr)) {}
  StatusAnswer& operator=(StatusAnswer&&) = delete;
  ~StatusAnswer() {
    Give(WithReason(absl::CancelledError("the Host was closed"),
                    ErrorReason::kHostClosed));
  }
  void Give(absl::Status status) {
    auto done = std::exchange(done_, nullptr);
    if (done == nullptr) return;
    executor_->Post(
        [done = std::move(done), status = std::move(status)]() mutable {
          std::move(done)(std::move(status));
        });
  }

 private:
  std::shared_ptr<Executor> executor_;
  DoneStatus done_;
};

// Has a thread of the core's own make the call, and the executor hear of it.
template <typename T, typename Call>
void OnThread(runtime::HostCore& core, Done<T> done, Call call) {
  const std::shared_ptr<Executor> executor = core.executor();
  // Shared, as a thread that does not start destroys its task.
  const auto kept = std::make_shared<Done<T>>(std::move(done));
  // Close() joins the thread: the core is there as long as it runs.
  const absl::Status started =
      core.RunOnThread([executor, kept, call = std::move(call)]() mutable {
        Finish<T>(executor, std::move(*kept), std::move(call)());
      });
  // A closed Host has no executor any more.
  if (!started.ok()) std::move (*kept)(started);
}

void Sleep(const MicroVM& vm, const CallOptions& call, bool suspend,
           DoneStatus done) {
  const auto machine = runtime::HostCore::VmOf(vm);
  const auto limits = runtime::LimitsOf(call);
  if (!machine.ok() || !limits.ok()) {
    std::move(done)(machine.ok() ? limits.status() : machine.status());
    return;
  }
  const std::shared_ptr<runtime::Vm>& of = *machine;
  const auto& environment = of->environment();
  (suspend ? environment.sleeper : environment.worker)
      ->Post([of, limits = *limits, suspend,
              answer = StatusAnswer(environment.executor,
                                    std::move(done))]() mutable {
        answer.Give(suspend ? of->Suspend(limits, "Suspend() was called")
                            : of->Resume(limits));
      });
}

}  // namespace

void Run(Host& host, Image image, RunOptions options, CallOptions call,
         Done<MicroVM> done) {
  runtime::HostCore& core = runtime::HostCore::Of(host);
  OnThread<MicroVM>(
      core, std::move(done),
      [&core, image = std::move(image), options = std::move(options),
       call = std::move(call)]() mutable {
        return core.Run(image, std::move(options), call);
      });
}

void Restore(Host& host, Snapshot snapshot, RunOptions options,
             CallOptions call, Done<MicroVM> done) {
  runtime::HostCore& core = runtime::HostCore::Of(host);
  OnThread<MicroVM>(
      core, std::move(done),
      [&core, snapshot = std::move(snapshot), options = std::move(options),
       call = std::move(call)]() mutable {
        return core.Restore(snapshot, std::move(options), call);
      });
}

void TakeSnapshot(MicroVM vm, SnapshotOptions options, CallOptions call,
                  Done<Snapshot> done) {
  const auto core = runtime::HostCore::OfVm(vm);
  const auto machine = runtime::HostCore::VmOf(vm);
  if (!core.ok() || !machine.ok()) {
    std::move(done)(core.ok() ? machine.status() : core.status());
    return;
  }
  OnThread<Snapshot>(
      **core, std::move(done),
      [&core = **core, machine = *machine, options = std::move(options),
       call = std::move(call)]() mutable {
        return core.TakeSnapshot(machine.get(), options, call);
      });
}

void Exec(MicroVM vm, Command command, CallOptions call,
          Done<ExecResult> done) {
  const auto machine = runtime::HostCore::VmOf(vm);
  const auto limits = runtime::LimitsOf(call);
  if (!machine.ok() || !limits.ok()) {
    std::move(done)(machine.ok() ? limits.status() : machine.status());
    return;
  }
  const std::shared_ptr<runtime::Vm>& of = *machine;
  runtime::VmUse use(of, command.counts_as_activity
                             ? runtime::UseKind::kExec
                             : runtime::UseKind::kUncounted);
  of->WhenAwake(*limits, [of, use = std::move(use), limits = *limits,
                          command = std::move(command),
                          done = std::move(done)](absl::Status awake) mutable {
    auto finish =
        [executor = of->environment().executor,
         done = std::move(done)](absl::StatusOr<ExecResult> result) mutable {
          Finish<ExecResult>(executor, std::move(done), std::move(result));
        };
    if (awake.ok()) {
      runtime::VmProcess::Exec(of, command, limits, std::move(finish));
    } else {
      finish(std::move(awake));
    }
  });
}

void Connect(MicroVM vm, uint16_t guest_port, CallOptions call,
             Done<UniqueFd> done) {
  const auto machine = runtime::HostCore::VmOf(vm);
  const auto limits = runtime::LimitsOf(call);
  if (!machine.ok() || !limits.ok()) {
    std::move(done)(machine.ok() ? limits.status() : machine.status());
    return;
  }
  const std::shared_ptr<runtime::Vm>& of = *machine;
  runtime::VmUse use(of, runtime::UseKind::kForwards);
  of->WhenAwake(*limits, [of, use = std::move(use), limits = *limits,
                          guest_port,
                          done = std::move(done)](absl::Status awake) mutable {
    auto finish = [executor = of->environment().executor, use = std::move(use),
                   done = std::move(done)](
                      absl::StatusOr<base::UniqueFd> fd) mutable {
      Finish<UniqueFd>(executor, std::move(done),
                       fd.ok()
                           ? absl::StatusOr<UniqueFd>(UniqueFd(fd->Release()))
                           : fd.status());
    };
    if (awake.ok()) {
      runtime::ConnectToVm(of.get(), guest_port, limits, std::move(finish));
    } else {
      finish(std::move(awake));
    }
  });
}

void Suspend(MicroVM vm, CallOptions call, DoneStatus done) {
  Sleep(vm, call, /*suspend=*/true, std::move(done));
}

void Resume(MicroVM vm, CallOptions call, DoneStatus done) {
  Sleep(vm, call, /*suspend=*/false, std::move(done));
}

}  // namespace catnap::async
