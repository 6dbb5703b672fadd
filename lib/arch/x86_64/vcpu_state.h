#ifndef CATNAP_LIB_ARCH_X86_64_VCPU_STATE_H_
#define CATNAP_LIB_ARCH_X86_64_VCPU_STATE_H_

#include "absl/status/status.h"
#include "arch/x86_64/initial_state.h"
#include "kvm/vcpu_fd.h"

namespace catnap::arch {

// What every vCPU needs before it runs for the first time, beyond what KVM
// gives a fresh one: memory type write-back, fast string operations, LAPIC
// inputs wired as firmware leaves them (LINT0 external, LINT1 NMI). Application
// processors then wait for the guest's INIT and SIPI.
absl::Status PrepareVcpu(kvm::VcpuFd& vcpu);

// Lets the first vCPU start at `state`.
absl::Status SetInitialState(kvm::VcpuFd& vcpu, const InitialState& state);

}  // namespace catnap::arch

#endif  // CATNAP_LIB_ARCH_X86_64_VCPU_STATE_H_
