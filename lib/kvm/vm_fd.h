#ifndef CATNAP_LIB_KVM_VM_FD_H_
#define CATNAP_LIB_KVM_VM_FD_H_

#include <linux/kvm.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvm/system.h"
#include "kvm/vcpu_fd.h"

namespace catnap::kvm {

// A KVM virtual machine. Thread-safe as far as the kernel is: all calls may
// overlap. In a forked child every call fails with EIO.
class VmFd {
 public:
  static absl::StatusOr<VmFd> Create(std::shared_ptr<const System> system);

  int fd() const { return fd_.get(); }
  const System& system() const { return *system_; }

  // Pages that KVM on Intel needs for real-mode emulation: three at `tss`, one
  // at `identity_map`, outside every slot. Before any vCPU.
  absl::Status SetRealModePages(uint64_t tss, uint64_t identity_map);
  // LAPICs, IOAPIC and a PIC that no route leads to. Before any vCPU.
  absl::Status CreateIrqchip();
  // GSI n is IOAPIC pin n for n in [0, pins) and nothing else: with KVM's
  // default table GSI 0-15 reach the PIC too, which a hardware-reduced guest
  // never masks.
  absl::Status RouteToIoApicOnly(uint32_t pins);

  // Makes [gpa, gpa + size) the host range at `host`. size 0 removes the slot.
  absl::Status SetMemorySlot(uint32_t slot, uint64_t gpa, uint64_t size,
                             void* host, bool read_only);

  // A guest write of `length` bytes (1, 2, 4, 8; 0: any length) to `gpa`
  // signals `event_fd` instead of leaving the guest; with `match`, only a
  // write of that value.
  absl::Status AddIoEvent(uint64_t gpa, uint32_t length, int event_fd,
                          std::optional<uint64_t> match = std::nullopt);
  // Each signal of `event_fd` is an edge on `gsi`.
  absl::Status AddIrqFd(int event_fd, uint32_t gsi);
  absl::Status SetIrqLine(uint32_t gsi, bool asserted) const;

  // `chip` is KVM_IRQCHIP_....
  absl::StatusOr<kvm_irqchip> GetIrqchip(uint32_t chip) const;
  absl::Status SetIrqchip(const kvm_irqchip& chip);
  // The guest's kvm-clock, in nanoseconds. It runs on from what is set.
  absl::StatusOr<uint64_t> GetClock() const;
  absl::Status SetClock(uint64_t nanoseconds);

  absl::StatusOr<VcpuFd> CreateVcpu(uint32_t index);

 private:
  VmFd(std::shared_ptr<const System> system, base::UniqueFd fd)
      : system_(std::move(system)), fd_(std::move(fd)) {}

  std::shared_ptr<const System> system_;
  base::UniqueFd fd_;
};

}  // namespace catnap::kvm

#endif  // CATNAP_LIB_KVM_VM_FD_H_
