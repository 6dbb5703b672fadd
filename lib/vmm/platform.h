#ifndef CATNAP_LIB_VMM_PLATFORM_H_
#define CATNAP_LIB_VMM_PLATFORM_H_

#include <atomic>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "device/device.h"
#include "kvm/vm_fd.h"
#include "state/decoder.h"
#include "state/encoder.h"
#include "vmm/vcpu_thread.h"

namespace catnap::vmm {

// An interrupt line by KVM_IRQ_LINE, which reaches the IOAPIC before it
// returns; KVM leaves an irqfd on an IOAPIC pin to a kernel worker instead.
class KvmIrqLine final : public device::IrqLine {
 public:
  // `vm` is borrowed and must outlive the line.
  KvmIrqLine(const kvm::VmFd* vm, uint32_t gsi) : vm_(vm), gsi_(gsi) {}
  void Set(bool asserted) override;

 private:
  const kvm::VmFd* const vm_;
  const uint32_t gsi_;
};

// SLEEP_CONTROL, SLEEP_STATUS and RESET_REG of the hardware-reduced FADT, at
// arch::kSleepControlPort (ACPI 6.4, 4.8.3.6 and 4.8.3.7).
class PowerRegisters final : public device::IoHandler {
 public:
  static constexpr uint64_t kPorts = 3;

  // `end` is borrowed and must outlive this.
  explicit PowerRegisters(VcpuThread::EndSink* end) : end_(end) {}
  void Read(uint64_t offset, std::span<uint8_t> data) override;
  void Write(uint64_t offset, std::span<const uint8_t> data) override;

 private:
  VcpuThread::EndSink* const end_;
};

// What the guest's generic event device asks after its interrupt: one 32-bit
// word of pending events at arch::kEventPort, cleared by reading.
class EventRegister final : public device::IoHandler {
 public:
  static constexpr uint64_t kPorts = 4;

  // `irq` is borrowed and must outlive this.
  explicit EventRegister(device::IrqLine* irq) : irq_(irq) {}
  // Adds `events` (arch::kEvent...) and interrupts the guest. Thread-safe.
  void Raise(uint32_t events);
  // Interrupts the guest again if events are pending.
  void RaiseAgain();
  void SaveState(state::StateEncoder& out) const;
  // Before the guest runs, without an interrupt. Errors: DATA_LOSS.
  absl::Status LoadState(state::StateDecoder in);
  void Read(uint64_t offset, std::span<uint8_t> data) override;
  void Write(uint64_t offset, std::span<const uint8_t> data) override;

 private:
  device::IrqLine* const irq_;
  std::atomic<uint32_t> pending_{0};
};

}  // namespace catnap::vmm

#endif  // CATNAP_LIB_VMM_PLATFORM_H_
