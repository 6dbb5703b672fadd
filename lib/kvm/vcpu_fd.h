#ifndef CATNAP_LIB_KVM_VCPU_FD_H_
#define CATNAP_LIB_KVM_VCPU_FD_H_

#include <linux/kvm.h>

#include <cstdint>
#include <span>
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
  // At once, and in place of what SetRegisters() left for the next Run().
  absl::Status SetRegs(const kvm_regs& regs);
  absl::Status SetSregs(const kvm_sregs& sregs);
  // Brings to KVM what SetRegisters() left for the next Run(), so that the
  // other calls see it.
  absl::Status FlushRegisters();
  absl::Status SetCpuid(const std::vector<kvm_cpuid_entry2>& entries);
  // As KVM has it: bits that follow the guest's registers are up to date.
  absl::StatusOr<std::vector<kvm_cpuid_entry2>> GetCpuid() const;
  // Errors: FAILED_PRECONDITION, naming the first MSR that KVM refused.
  absl::Status SetMsrs(const std::vector<kvm_msr_entry>& msrs);
  absl::StatusOr<std::vector<kvm_msr_entry>> GetMsrs(
      const std::vector<uint32_t>& indices) const;
  // Those of `indices` that KVM has for this vCPU.
  absl::StatusOr<std::vector<kvm_msr_entry>> GetKnownMsrs(
      std::vector<uint32_t> indices) const;
  absl::StatusOr<kvm_lapic_state> GetLapic() const;
  absl::Status SetLapic(const kvm_lapic_state& lapic);

  // The XSAVE area in its whole size, System::xsave_bytes().
  absl::StatusOr<std::vector<uint8_t>> GetXsave() const;
  // One that is shorter stands for one with zeroes behind it. Errors:
  // INVALID_ARGUMENT, too long, or not an area that this CPU can load.
  absl::Status SetXsave(std::span<const uint8_t> area);
  absl::StatusOr<kvm_xcrs> GetXcrs() const;
  absl::Status SetXcrs(const kvm_xcrs& xcrs);
  absl::StatusOr<kvm_vcpu_events> GetEvents() const;
  absl::Status SetEvents(const kvm_vcpu_events& events);
  absl::StatusOr<kvm_debugregs> GetDebugRegs() const;
  absl::Status SetDebugRegs(const kvm_debugregs& registers);
  // Takes in an INIT or SIPI that waits, which changes registers.
  absl::StatusOr<uint32_t> GetMpState() const;
  absl::Status SetMpState(uint32_t state);

  // How fast the guest's TSC runs; 0 when KVM does not know.
  uint32_t TscKhz() const;
  absl::Status SetTscKhz(uint32_t khz);
  // What the guest's TSC is ahead of the host's (scaled to the guest's rate).
  // Errors: UNIMPLEMENTED, before Linux 5.16.
  absl::StatusOr<uint64_t> GetTscOffset() const;
  absl::Status SetTscOffset(uint64_t offset);
  // Tells a guest with kvm-clock that it stood still, so that its watchdogs do
  // not count the time. Nothing happens to one without.
  void ClockPaused() const;

  // A counter of the kernel's by its name, such as "exits" (KVM_GET_STATS_FD).
  // Errors: NOT_FOUND, no such counter; UNIMPLEMENTED, a kernel before 5.14.
  absl::StatusOr<uint64_t> ReadStat(std::string_view name) const;
  // Inside KVM_RUN every signal but `kick_signal` is blocked.
  absl::Status UnblockOnlyInRun(int kick_signal);

 private:
  VcpuFd(base::UniqueFd fd, base::Mapping run, const System& system)
      : fd_(std::move(fd)),
        run_(std::move(run)),
        sync_regs_(system.has_sync_regs()),
        xsave_bytes_(system.xsave_bytes()) {}

  kvm_run& run() { return *reinterpret_cast<kvm_run*>(run_.data()); }
  VcpuExit DecodeExit();
  VcpuExit DecodePort();

  base::UniqueFd fd_;
  base::Mapping run_;
  bool sync_regs_;
  size_t xsave_bytes_;
};

}  // namespace catnap::kvm

#endif  // CATNAP_LIB_KVM_VCPU_FD_H_
