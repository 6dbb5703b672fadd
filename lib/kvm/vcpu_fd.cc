#include "kvm/vcpu_fd.h"

#include <sys/ioctl.h>

#include <array>
#include <cstring>

#include "base/status.h"
#include "kvm/fam.h"

namespace catnap::kvm {

absl::StatusOr<VcpuFd> VcpuFd::Adopt(base::UniqueFd fd, const System& system) {
  CATNAP_ASSIGN_OR_RETURN(
      base::Mapping run,
      base::Mapping::Shared(fd.get(), system.vcpu_mmap_bytes()));
  return VcpuFd(std::move(fd), std::move(run), system.has_sync_regs());
}

int VcpuFd::Run(bool immediate) {
  run().immediate_exit = immediate ? 1 : 0;
  return ::ioctl(fd_.get(), KVM_RUN, 0) == 0 ? 0 : errno;
}

absl::Status VcpuFd::SetRegisters(const kvm_regs& regs,
                                  const kvm_sregs& sregs) {
  if (sync_regs_) {
    run().s.regs.regs = regs;
    run().s.regs.sregs = sregs;
    run().kvm_dirty_regs = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS;
    return absl::OkStatus();
  }
  if (::ioctl(fd_.get(), KVM_SET_SREGS, &sregs) != 0) {
    return ErrnoError(errno, "KVM_SET_SREGS");
  }
  if (::ioctl(fd_.get(), KVM_SET_REGS, &regs) != 0) {
    return ErrnoError(errno, "KVM_SET_REGS");
  }
  return absl::OkStatus();
}

absl::StatusOr<kvm_regs> VcpuFd::GetRegs() const {
  kvm_regs regs{};
  if (::ioctl(fd_.get(), KVM_GET_REGS, &regs) != 0) {
    return ErrnoError(errno, "KVM_GET_REGS");
  }
  return regs;
}

absl::StatusOr<kvm_sregs> VcpuFd::GetSregs() const {
  kvm_sregs sregs{};
  if (::ioctl(fd_.get(), KVM_GET_SREGS, &sregs) != 0) {
    return ErrnoError(errno, "KVM_GET_SREGS");
  }
  return sregs;
}

absl::Status VcpuFd::SetCpuid(const std::vector<kvm_cpuid_entry2>& entries) {
  CpuidBuffer buffer(entries);
  if (::ioctl(fd_.get(), kSetCpuid2, buffer.data()) != 0) {
    return ErrnoError(errno, "KVM_SET_CPUID2 with {} entries", entries.size());
  }
  return absl::OkStatus();
}

absl::Status VcpuFd::SetMsrs(const std::vector<kvm_msr_entry>& msrs) {
  MsrBuffer buffer(msrs);
  const int set = ::ioctl(fd_.get(), kSetMsrs, buffer.data());
  if (set < 0) return ErrnoError(errno, "KVM_SET_MSRS");
  const auto count = static_cast<size_t>(set);
  if (count < msrs.size()) {
    return Error(absl::StatusCode::kFailedPrecondition,
                 "KVM on this host refuses value {:#x} for MSR {:#x}",
                 uint64_t{msrs[count].data}, uint32_t{msrs[count].index});
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<kvm_msr_entry>> VcpuFd::GetMsrs(
    const std::vector<uint32_t>& indices) const {
  std::vector<kvm_msr_entry> msrs(indices.size());
  for (size_t i = 0; i < indices.size(); ++i) msrs[i].index = indices[i];
  MsrBuffer buffer(msrs);
  const int got = ::ioctl(fd_.get(), kGetMsrs, buffer.data());
  if (got < 0) return ErrnoError(errno, "KVM_GET_MSRS");
  const auto count = static_cast<size_t>(got);
  if (count < msrs.size()) {
    return Error(absl::StatusCode::kFailedPrecondition,
                 "KVM on this host does not know MSR {:#x}", indices[count]);
  }
  return buffer.Entries();
}

absl::StatusOr<kvm_lapic_state> VcpuFd::GetLapic() const {
  kvm_lapic_state lapic{};
  if (::ioctl(fd_.get(), KVM_GET_LAPIC, &lapic) != 0) {
    return ErrnoError(errno, "KVM_GET_LAPIC");
  }
  return lapic;
}

absl::Status VcpuFd::SetLapic(const kvm_lapic_state& lapic) {
  if (::ioctl(fd_.get(), KVM_SET_LAPIC, &lapic) != 0) {
    return ErrnoError(errno, "KVM_SET_LAPIC");
  }
  return absl::OkStatus();
}

absl::Status VcpuFd::UnblockOnlyInRun(int kick_signal) {
  // The kernel's signal set is 8 bytes; glibc's sigset_t is larger.
  struct {
    uint32_t length = 8;
    std::array<uint8_t, 8> mask{};
  } request;
  const uint64_t blocked = ~(uint64_t{1} << (kick_signal - 1));
  std::memcpy(request.mask.data(), &blocked, sizeof(blocked));
  static_assert(sizeof(request) == kSignalHeaderBytes + 8);
  if (::ioctl(fd_.get(), kSetSignalMask, &request) != 0) {
    return ErrnoError(errno, "KVM_SET_SIGNAL_MASK");
  }
  return absl::OkStatus();
}

}  // namespace catnap::kvm
