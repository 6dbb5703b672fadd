#include "arch/x86_64/cpuid.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <optional>

namespace catnap::arch {
namespace {

constexpr uint32_t Bit(int n) { return uint32_t{1} << n; }

template <typename... N>
constexpr uint32_t Bits(N... n) {
  return (Bit(n) | ... | 0u);
}

// Bits of one leaf that a guest of a baseline may see.
struct LeafMask {
  uint32_t function = 0;
  uint32_t index = 0;
  uint32_t eax = 0;
  uint32_t ebx = 0;
  uint32_t ecx = 0;
  uint32_t edx = 0;
};

constexpr uint32_t kAll = ~uint32_t{0};

// Leaf 1.
constexpr uint32_t k1EcxHypervisor = Bit(31);
constexpr uint32_t k1EcxTscDeadline = Bit(24);
constexpr uint32_t k1EcxOsXsave = Bit(27);
constexpr uint32_t k1EcxXsave = Bit(26);
constexpr uint32_t k1EcxAvx = Bit(28);
constexpr uint32_t k1EdxHtt = Bit(28);
// SSE3 PCLMUL SSSE3 CX16 PCID SSE4.1 SSE4.2 X2APIC POPCNT TSC-deadline AES
// RDRAND hypervisor
constexpr uint32_t k1EcxV2 =
    Bits(0, 1, 9, 13, 17, 19, 20, 21, 23, 24, 25, 30, 31);
// and FMA MOVBE XSAVE OSXSAVE AVX F16C
constexpr uint32_t k1EcxV3 = k1EcxV2 | Bits(12, 22, 26, 27, 28, 29);
// FPU to CX8, APIC, SEP to PSE36, CLFLUSH, MMX to SS, HTT: not DTES, thermal
// control or PBE, which belong to the host.
constexpr uint32_t k1Edx = 0x1f8b'fbff;

// Leaf 7.
// FSGSBASE TSC_ADJUST SMEP ERMS INVPCID RDSEED SMAP CLFLUSHOPT
constexpr uint32_t k7EbxV2 = Bits(0, 1, 7, 9, 10, 18, 20, 23);
// and BMI1 AVX2 BMI2 ADX
constexpr uint32_t k7EbxV3 = k7EbxV2 | Bits(3, 5, 8, 19);
constexpr uint32_t k7EcxAny = Bit(2);  // UMIP
// FSRM MD_CLEAR and SPEC_CTRL STIBP FLUSH_L1D ARCH_CAPABILITIES SSBD
constexpr uint32_t k7EdxAny = Bits(4, 10, 26, 27, 28, 29, 31);

// Leaf 0x80000001.
// LAHF CR8 MISALIGNSSE PREFETCHW
constexpr uint32_t kE1EcxV2 = Bits(0, 4, 7, 8);
constexpr uint32_t kE1EcxV3 = kE1EcxV2 | Bit(5);  // LZCNT
constexpr uint32_t kE1EcxCmpLegacy = Bit(1);
// AMD repeats leaf 1 here; then SYSCALL NX MMXEXT FXSR_OPT 1-GiB-pages RDTSCP
// LM.
constexpr uint32_t kE1Edx = 0x0183'f3ff | Bits(11, 20, 22, 25, 26, 27, 29);

// Leaf 0x80000008 EBX: IBPB IBRS STIBP STIBP-always-on SSBD VIRT_SSBD SSB_NO
// and the restore of FP error pointers.
constexpr uint32_t kE8Ebx = Bits(2, 12, 14, 15, 17, 24, 25, 26);

// KVM's feature leaf: all but asynchronous page faults (4, 10, 14), whose MSRs
// hold guest addresses that the host would write after a restore, and the
// calls of encrypted guests (16, 17).
constexpr uint32_t kKvmFeatures = ~Bits(4, 10, 14, 16, 17);

constexpr uint32_t kKvmSignatureLeaf = 0x4000'0000;
constexpr uint32_t kKvmFeatureLeaf = 0x4000'0001;

constexpr LeafMask kV2[] = {
    {0x0, 0, kAll, kAll, kAll, kAll},
    {0x1, 0, kAll, kAll, k1EcxV2, k1Edx},
    {0x2, 0, kAll, kAll, kAll, kAll},
    {0x6, 0, Bit(2), 0, 0, 0},  // ARAT
    {0x7, 0, 0, k7EbxV2, k7EcxAny, k7EdxAny},
    {kKvmSignatureLeaf, 0, kAll, kAll, kAll, kAll},
    {kKvmFeatureLeaf, 0, kKvmFeatures, kAll, kAll, kAll},
    {0x8000'0000, 0, kAll, kAll, kAll, kAll},
    {0x8000'0001, 0, kAll, kAll, kE1EcxV2, kE1Edx},
    {0x8000'0002, 0, kAll, kAll, kAll, kAll},
    {0x8000'0003, 0, kAll, kAll, kAll, kAll},
    {0x8000'0004, 0, kAll, kAll, kAll, kAll},
    {0x8000'0005, 0, kAll, kAll, kAll, kAll},
    {0x8000'0006, 0, kAll, kAll, kAll, kAll},
    {0x8000'0007, 0, 0, 0, 0, Bit(8)},  // Invariant TSC
    {0x8000'0008, 0, kAll, kE8Ebx, 0, 0},
    {0x8000'0021, 0, Bits(2, 6), 0, 0, 0},  // LFENCE serialises; null selector
};

constexpr LeafMask kV3Differs[] = {
    {0x1, 0, kAll, kAll, k1EcxV3, k1Edx},
    {0x7, 0, 0, k7EbxV3, k7EcxAny, k7EdxAny},
    {0xd, 0, kAll, kAll, kAll, kAll},
    {0xd, 1, Bits(0, 1, 2, 3), kAll, 0, 0},
    {0xd, 2, kAll, kAll, kAll, kAll},
    {0x8000'0001, 0, kAll, kAll, kE1EcxV3, kE1Edx},
};

// What even `kHost` takes away.
struct Denied {
  uint32_t function;
  uint32_t index;
  uint32_t eax, ebx, ecx, edx;
};
constexpr Denied kDenied[] = {
    // DTES64 MONITOR DS-CPL VMX SMX EST TM2 PDCM; DTES, ACPI, TM, PBE
    {0x1, 0, 0, 0, Bits(2, 3, 4, 5, 6, 7, 8, 15), Bits(21, 22, 29, 31)},
    // SGX MPX PT; SGX-LC, LA57 stays with the kernel; AMX and PCONFIG, HYBRID
    {0x7, 0, 0, Bits(2, 14, 25), Bits(30), Bits(15, 18, 22, 24, 25)},
    // AMX-FP16, AMX-COMPLEX
    {0x7, 1, Bits(21), 0, 0, Bits(8)},
    // SVM IBS SKINIT WDT TOPOEXT PERFCTR_CORE/NB/LLC MWAITX
    {0x8000'0001, 0, 0, 0, Bits(2, 10, 12, 13, 22, 23, 24, 28, 29), 0},
};

// Leaves that stay away altogether: monitor, PMU, SGX, processor trace, AMX,
// V2 topology (we give leaf 0xB), SVM, IBS, AMD topology and encryption, the
// frequencies (0x15, 0x16 speak of the host's clock; KVM has its own leaf).
constexpr uint32_t kHiddenLeaves[] = {
    0x5,         0xa,         0x12,        0x14,        0x15,
    0x16,        0x1a,        0x1d,        0x1e,        0x1f,
    0x8000'000a, 0x8000'001b, 0x8000'001d, 0x8000'001e, 0x8000'001f,
    0x8000'0020, 0x8000'0022, 0x8000'0026};

kvm_cpuid_entry2* Find(std::vector<kvm_cpuid_entry2>& leaves, uint32_t function,
                       uint32_t index) {
  for (kvm_cpuid_entry2& entry : leaves) {
    if (entry.function == function && entry.index == index) return &entry;
  }
  return nullptr;
}

std::optional<LeafMask> MaskOf(CpuBaseline baseline, uint32_t function,
                               uint32_t index) {
  if (baseline == CpuBaseline::kX86_64V3) {
    for (const LeafMask& mask : kV3Differs) {
      if (mask.function == function && mask.index == index) return mask;
    }
  }
  for (const LeafMask& mask : kV2) {
    if (mask.function == function && mask.index == index) return mask;
  }
  return std::nullopt;
}

bool IsHidden(uint32_t function) {
  return std::find(std::begin(kHiddenLeaves), std::end(kHiddenLeaves),
                   function) != std::end(kHiddenLeaves);
}

std::vector<kvm_cpuid_entry2> Filter(
    const std::vector<kvm_cpuid_entry2>& supported, CpuBaseline baseline) {
  std::vector<kvm_cpuid_entry2> leaves;
  for (kvm_cpuid_entry2 entry : supported) {
    if (baseline == CpuBaseline::kHost) {
      if (IsHidden(entry.function)) continue;
      if (entry.function == kKvmFeatureLeaf) entry.eax &= kKvmFeatures;
      for (const Denied& denied : kDenied) {
        if (denied.function != entry.function || denied.index != entry.index) {
          continue;
        }
        entry.eax &= ~denied.eax;
        entry.ebx &= ~denied.ebx;
        entry.ecx &= ~denied.ecx;
        entry.edx &= ~denied.edx;
      }
    } else {
      const auto mask = MaskOf(baseline, entry.function, entry.index);
      if (!mask.has_value()) continue;
      entry.eax &= mask->eax;
      entry.ebx &= mask->ebx;
      entry.ecx &= mask->ecx;
      entry.edx &= mask->edx;
    }
    leaves.push_back(entry);
  }
  return leaves;
}

// Leaf 0xD lists only components whose feature bit is shown, with the sizes
// that follow from them; KVM's own numbers describe the host's set, and the
// guest's kernel would find that they disagree with what it adds up.
void FixXsave(std::vector<kvm_cpuid_entry2>& leaves) {
  const kvm_cpuid_entry2* leaf1 = Find(leaves, 1, 0);
  kvm_cpuid_entry2* main = Find(leaves, 0xd, 0);
  const bool shown =
      leaf1 != nullptr && (leaf1->ecx & k1EcxXsave) != 0 && main != nullptr;
  if (!shown) {
    std::erase_if(leaves, [](const auto& e) { return e.function == 0xd; });
    if (kvm_cpuid_entry2* entry = Find(leaves, 1, 0)) {
      entry->ecx &= ~(k1EcxXsave | k1EcxOsXsave | k1EcxAvx);
    }
    return;
  }
  const kvm_cpuid_entry2* leaf7 = Find(leaves, 7, 0);
  uint64_t components = 0x3;  // x87 and SSE, always with XSAVE.
  if ((leaf1->ecx & k1EcxAvx) != 0) components |= Bit(2);
  if (leaf7 != nullptr && (leaf7->ebx & Bit(16)) != 0) {
    components |= Bits(5, 6, 7);  // AVX-512
  }
  if (leaf7 != nullptr && (leaf7->ecx & Bit(3)) != 0) components |= Bit(9);
  components &= (uint64_t{main->edx} << 32) | main->eax;
  uint32_t size = 576;  // Legacy area and XSAVE header.
  std::erase_if(leaves, [components](const kvm_cpuid_entry2& entry) {
    return entry.function == 0xd && entry.index >= 2 &&
           (entry.index > 63 || (components >> entry.index & 1) == 0);
  });
  for (const kvm_cpuid_entry2& entry : leaves) {
    if (entry.function == 0xd && entry.index >= 2) {
      size = std::max(size, entry.ebx + entry.eax);
    }
  }
  main = Find(leaves, 0xd, 0);
  main->eax = static_cast<uint32_t>(components);
  main->edx = static_cast<uint32_t>(components >> 32);
  main->ecx = size;
  main->ebx = size;  // KVM follows XCR0 from here on by itself.
  if (kvm_cpuid_entry2* one = Find(leaves, 0xd, 1)) {
    one->eax &= Bits(0, 1, 2, 3);
    one->ecx = 0;  // No supervisor components.
    one->edx = 0;
  }
}

// All vCPUs are cores of one package, one thread each, APIC id = index.
void SetTopology(std::vector<kvm_cpuid_entry2>& leaves, int vcpus, int index) {
  const auto count = static_cast<uint32_t>(vcpus);
  const auto id = static_cast<uint32_t>(index);
  const auto id_bits = static_cast<uint32_t>(std::bit_width(count - 1));
  const kvm_cpuid_entry2* vendor = Find(leaves, 0, 0);
  // "Auth" of AuthenticAMD, "Hygo" of HygonGenuine.
  const bool amd = vendor != nullptr &&
                   (vendor->ebx == 0x6874'7541 || vendor->ebx == 0x6f67'7948);

  if (kvm_cpuid_entry2* entry = Find(leaves, 1, 0)) {
    // CLFLUSH line size stays; brand index goes.
    entry->ebx = (id << 24) | (count << 16) | (entry->ebx & 0xff00);
    entry->edx &= ~k1EdxHtt;
    if (vcpus > 1) entry->edx |= k1EdxHtt;
  }
  for (kvm_cpuid_entry2& entry : leaves) {
    if (entry.function != 4 || (entry.eax & 0x1f) == 0) continue;
    // Cores in the package - 1; threads that share this cache - 1: caches of
    // level 3 are shared by all, others are a core's own.
    const uint32_t level = entry.eax >> 5 & 0x7;
    const uint32_t sharing = level >= 3 ? count - 1 : 0;
    entry.eax = (entry.eax & 0x3fff) | (sharing << 14) | ((count - 1) << 26);
  }
  std::erase_if(leaves, [](const auto& e) { return e.function == 0xb; });
  kvm_cpuid_entry2 thread{};
  thread.function = 0xb;
  thread.index = 0;
  thread.flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
  thread.ebx = 1;
  thread.ecx = 1u << 8;  // Level type SMT
  thread.edx = id;
  kvm_cpuid_entry2 core = thread;
  core.index = 1;
  core.eax = id_bits;
  core.ebx = count;
  core.ecx = (2u << 8) | 1;  // Level type core
  leaves.push_back(thread);
  leaves.push_back(core);

  if (!amd) return;
  if (kvm_cpuid_entry2* entry = Find(leaves, 0x8000'0001, 0)) {
    entry->ecx &= ~kE1EcxCmpLegacy;
    if (vcpus > 1) entry->ecx |= kE1EcxCmpLegacy;
  }
  if (kvm_cpuid_entry2* entry = Find(leaves, 0x8000'0008, 0)) {
    entry->ecx = (id_bits << 12) | (count - 1);
  }
}

// The highest leaf of each range must be one that exists.
void FixMaxima(std::vector<kvm_cpuid_entry2>& leaves) {
  uint32_t basic = 0;
  uint32_t extended = 0x8000'0000;
  for (const kvm_cpuid_entry2& entry : leaves) {
    if (entry.function < kKvmSignatureLeaf) {
      basic = std::max(basic, uint32_t{entry.function});
    } else if (entry.function >= 0x8000'0000) {
      extended = std::max(extended, uint32_t{entry.function});
    }
  }
  if (kvm_cpuid_entry2* entry = Find(leaves, 0, 0)) entry->eax = basic;
  if (kvm_cpuid_entry2* entry = Find(leaves, 0x8000'0000, 0)) {
    entry->eax = extended;
  }
  // Says how many leaves of its own KVM has.
  if (kvm_cpuid_entry2* entry = Find(leaves, kKvmSignatureLeaf, 0)) {
    entry->eax = kKvmFeatureLeaf;
  }
}

}  // namespace

std::vector<kvm_cpuid_entry2> BuildCpuid(
    const std::vector<kvm_cpuid_entry2>& supported, const CpuidConfig& config,
    int index) {
  std::vector<kvm_cpuid_entry2> leaves = Filter(supported, config.baseline);
  if (kvm_cpuid_entry2* entry = Find(leaves, 1, 0)) {
    // KVM_GET_SUPPORTED_CPUID leaves both to the VMM. Without the first a
    // guest boots as on bare metal; without the second it calibrates its timer
    // against a PIT that is not there.
    entry->ecx |= k1EcxHypervisor;
    if (config.tsc_deadline) entry->ecx |= k1EcxTscDeadline;
  }
  FixXsave(leaves);
  SetTopology(leaves, config.vcpus, index);
  FixMaxima(leaves);
  return leaves;
}

}  // namespace catnap::arch
