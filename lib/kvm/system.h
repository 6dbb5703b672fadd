#ifndef CATNAP_LIB_KVM_SYSTEM_H_
#define CATNAP_LIB_KVM_SYSTEM_H_

#include <linux/kvm.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/unique_fd.h"

namespace catnap::kvm {

// /dev/kvm, opened once and shared by all VMs of a Host, with the answers that
// do not change. Immutable after Open(); thread-safe.
class System {
 public:
  // Opens the device and checks that KVM has what the library needs.
  // Errors, all FAILED_PRECONDITION unless limits were hit:
  //   kNoKvmDevice       no device
  //   kNoKvmPermission   not readable and writable for this user
  //   kKvmCannotRunLinux a capability is missing (named)
  static absl::StatusOr<std::shared_ptr<const System>> Open(
      const std::string& path = "/dev/kvm");

  int fd() const { return fd_.get(); }
  // The value of a KVM_CAP_ number, 0 when the kernel does not have it.
  int CheckExtension(uint32_t capability) const;
  // Bytes of the shared page run of a vCPU.
  size_t vcpu_mmap_bytes() const { return vcpu_mmap_bytes_; }
  // What KVM can show a guest on this CPU.
  const std::vector<kvm_cpuid_entry2>& supported_cpuid() const {
    return supported_cpuid_;
  }
  bool has_tsc_deadline() const { return has_tsc_deadline_; }
  // Registers can be handed over in the run page, without ioctls of their own.
  bool has_sync_regs() const { return has_sync_regs_; }

  bool has_tsc_scaling() const { return has_tsc_scaling_; }
  // Of a vCPU's XSAVE area; 0 on a CPU without XSAVE.
  size_t xsave_bytes() const { return xsave_bytes_; }
  // The MSRs that KVM takes for a guest's state, as KVM lists them. Some may
  // not exist for a guest.
  const std::vector<uint32_t>& msr_indices() const { return msr_indices_; }

  absl::StatusOr<base::UniqueFd> CreateVm() const;

 private:
  System() = default;

  base::UniqueFd fd_;
  size_t vcpu_mmap_bytes_ = 0;
  std::vector<kvm_cpuid_entry2> supported_cpuid_;
  bool has_tsc_deadline_ = false;
  bool has_sync_regs_ = false;
  bool has_tsc_scaling_ = false;
  size_t xsave_bytes_ = 0;
  std::vector<uint32_t> msr_indices_;
};

}  // namespace catnap::kvm

#endif  // CATNAP_LIB_KVM_SYSTEM_H_
