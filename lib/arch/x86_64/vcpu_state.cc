#include "arch/x86_64/vcpu_state.h"

#include <linux/kvm.h>

#include <cstdint>
#include <vector>

#include "base/byte_order.h"
#include "base/status.h"

namespace catnap::arch {
namespace {

constexpr uint32_t kMsrMtrrDefType = 0x2ff;
constexpr uint64_t kMtrrEnabled = 1u << 11;
constexpr uint64_t kMtrrWriteBack = 6;
constexpr uint32_t kMsrMiscEnable = 0x1a0;
constexpr uint64_t kMiscFastString = 1u << 0;

// LAPIC registers and delivery modes: Intel SDM vol. 3A, 11.5.1.
constexpr size_t kLapicLint0 = 0x350;
constexpr size_t kLapicLint1 = 0x360;
constexpr uint32_t kLvtModeMask = 0x700;
constexpr uint32_t kLvtMasked = 1u << 16;
constexpr uint32_t kLvtNmi = 0x400;
constexpr uint32_t kLvtExtInt = 0x700;

constexpr uint64_t kCr0 = 0x8005'0033;  // PE MP ET NE WP AM PG
constexpr uint64_t kCr4Pae = 1u << 5;
constexpr uint64_t kEferLme = 1u << 8;
constexpr uint64_t kEferLma = 1u << 10;
constexpr uint64_t kRflagsReserved = 1u << 1;

// Segment types: Intel SDM vol. 3A, 3.4.5.1.
constexpr uint8_t kCodeExecuteReadAccessed = 0xb;
constexpr uint8_t kDataReadWriteAccessed = 0x3;
constexpr uint8_t kBusyTss = 0xb;

void SetLvt(kvm_lapic_state& lapic, size_t offset, uint32_t mode) {
  const auto value = base::LoadLe<uint32_t>(&lapic.regs[offset]);
  base::StoreLe<uint32_t>(&lapic.regs[offset],
                          (value & ~(kLvtModeMask | kLvtMasked)) | mode);
}

kvm_segment FlatSegment(uint16_t selector, uint8_t type) {
  kvm_segment segment{};
  segment.limit = 0xffff'ffff;
  segment.selector = selector;
  segment.type = type;
  segment.present = 1;
  segment.s = 1;
  segment.g = 1;
  return segment;
}

}  // namespace

absl::Status PrepareVcpu(kvm::VcpuFd& vcpu) {
  CATNAP_RETURN_IF_ERROR(vcpu.SetMsrs(
      {{.index = kMsrMtrrDefType,
        .reserved = 0,
        .data = kMtrrEnabled | kMtrrWriteBack},
       {.index = kMsrMiscEnable, .reserved = 0, .data = kMiscFastString}}));
  CATNAP_ASSIGN_OR_RETURN(kvm_lapic_state lapic, vcpu.GetLapic());
  SetLvt(lapic, kLapicLint0, kLvtExtInt);
  SetLvt(lapic, kLapicLint1, kLvtNmi);
  return vcpu.SetLapic(lapic);
}

absl::Status SetInitialState(kvm::VcpuFd& vcpu, const InitialState& state) {
  // From the vCPU's own, so that what is not set here (APIC base, task
  // register limits) stays as KVM made it.
  CATNAP_ASSIGN_OR_RETURN(kvm_sregs sregs, vcpu.GetSregs());
  kvm_segment code = FlatSegment(state.code_selector, kCodeExecuteReadAccessed);
  code.l = 1;
  kvm_segment data = FlatSegment(state.data_selector, kDataReadWriteAccessed);
  data.db = 1;
  sregs.cs = code;
  sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
  sregs.tr.type = kBusyTss;
  sregs.tr.present = 1;
  sregs.tr.s = 0;
  sregs.gdt.base = state.gdt_base;
  sregs.gdt.limit = state.gdt_limit;
  sregs.idt.base = 0;
  sregs.idt.limit = 0;
  sregs.cr0 = kCr0;
  sregs.cr3 = state.cr3;
  sregs.cr4 = kCr4Pae;
  sregs.efer = kEferLme | kEferLma;

  kvm_regs regs{};
  regs.rip = state.rip;
  regs.rsi = state.rsi;
  regs.rsp = state.rsp;
  regs.rflags = kRflagsReserved;  // Interrupts off.
  return vcpu.SetRegisters(regs, sregs);
}

}  // namespace catnap::arch
