#include "kvm/vm_fd.h"

#include <sys/ioctl.h>

#include "base/status.h"
#include "kvm/fam.h"

namespace catnap::kvm {

absl::StatusOr<VmFd> VmFd::Create(std::shared_ptr<const System> system) {
  CATNAP_ASSIGN_OR_RETURN(base::UniqueFd fd, system->CreateVm());
  return VmFd(std::move(system), std::move(fd));
}

absl::Status VmFd::SetRealModePages(uint64_t tss, uint64_t identity_map) {
  // The identity map first: the kernel takes its address only before the TSS
  // pages bring their slots into being. KVM on AMD accepts and ignores both.
  if (::ioctl(fd_.get(), KVM_SET_IDENTITY_MAP_ADDR, &identity_map) != 0) {
    return ErrnoError(errno, "KVM_SET_IDENTITY_MAP_ADDR {:#x}", identity_map);
  }
  if (::ioctl(fd_.get(), KVM_SET_TSS_ADDR, tss) != 0) {
    return ErrnoError(errno, "KVM_SET_TSS_ADDR {:#x}", tss);
  }
  return absl::OkStatus();
}

absl::Status VmFd::CreateIrqchip() {
  if (::ioctl(fd_.get(), KVM_CREATE_IRQCHIP, 0) != 0) {
    return ErrnoError(errno, "KVM_CREATE_IRQCHIP");
  }
  return absl::OkStatus();
}

absl::Status VmFd::RouteToIoApicOnly(uint32_t pins) {
  std::vector<kvm_irq_routing_entry> routes(pins);
  for (uint32_t pin = 0; pin < pins; ++pin) {
    routes[pin].gsi = pin;
    routes[pin].type = KVM_IRQ_ROUTING_IRQCHIP;
    routes[pin].u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC;
    routes[pin].u.irqchip.pin = pin;
  }
  RoutingBuffer buffer(routes);
  if (::ioctl(fd_.get(), kSetGsiRouting, buffer.data()) != 0) {
    return ErrnoError(errno, "KVM_SET_GSI_ROUTING with {} routes", pins);
  }
  return absl::OkStatus();
}

absl::Status VmFd::SetMemorySlot(uint32_t slot, uint64_t gpa, uint64_t size,
                                 void* host, bool read_only) {
  kvm_userspace_memory_region region{};
  region.slot = slot;
  region.flags = read_only ? KVM_MEM_READONLY : 0;
  region.guest_phys_addr = gpa;
  region.memory_size = size;
  region.userspace_addr = reinterpret_cast<uintptr_t>(host);
  if (::ioctl(fd_.get(), KVM_SET_USER_MEMORY_REGION, &region) != 0) {
    return ErrnoError(errno,
                      "KVM_SET_USER_MEMORY_REGION slot {} gpa {:#x} of {} "
                      "bytes",
                      slot, gpa, size);
  }
  return absl::OkStatus();
}

absl::Status VmFd::AddIoEvent(uint64_t gpa, uint32_t length, int event_fd,
                              std::optional<uint64_t> match) {
  kvm_ioeventfd request{};
  request.addr = gpa;
  request.len = length;
  request.fd = event_fd;
  if (match.has_value()) {
    request.datamatch = *match;
    request.flags = KVM_IOEVENTFD_FLAG_DATAMATCH;
  }
  if (::ioctl(fd_.get(), KVM_IOEVENTFD, &request) != 0) {
    return ErrnoError(errno, "KVM_IOEVENTFD at gpa {:#x} of {} bytes", gpa,
                      length);
  }
  return absl::OkStatus();
}

absl::Status VmFd::AddIrqFd(int event_fd, uint32_t gsi) {
  kvm_irqfd request{};
  request.fd = static_cast<uint32_t>(event_fd);
  request.gsi = gsi;
  if (::ioctl(fd_.get(), KVM_IRQFD, &request) != 0) {
    return ErrnoError(errno, "KVM_IRQFD on gsi {}", gsi);
  }
  return absl::OkStatus();
}

absl::Status VmFd::SetIrqLine(uint32_t gsi, bool asserted) const {
  kvm_irq_level level{};
  level.irq = gsi;
  level.level = asserted ? 1 : 0;
  if (::ioctl(fd_.get(), KVM_IRQ_LINE, &level) != 0) {
    return ErrnoError(errno, "KVM_IRQ_LINE gsi {} to {}", gsi, level.level);
  }
  return absl::OkStatus();
}

absl::StatusOr<kvm_irqchip> VmFd::GetIrqchip(uint32_t chip) const {
  kvm_irqchip state{};
  state.chip_id = chip;
  if (::ioctl(fd_.get(), KVM_GET_IRQCHIP, &state) != 0) {
    return ErrnoError(errno, "KVM_GET_IRQCHIP {}", chip);
  }
  return state;
}

absl::Status VmFd::SetIrqchip(const kvm_irqchip& chip) {
  kvm_irqchip state = chip;  // The kernel's number for it says "write".
  if (::ioctl(fd_.get(), KVM_SET_IRQCHIP, &state) != 0) {
    return ErrnoError(errno, "KVM_SET_IRQCHIP {}", chip.chip_id);
  }
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> VmFd::GetClock() const {
  kvm_clock_data clock{};
  if (::ioctl(fd_.get(), KVM_GET_CLOCK, &clock) != 0) {
    return ErrnoError(errno, "KVM_GET_CLOCK");
  }
  return uint64_t{clock.clock};
}

absl::Status VmFd::SetClock(uint64_t nanoseconds) {
  // Without KVM_CLOCK_REALTIME, which would add the time since the save.
  kvm_clock_data clock{};
  clock.clock = nanoseconds;
  if (::ioctl(fd_.get(), KVM_SET_CLOCK, &clock) != 0) {
    return ErrnoError(errno, "KVM_SET_CLOCK to {} ns", nanoseconds);
  }
  return absl::OkStatus();
}

absl::StatusOr<VcpuFd> VmFd::CreateVcpu(uint32_t index) {
  base::UniqueFd fd(
      ::ioctl(fd_.get(), KVM_CREATE_VCPU, static_cast<uintptr_t>(index)));
  if (!fd.valid()) return ErrnoError(errno, "KVM_CREATE_VCPU {}", index);
  return VcpuFd::Adopt(std::move(fd), *system_);
}

}  // namespace catnap::kvm
