#include <sys/ioctl.h>

#include <algorithm>
#include <cstring>

#include "base/status.h"
#include "kvm/fam.h"
#include "kvm/vcpu_fd.h"

// The state calls that a machine's launch from a saved one needs and its boot
// does not.

namespace catnap::kvm {
namespace {

// The kernel's own limit; see System.
constexpr size_t kMaxCpuidEntries = 256;

absl::Status Call(int fd, IoctlNumber number, void* argument,
                  const char* name) {
  if (::ioctl(fd, number, argument) != 0) return ErrnoError(errno, "{}", name);
  return absl::OkStatus();
}

template <typename T>
absl::StatusOr<T> Get(int fd, IoctlNumber number, const char* name) {
  T value{};
  CATNAP_RETURN_IF_ERROR(Call(fd, number, &value, name));
  return value;
}

template <typename T>
absl::Status Set(int fd, IoctlNumber number, T value, const char* name) {
  return Call(fd, number, &value, name);
}

}  // namespace

absl::Status VcpuFd::FlushRegisters() {
  const uint64_t waiting = run().kvm_dirty_regs;
  if ((waiting & KVM_SYNC_X86_SREGS) != 0) {
    CATNAP_RETURN_IF_ERROR(SetSregs(run().s.regs.sregs));
  }
  if ((waiting & KVM_SYNC_X86_REGS) != 0) {
    CATNAP_RETURN_IF_ERROR(SetRegs(run().s.regs.regs));
  }
  return absl::OkStatus();
}

absl::Status VcpuFd::SetRegs(const kvm_regs& regs) {
  CATNAP_RETURN_IF_ERROR(Set(fd_.get(), KVM_SET_REGS, regs, "KVM_SET_REGS"));
  run().kvm_dirty_regs &= ~uint64_t{KVM_SYNC_X86_REGS};
  return absl::OkStatus();
}

absl::Status VcpuFd::SetSregs(const kvm_sregs& sregs) {
  CATNAP_RETURN_IF_ERROR(Set(fd_.get(), KVM_SET_SREGS, sregs, "KVM_SET_SREGS"));
  run().kvm_dirty_regs &= ~uint64_t{KVM_SYNC_X86_SREGS};
  return absl::OkStatus();
}

absl::StatusOr<std::vector<kvm_cpuid_entry2>> VcpuFd::GetCpuid() const {
  CpuidBuffer buffer(kMaxCpuidEntries);
  CATNAP_RETURN_IF_ERROR(
      Call(fd_.get(), kGetCpuid2, buffer.data(), "KVM_GET_CPUID2"));
  return buffer.Entries();
}

absl::StatusOr<std::vector<kvm_msr_entry>> VcpuFd::GetKnownMsrs(
    std::vector<uint32_t> indices) const {
  std::vector<kvm_msr_entry> known;
  while (!indices.empty()) {
    std::vector<kvm_msr_entry> asked(indices.size());
    for (size_t i = 0; i < indices.size(); ++i) asked[i].index = indices[i];
    MsrBuffer buffer(asked);
    const int got = ::ioctl(fd_.get(), kGetMsrs, buffer.data());
    if (got < 0) return ErrnoError(errno, "KVM_GET_MSRS");
    const auto count = std::min(static_cast<size_t>(got), indices.size());
    const std::vector<kvm_msr_entry> answered = buffer.Entries();
    known.insert(known.end(), answered.begin(),
                 answered.begin() + static_cast<ptrdiff_t>(count));
    // KVM stops at the first that it does not have: go on behind it.
    const size_t skip = std::min(count + 1, indices.size());
    indices.erase(indices.begin(),
                  indices.begin() + static_cast<ptrdiff_t>(skip));
  }
  return known;
}

absl::StatusOr<std::vector<uint8_t>> VcpuFd::GetXsave() const {
  std::vector<uint8_t> area(xsave_bytes_);
  if (area.empty()) return area;
  CATNAP_RETURN_IF_ERROR(
      area.size() > kMinXsaveBytes
          ? Call(fd_.get(), kGetXsave2, area.data(), "KVM_GET_XSAVE2")
          : Call(fd_.get(), kGetXsave, area.data(), "KVM_GET_XSAVE"));
  return area;
}

absl::Status VcpuFd::SetXsave(std::span<const uint8_t> area) {
  if (area.size() > xsave_bytes_) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "an XSAVE area is {} bytes, must be at most {}", area.size(),
                 xsave_bytes_);
  }
  if (xsave_bytes_ == 0) return absl::OkStatus();
  std::vector<uint8_t> whole(xsave_bytes_);
  if (!area.empty()) std::memcpy(whole.data(), area.data(), area.size());
  return Call(fd_.get(), kSetXsave, whole.data(), "KVM_SET_XSAVE");
}

