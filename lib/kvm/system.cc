#include "kvm/system.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>

#include "base/status.h"
#include "kvm/fam.h"

namespace catnap::kvm {
namespace {

// More than any CPU reports; the kernel's own limit is 256.
constexpr size_t kMaxCpuidEntries = 256;

// The kernel has about 500, with those of Hyper-V and the PMU.
constexpr size_t kMaxMsrs = 4096;
// With AMX, which no guest gets, it is 11 KiB.
constexpr size_t kMaxXsaveBytes = 64 << 10;

struct Requirement {
  uint32_t capability;
  const char* name;
};
constexpr Requirement kRequired[] = {
    {KVM_CAP_IRQCHIP, "KVM_CAP_IRQCHIP"},
    {KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY"},
    {KVM_CAP_EXT_CPUID, "KVM_CAP_EXT_CPUID"},
    {KVM_CAP_IRQ_ROUTING, "KVM_CAP_IRQ_ROUTING"},
    {KVM_CAP_IRQFD, "KVM_CAP_IRQFD"},
    {KVM_CAP_IOEVENTFD, "KVM_CAP_IOEVENTFD"},
    {KVM_CAP_READONLY_MEM, "KVM_CAP_READONLY_MEM"},
    {KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT"},
    {KVM_CAP_MP_STATE, "KVM_CAP_MP_STATE"},
    {KVM_CAP_VCPU_EVENTS, "KVM_CAP_VCPU_EVENTS"},
    {KVM_CAP_DEBUGREGS, "KVM_CAP_DEBUGREGS"},
    {KVM_CAP_ADJUST_CLOCK, "KVM_CAP_ADJUST_CLOCK"},
    {KVM_CAP_GET_TSC_KHZ, "KVM_CAP_GET_TSC_KHZ"},
};

absl::Status OpenError(int error, const std::string& path) {
  switch (error) {
    case ENOENT:
    case ENODEV:
    case ENXIO:
      return WithReason(
          Error(absl::StatusCode::kFailedPrecondition,
                "{} does not exist or has no driver behind it ({}); load the "
                "module kvm_intel or kvm_amd, or switch on (nested) "
                "virtualisation for this machine",
                path, ErrnoText(error)),
          ErrorReason::kNoKvmDevice);
    case EACCES:
    case EPERM:
      return WithReason(
          Error(absl::StatusCode::kFailedPrecondition,
                "{} may not be opened by user id {} ({}); add the user to "
                "the group that owns the device (mostly kvm) and log in again",
                path, ::geteuid(), ErrnoText(error)),
          ErrorReason::kNoKvmPermission);
    default:
      return ErrnoError(error, "open {}", path);
  }
}

absl::Status MissingCapability(const std::string& what) {
  return WithReason(
      Error(absl::StatusCode::kFailedPrecondition,
            "KVM on this host lacks {}; a Linux kernel of version 5.10 or "
            "newer with kvm_intel or kvm_amd has it",
            what),
      ErrorReason::kKvmCannotRunLinux);
}

}  // namespace

int System::CheckExtension(uint32_t capability) const {
  const int value = ::ioctl(fd_.get(), KVM_CHECK_EXTENSION, capability);
  return value < 0 ? 0 : value;
}

absl::StatusOr<std::shared_ptr<const System>> System::Open(
    const std::string& path) {
  // new: the constructor is private.
  std::shared_ptr<System> system(new System());
  system->fd_ = base::UniqueFd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (!system->fd_.valid()) return OpenError(errno, path);

  const int version = ::ioctl(system->fd_.get(), KVM_GET_API_VERSION, 0);
  if (version != KVM_API_VERSION) {
    return MissingCapability(
        fmt::format("API version {} ({} answers {})", KVM_API_VERSION, path,
                    version < 0 ? ErrnoText(errno) : std::to_string(version)));
  }
  for (const Requirement& requirement : kRequired) {
    if (system->CheckExtension(requirement.capability) == 0) {
      return MissingCapability(requirement.name);
    }
  }
  system->has_tsc_deadline_ =
      system->CheckExtension(KVM_CAP_TSC_DEADLINE_TIMER) != 0;
  constexpr int kSyncNeeded = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS;
  system->has_sync_regs_ =
      (system->CheckExtension(KVM_CAP_SYNC_REGS) & kSyncNeeded) == kSyncNeeded;

  const int bytes = ::ioctl(system->fd_.get(), KVM_GET_VCPU_MMAP_SIZE, 0);
  if (bytes < static_cast<int>(sizeof(kvm_run))) {
    return MissingCapability("a run page of usable size");
  }
  system->vcpu_mmap_bytes_ = static_cast<size_t>(bytes);

  CpuidBuffer cpuid(kMaxCpuidEntries);
  if (::ioctl(system->fd_.get(), kGetSupportedCpuid, cpuid.data()) != 0) {
    return ErrnoError(errno, "KVM_GET_SUPPORTED_CPUID");
  }
  system->supported_cpuid_ = cpuid.Entries();
  MsrListBuffer msrs(kMaxMsrs);
  if (::ioctl(system->fd_.get(), kGetMsrIndexList, msrs.data()) != 0) {
    return ErrnoError(errno, "KVM_GET_MSR_INDEX_LIST");
  }
  system->msr_indices_ = msrs.Entries();
  system->has_tsc_scaling_ = system->CheckExtension(KVM_CAP_TSC_CONTROL) != 0;
  if (system->CheckExtension(KVM_CAP_XSAVE) != 0 &&
      system->CheckExtension(KVM_CAP_XCRS) != 0) {
    // Before Linux 5.17 no vCPU had more than this.
    const auto size =
        static_cast<size_t>(system->CheckExtension(KVM_CAP_XSAVE2));
    system->xsave_bytes_ = std::max(size, kMinXsaveBytes);
    if (size > kMaxXsaveBytes) {
      return MissingCapability(
          fmt::format("an XSAVE area of at most {} bytes (it has {})",
                      kMaxXsaveBytes, size));
    }
  }
  return std::shared_ptr<const System>(std::move(system));
}

absl::StatusOr<base::UniqueFd> System::CreateVm() const {
  // EINTR: the kernel may be waiting when a signal comes to this thread.
  int fd = -1;
  do {
    fd = ::ioctl(fd_.get(), KVM_CREATE_VM, 0);
  } while (fd < 0 && errno == EINTR);
  if (fd < 0) return ErrnoError(errno, "KVM_CREATE_VM");
  return base::UniqueFd(fd);
}

}  // namespace catnap::kvm
