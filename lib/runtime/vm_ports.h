#ifndef CATNAP_LIB_RUNTIME_VM_PORTS_H_
#define CATNAP_LIB_RUNTIME_VM_PORTS_H_

#include <memory>

#include "absl/status/statusor.h"
#include "agent/client.h"
#include "catnap/network.h"
#include "runtime/connect_to_guest.h"
#include "runtime/vm.h"

namespace catnap::runtime {

// A connection to `port` of the VM's loopback; wakes nobody. Does not block;
// `done` is called once, on the loop's thread or before this returns. The stop
// token of `limits` only keeps the result from being used.
void ConnectToVm(Vm* vm, uint16_t port, const agent::CallLimits& limits,
                 ConnectDone done);

// A forward that a user holds: it ends with the handle or with the VM.
class ForwardHandle {
 public:
  // A VM that sleeps is woken by the first connection, if it may be.
  // Errors: as PortForward::Create(); the VM has ended.
  static absl::StatusOr<std::unique_ptr<ForwardHandle>> Create(
      std::shared_ptr<Vm> vm, const HostAddress& listen, uint16_t guest_port);
  ~ForwardHandle();
  ForwardHandle(const ForwardHandle&) = delete;
  ForwardHandle& operator=(const ForwardHandle&) = delete;

  const HostAddress& address() const { return address_; }

 private:
  struct Shared;
  ForwardHandle(std::shared_ptr<Vm> vm, std::shared_ptr<Shared> shared,
                HostAddress address);

  const std::shared_ptr<Vm> vm_;
  const std::shared_ptr<Shared> shared_;
  const HostAddress address_;
  const Vm::EndHook hook_;
};

}  // namespace catnap::runtime

#endif  // CATNAP_LIB_RUNTIME_VM_PORTS_H_