absl::StatusOr<kvm_xcrs> VcpuFd::GetXcrs() const {
  return Get<kvm_xcrs>(fd_.get(), KVM_GET_XCRS, "KVM_GET_XCRS");
}

absl::Status VcpuFd::SetXcrs(const kvm_xcrs& xcrs) {
  return Set(fd_.get(), KVM_SET_XCRS, xcrs, "KVM_SET_XCRS");
}

absl::StatusOr<kvm_vcpu_events> VcpuFd::GetEvents() const {
  return Get<kvm_vcpu_events>(fd_.get(), KVM_GET_VCPU_EVENTS,
                              "KVM_GET_VCPU_EVENTS");
}

absl::Status VcpuFd::SetEvents(const kvm_vcpu_events& events) {
  return Set(fd_.get(), KVM_SET_VCPU_EVENTS, events, "KVM_SET_VCPU_EVENTS");
}

absl::StatusOr<kvm_debugregs> VcpuFd::GetDebugRegs() const {
  return Get<kvm_debugregs>(fd_.get(), KVM_GET_DEBUGREGS, "KVM_GET_DEBUGREGS");
}

absl::Status VcpuFd::SetDebugRegs(const kvm_debugregs& registers) {
  return Set(fd_.get(), KVM_SET_DEBUGREGS, registers, "KVM_SET_DEBUGREGS");
}

absl::StatusOr<uint32_t> VcpuFd::GetMpState() const {
  CATNAP_ASSIGN_OR_RETURN(
      const kvm_mp_state state,
      Get<kvm_mp_state>(fd_.get(), KVM_GET_MP_STATE, "KVM_GET_MP_STATE"));
  return uint32_t{state.mp_state};
}

absl::Status VcpuFd::SetMpState(uint32_t state) {
  kvm_mp_state wanted{};
  wanted.mp_state = state;
  return Set(fd_.get(), KVM_SET_MP_STATE, wanted, "KVM_SET_MP_STATE");
}

uint32_t VcpuFd::TscKhz() const {
  const int khz = ::ioctl(fd_.get(), KVM_GET_TSC_KHZ, 0);
  return khz < 0 ? 0 : static_cast<uint32_t>(khz);
}

absl::Status VcpuFd::SetTscKhz(uint32_t khz) {
  if (::ioctl(fd_.get(), KVM_SET_TSC_KHZ, uintptr_t{khz}) != 0) {
    return ErrnoError(errno, "KVM_SET_TSC_KHZ to {}", khz);
  }
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> VcpuFd::GetTscOffset() const {
  uint64_t offset = 0;
  kvm_device_attr attribute{};
  attribute.group = KVM_VCPU_TSC_CTRL;
  attribute.attr = KVM_VCPU_TSC_OFFSET;
  attribute.addr = reinterpret_cast<uintptr_t>(&offset);
  if (::ioctl(fd_.get(), KVM_GET_DEVICE_ATTR, &attribute) != 0) {
    return Error(absl::StatusCode::kUnimplemented,
                 "KVM on this host has no KVM_VCPU_TSC_OFFSET: {}",
                 ErrnoText(errno));
  }
  return offset;
}

absl::Status VcpuFd::SetTscOffset(uint64_t offset) {
  kvm_device_attr attribute{};
  attribute.group = KVM_VCPU_TSC_CTRL;
  attribute.attr = KVM_VCPU_TSC_OFFSET;
  attribute.addr = reinterpret_cast<uintptr_t>(&offset);
  if (::ioctl(fd_.get(), KVM_SET_DEVICE_ATTR, &attribute) != 0) {
    return ErrnoError(errno, "KVM_VCPU_TSC_OFFSET to {:#x}", offset);
  }
  return absl::OkStatus();
}

void VcpuFd::ClockPaused() const { ::ioctl(fd_.get(), KVM_KVMCLOCK_CTRL, 0); }

}  // namespace catnap::kvm
