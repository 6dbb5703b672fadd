#include "runtime/vm_ports.h"

#include <utility>

#include "base/mutex.h"
#include "base/status.h"
#include "runtime/port_forward.h"
#include "runtime/relay_group.h"

namespace catnap::runtime {
namespace {

// For a connection without a deadline: the guest answers at once or never.
constexpr auto kLongestConnect = std::chrono::seconds(60);

}  // namespace

void ConnectToVm(Vm* vm, uint16_t port, const agent::CallLimits& limits,
                 ConnectDone done) {
  auto client = vm->ClientNow();
  const std::shared_ptr<RelayGroup> relays = vm->relays();
  if (!client.ok() || relays == nullptr) {
    std::move(done)(client.ok() ? vm->Explain(absl::UnavailableError(
                                      "the machine is not running"))
                                : client.status());
    return;
  }
  ConnectToGuest(
      relays.get(), *std::move(client), port,
      limits.deadline.value_or(std::chrono::steady_clock::now() +
                               kLongestConnect),
      [self = vm->shared_from_this(), stop = limits.stop,
       done = std::move(done)](absl::StatusOr<base::UniqueFd> fd) mutable {
        if (stop.stop_requested()) fd = absl::CancelledError("cancelled");
        if (!fd.ok()) fd = self->Explain(fd.status());
        std::move(done)(std::move(fd));
      });
}

// The listener, which the VM's end and the handle's both end.
struct ForwardHandle::Shared {
  base::Mutex mutex;
  std::unique_ptr<PortForward> forward ABSL_GUARDED_BY(mutex);

  void End() {
    std::unique_ptr<PortForward> ending;
    const base::MutexLock lock(&mutex);
    ending.swap(forward);
    // It waits for the loop, on which nobody takes this lock.
    ending.reset();
  }
};

absl::StatusOr<std::unique_ptr<ForwardHandle>> ForwardHandle::Create(
    std::shared_ptr<Vm> vm, const HostAddress& listen, uint16_t guest_port) {
  const std::shared_ptr<RelayGroup> relays = vm->relays();
  if (relays == nullptr) return vm->Refusal();
  PortForwardOptions options;
  options.loop = vm->environment().loop;
  options.traffic = relays->traffic();
  options.host = listen.host;
  options.port = listen.port;
  options.guest_port = guest_port;
  options.clients = [weak = std::weak_ptr<Vm>(vm)](ClientDone done) {
    const auto self = weak.lock();
    if (self == nullptr) return;
    auto use = std::make_shared<VmUse>(self, UseKind::kForwards);
    self->WhenAwake({}, [self, use = std::move(use), done = std::move(done)](
                            const absl::Status& awake) mutable {
      std::move(done)(
          awake.ok() ? self->ClientNow()
                     : absl::StatusOr<std::shared_ptr<agent::Client>>(awake));
    });
  };
  options.log = base::Logger({.sink = vm->environment().log,
                              .executor = vm->environment().executor,
                              .vm_id = vm->id(),
                              .source = "forward"});
  CATNAP_ASSIGN_OR_RETURN(auto forward,
                          PortForward::Create(std::move(options)));
  HostAddress address{.host = forward->host(), .port = forward->port()};
  auto shared = std::make_shared<Shared>();
  {
    const base::MutexLock lock(&shared->mutex);
    shared->forward = std::move(forward);
  }
  return std::unique_ptr<ForwardHandle>(
      new ForwardHandle(std::move(vm), std::move(shared), std::move(address)));
}

ForwardHandle::ForwardHandle(std::shared_ptr<Vm> vm,
                             std::shared_ptr<Shared> shared,
                             HostAddress address)
    : vm_(std::move(vm)),
      shared_(std::move(shared)),
      address_(std::move(address)),
      hook_(vm_->AddEndHook([shared = shared_] { shared->End(); })) {}

ForwardHandle::~ForwardHandle() {
  vm_->RemoveEndHook(hook_);
  shared_->End();
}

}  // namespace catnap::runtime
