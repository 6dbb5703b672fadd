#include "catnap/async.h"

#include <utility>

#include "base/status.h"
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

}  // namespace

void Run(Host& host, Image image, RunOptions options, CallOptions call,
         Done<MicroVM> done) {
  runtime::HostCore& core = runtime::HostCore::Of(host);
  const std::shared_ptr<Executor> executor = core.executor();
  // Shared, as a thread that does not start destroys its task.
  const auto kept = std::make_shared<Done<MicroVM>>(std::move(done));
  // Close() joins the thread: the core is there as long as it runs.
  const absl::Status started = core.RunOnThread(
      [&core, executor, kept, image = std::move(image),
       options = std::move(options), call = std::move(call)]() mutable {
        Finish<MicroVM>(executor, std::move(*kept),
                        core.Run(image, std::move(options), call));
      });
  // A closed Host has no executor any more.
  if (!started.ok()) std::move (*kept)(started);
}

void Exec(MicroVM vm, Command command, CallOptions call,
          Done<ExecResult> done) {
  const auto machine = runtime::HostCore::VmOf(vm);
  const auto limits = runtime::LimitsOf(call);
  if (!machine.ok() || !limits.ok()) {
    std::move(done)(machine.ok() ? limits.status() : machine.status());
    return;
  }
  runtime::VmProcess::Exec(
      *machine, command, *limits,
      [executor = (*machine)->environment().executor,
       done = std::move(done)](absl::StatusOr<ExecResult> result) mutable {
        Finish<ExecResult>(executor, std::move(done), std::move(result));
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
  runtime::ConnectToVm(
      machine->get(), guest_port, *limits,
      [executor = (*machine)->environment().executor,
       done = std::move(done)](absl::StatusOr<base::UniqueFd> fd) mutable {
        Finish<UniqueFd>(executor, std::move(done),
                         fd.ok()
                             ? absl::StatusOr<UniqueFd>(UniqueFd(fd->Release()))
                             : fd.status());
      });
}

}  // namespace catnap::async
