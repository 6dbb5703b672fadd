#ifndef CATNAP_LIB_KVM_VCPU_FD_H_
#define CATNAP_LIB_KVM_VCPU_FD_H_

#include <linux/kvm.h>

#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mapping.h"
#include "base/unique_fd.h"
#include "kvm/system.h"
#include "kvm/vcpu_exit.h"

namespace catnap::kvm {

// One virtual CPU and its run page.
//
// Thread safety: Run() belongs to one thread. The state calls may come from
// any thread, but not while Run() runs: the kernel would make them wait.
class VcpuFd {
 public:
  static absl::StatusOr<VcpuFd> Adopt(base::UniqueFd fd, const System& system);

  int fd() const { return fd_.get(); }

  // KVM_RUN: runs guest code until something is for the VMM to do. With
  // `immediate`, only completes a port or MMIO access that the last exit left
  // pending and comes back with kInterrupted, without running guest code.
  // What the result points to is valid until the next Run().
  VcpuExit Run(bool immediate = false);

  // Takes effect at the next Run(), not before: where the kernel can, the
  // registers travel in the run page, which saves two calls.
  absl::Status SetRegisters(const kvm_regs& regs, const kvm_sregs& sregs);
  absl::StatusOr<kvm_regs> GetRegs() const;
  absl::StatusOr<kvm_sregs> GetSregs() const;
  absl::Status SetCpuid(const std::vector<kvm_cpuid_entry2>& entries);
  // Errors: FAILED_PRECONDITION, naming the first MSR that KVM refused.
  absl::Status SetMsrs(const std::vector<kvm_msr_entry>& msrs);
  absl::StatusOr<std::vector<kvm_msr_entry>> GetMsrs(
      const std::vector<uint32_t>& indices) const;
  absl::StatusOr<kvm_lapic_state> GetLapic() const;
  absl::Status SetLapic(const kvm_lapic_state& lapic);
  // A counter of the kernel's by its name, such as "exits" (KVM_GET_STATS_FD);
  // at any time, from any thread.
  // Errors: NOT_FOUND, no such counter; UNIMPLEMENTED, a kernel before 5.14.
  absl::StatusOr<uint64_t> ReadStat(std::string_view name) const;
  // Inside KVM_RUN every signal but `kick_signal` is blocked.
  absl::Status UnblockOnlyInRun(int kick_signal);

 private:
  VcpuFd(base::UniqueFd fd, base::Mapping run, bool sync_regs)
      : fd_(std::move(fd)), run_(std::move(run)), sync_regs_(sync_regs) {}

  kvm_run& run() { return *reinterpret_cast<kvm_run*>(run_.data()); }
  VcpuExit DecodeExit();
  VcpuExit DecodePort();

  base::UniqueFd fd_;
  base::Mapping run_;
  bool sync_regs_;
};

}  // namespace catnap::kvm

#endif  // CATNAP_LIB_KVM_VCPU_FD_H_
