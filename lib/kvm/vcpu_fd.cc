#include "kvm/vcpu_fd.h"

#include <sys/ioctl.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "base/checked.h"
#include "base/status.h"
#include "kvm/fam.h"

namespace catnap::kvm {

absl::StatusOr<VcpuFd> VcpuFd::Adopt(base::UniqueFd fd, const System& system) {
  CATNAP_ASSIGN_OR_RETURN(
      base::Mapping run,
      base::Mapping::Shared(fd.get(), system.vcpu_mmap_bytes()));
  return VcpuFd(std::move(fd), std::move(run), system);
}

VcpuExit VcpuFd::Run(bool immediate) {
  run().immediate_exit = immediate ? 1 : 0;
  if (::ioctl(fd_.get(), KVM_RUN, 0) == 0) return DecodeExit();
  const int error = errno;
  VcpuExit exit;
  switch (error) {
    case EINTR:
      exit.kind = ExitKind::kInterrupted;
      return exit;
    case EAGAIN:  // A processor that waited for SIPI was woken.
      exit.kind = ExitKind::kNothing;
      return exit;
    case EFAULT:
    case EHWPOISON:
      exit.kind = ExitKind::kMemoryFault;
      exit.detail = fmt::format("the host could not provide guest memory: {}",
                                ErrnoText(error));
      return exit;
    default:
      exit.kind = ExitKind::kHostError;
      exit.detail = fmt::format("KVM_RUN: {}", ErrnoText(error));
      return exit;
  }
}

VcpuExit VcpuFd::DecodePort() {
  const auto& io = run().io;
  VcpuExit exit;
  // The kernel fills these; the check keeps a bug there from reaching memory.
  const uint64_t bytes = uint64_t{io.size} * io.count;
  if (io.size == 0 ||
      !base::InRange<uint64_t>(io.data_offset, bytes, run_.size())) {
    exit.kind = ExitKind::kHostError;
    exit.detail =
        fmt::format("KVM_EXIT_IO of {} x {} bytes at {:#x}", uint32_t{io.count},
                    uint32_t{io.size}, uint64_t{io.data_offset});
    return exit;
  }
  exit.kind = ExitKind::kPort;
  exit.write = io.direction == KVM_EXIT_IO_OUT;
  exit.address = io.port;
  exit.access_bytes = io.size;
  exit.data = {run_.data() + io.data_offset, static_cast<size_t>(bytes)};
  return exit;
}

VcpuExit VcpuFd::DecodeExit() {
  VcpuExit exit;
  switch (run().exit_reason) {
    case KVM_EXIT_IO:
      return DecodePort();
    case KVM_EXIT_MMIO:
      exit.kind = ExitKind::kMmio;
      exit.write = run().mmio.is_write != 0;
      exit.address = run().mmio.phys_addr;
      exit.access_bytes = std::min<uint32_t>(run().mmio.len, 8);
      exit.data = {run().mmio.data, exit.access_bytes};
      return exit;
    case KVM_EXIT_INTR:
    case KVM_EXIT_IRQ_WINDOW_OPEN:
    case KVM_EXIT_SET_TPR:
      return exit;
    case KVM_EXIT_SHUTDOWN:
      exit.kind = ExitKind::kShutdown;
      exit.detail = "triple fault";
      return exit;
    case KVM_EXIT_SYSTEM_EVENT:
      exit.kind = ExitKind::kShutdown;
      exit.detail =
          fmt::format("KVM system event {}", uint32_t{run().system_event.type});
      return exit;
    case KVM_EXIT_FAIL_ENTRY:
      exit.kind = ExitKind::kEntryFailed;
      exit.detail = fmt::format(
          "the CPU refused to enter the guest, hardware reason {:#x}",
          uint64_t{run().fail_entry.hardware_entry_failure_reason});
      return exit;
    case KVM_EXIT_INTERNAL_ERROR:
      exit.kind = ExitKind::kInternalError;
      exit.detail = fmt::format(
          "KVM internal error {}{}", uint32_t{run().internal.suberror},
          run().internal.suberror == KVM_INTERNAL_ERROR_EMULATION
              ? " (an instruction could not be emulated)"
              : "");
      return exit;
    default:
      exit.kind = ExitKind::kHostError;
      exit.detail =
          fmt::format("unexpected KVM exit {}", uint32_t{run().exit_reason});
      return exit;
  }
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
