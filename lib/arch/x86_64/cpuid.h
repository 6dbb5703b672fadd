#ifndef CATNAP_LIB_ARCH_X86_64_CPUID_H_
#define CATNAP_LIB_ARCH_X86_64_CPUID_H_

#include <linux/kvm.h>

#include <vector>

namespace catnap::arch {

// The least CPU that a guest may assume. A snapshot can be restored on every
// host of the same vendor that has what its baseline shows.
enum class CpuBaseline {
  kX86_64V2,  // SSE4.2, POPCNT, CX16; no XSAVE, no AVX.
  kX86_64V3,  // and AVX2, BMI, FMA, MOVBE, LZCNT, XSAVE.
  kHost,      // All that KVM offers on this host but what no guest gets.
};

struct CpuidConfig {
  CpuBaseline baseline = CpuBaseline::kX86_64V2;
  int vcpus = 1;  // 1-32; all cores of one package.
  // KVM emulates the LAPIC timer's TSC-deadline mode.
  bool tsc_deadline = true;
};

// The CPUID leaves of vCPU `index` (its APIC id too): what `supported` (from
// KVM_GET_SUPPORTED_CPUID) and the baseline both have, plus what a VMM must
// add itself: hypervisor bit, TSC deadline, topology, sizes of leaf 0xD.
//
// No baseline shows VMX, SVM, AMX, SGX, the PMU, processor trace, MPX, or
// KVM's asynchronous page faults. Bits that guests need against speculation
// attacks pass through wherever the host has them.
//
// Sources: Intel SDM vol. 2A CPUID; AMD APM vol. 3 appendix E; kernel
// Documentation/virt/kvm/x86/cpuid.rst; x86-64 psABI for the levels.
std::vector<kvm_cpuid_entry2> BuildCpuid(
    const std::vector<kvm_cpuid_entry2>& supported, const CpuidConfig& config,
    int index);

}  // namespace catnap::arch

#endif  // CATNAP_LIB_ARCH_X86_64_CPUID_H_
