#include "arch/x86_64/cpu_identity.h"

#include <array>
#include <bit>
#include <string>

#include "arch/x86_64/saved_vcpu.h"
#include "base/status.h"

namespace catnap::arch {
namespace {

// Field ids; FORMAT: state/FORMAT.md.
constexpr uint32_t kCpuidField = 1;  // A message, one for each leaf.
constexpr uint32_t kTscKhzField = 2;
constexpr uint32_t kXsaveBytesField = 3;
static_assert(kCpuidField == 1 && kTscKhzField == 2 && kXsaveBytesField == 3,
              "field ids are on disk: read lib/state/FORMAT.md first");

enum Register { kEax, kEbx, kEcx, kEdx };
constexpr std::array<const char*, 4> kRegisterNames = {"EAX", "EBX", "ECX",
                                                       "EDX"};

// Registers in which each bit is a feature of its own. Bits of `ignored` follow
// the guest's registers or the vCPU, or say that something is not so.
struct FeatureWord {
  uint32_t function;
  uint32_t index;
  Register which;
  uint32_t ignored;
};
constexpr uint32_t kOsXsave = 1u << 27;
constexpr uint32_t kHtt = 1u << 28;
constexpr FeatureWord kFeatureWords[] = {
    {0x1, 0, kEdx, kHtt},
    {0x1, 0, kEcx, kOsXsave},
    {0x6, 0, kEax, 0},
    {0x7, 0, kEbx, 0},
    {0x7, 0, kEcx, 1u << 4},  // OSPKE
    {0x7, 0, kEdx, 0},
    {0x7, 1, kEax, 0},
    {0x7, 1, kEdx, 0},
    {0x7, 2, kEdx, 0},
    {0xd, 0, kEax, 0},
    {0xd, 0, kEdx, 0},
    {0xd, 1, kEax, 0},
    {0x4000'0001, 0, kEax, 0},
    {0x8000'0001, 0, kEcx, 1u << 1},  // CmpLegacy: the number of vCPUs.
    {0x8000'0001, 0, kEdx, 0},
    {0x8000'0007, 0, kEdx, 0},
    {0x8000'0008, 0, kEbx, 0},
    {0x8000'0021, 0, kEax, 0},
};

// Those that people know by name.
struct FeatureName {
  uint32_t function;
  Register which;
  int bit;
  const char* name;
};
constexpr FeatureName kNames[] = {
    {0x1, kEcx, 0, "SSE3"},
    {0x1, kEcx, 1, "PCLMULQDQ"},
    {0x1, kEcx, 9, "SSSE3"},
    {0x1, kEcx, 12, "FMA"},
    {0x1, kEcx, 13, "CMPXCHG16B"},
    {0x1, kEcx, 17, "PCID"},
    {0x1, kEcx, 19, "SSE4.1"},
    {0x1, kEcx, 20, "SSE4.2"},
    {0x1, kEcx, 21, "x2APIC"},
    {0x1, kEcx, 22, "MOVBE"},
    {0x1, kEcx, 23, "POPCNT"},
    {0x1, kEcx, 24, "TSC-deadline"},
    {0x1, kEcx, 25, "AES"},
    {0x1, kEcx, 26, "XSAVE"},
    {0x1, kEcx, 28, "AVX"},
    {0x1, kEcx, 29, "F16C"},
    {0x1, kEcx, 30, "RDRAND"},
    {0x7, kEbx, 0, "FSGSBASE"},
    {0x7, kEbx, 3, "BMI1"},
    {0x7, kEbx, 5, "AVX2"},
    {0x7, kEbx, 7, "SMEP"},
    {0x7, kEbx, 8, "BMI2"},
    {0x7, kEbx, 9, "ERMS"},
    {0x7, kEbx, 10, "INVPCID"},
    {0x7, kEbx, 16, "AVX512F"},
    {0x7, kEbx, 18, "RDSEED"},
    {0x7, kEbx, 19, "ADX"},
    {0x7, kEbx, 20, "SMAP"},
    {0x7, kEbx, 29, "SHA"},
    {0x7, kEcx, 2, "UMIP"},
    {0x7, kEcx, 3, "PKU"},
    {0x7, kEdx, 26, "SPEC_CTRL"},
    {0x4000'0001, kEax, 3, "kvm-clock"},
    {0x4000'0001, kEax, 5, "kvm-steal-time"},
    {0x4000'0001, kEax, 6, "kvm-pv-eoi"},
    {0x8000'0001, kEcx, 5, "LZCNT"},
    {0x8000'0001, kEdx, 20, "NX"},
    {0x8000'0001, kEdx, 26, "1-GiB pages"},
    {0x8000'0001, kEdx, 27, "RDTSCP"},
    {0x8000'0007, kEdx, 8, "invariant TSC"},
};

const kvm_cpuid_entry2* Find(const std::vector<kvm_cpuid_entry2>& leaves,
                             uint32_t function, uint32_t index) {
  for (const kvm_cpuid_entry2& entry : leaves) {
    if (entry.function == function && entry.index == index) return &entry;
  }
  return nullptr;
}

uint32_t Word(const std::vector<kvm_cpuid_entry2>& leaves, uint32_t function,
              uint32_t index, Register which) {
  const kvm_cpuid_entry2* entry = Find(leaves, function, index);
  if (entry == nullptr) return 0;
  switch (which) {
    case kEax:
      return entry->eax;
    case kEbx:
      return entry->ebx;
    case kEcx:
      return entry->ecx;
    case kEdx:
      return entry->edx;
  }
  return 0;
}

std::string NameOf(const FeatureWord& word, int bit) {
  std::string place =
      fmt::format("CPUID leaf {:#x}.{} {} bit {}", word.function, word.index,
                  kRegisterNames[word.which], bit);
  for (const FeatureName& known : kNames) {
    if (known.function == word.function && word.index == 0 &&
        known.which == word.which && known.bit == bit) {
      return fmt::format("{} ({})", known.name, place);
    }
  }
  return place;
}

// "GenuineIntel"; hostile, so only what can be shown.
std::string VendorOf(const std::vector<kvm_cpuid_entry2>& leaves) {
  std::string vendor;
  for (const Register part : {kEbx, kEdx, kEcx}) {
    uint32_t word = Word(leaves, 0, 0, part);
    for (int i = 0; i < 4; ++i, word >>= 8) {
      const auto c = static_cast<char>(word & 0xff);
      vendor.push_back(c >= ' ' && c <= '~' ? c : '?');
    }
  }
  return vendor;
}

template <typename... Args>
absl::Status Mismatch(fmt::format_string<Args...> format, Args&&... args) {
  return WithReason(Error(absl::StatusCode::kFailedPrecondition, format,
                          std::forward<Args>(args)...),
                    ErrorReason::kCpuMismatch);
}

absl::Status CheckXsave(const CpuIdentity& saved, const CpuOffer& host) {
  for (const kvm_cpuid_entry2& part : saved.cpuid) {
    if (part.function != 0xd || part.index < 2) continue;
    const kvm_cpuid_entry2* there = Find(host.cpuid, 0xd, part.index);
    if (there == nullptr || there->eax != part.eax || there->ebx != part.ebx) {
      return Mismatch(
          "component {} of the saved guest's XSAVE area is {} bytes at {}, on "
          "this host {} bytes at {}",
          uint32_t{part.index}, uint32_t{part.eax}, uint32_t{part.ebx},
          there == nullptr ? 0 : uint32_t{there->eax},
          there == nullptr ? 0 : uint32_t{there->ebx});
    }
  }
  if (saved.xsave_bytes > host.xsave_bytes) {
    return Mismatch("the saved guest's XSAVE area is {} bytes, this host's {}",
                    saved.xsave_bytes, host.xsave_bytes);
  }
  return absl::OkStatus();
}

absl::Status CheckTsc(const CpuIdentity& saved, const CpuOffer& host) {
  if (saved.tsc_khz == host.tsc_khz) return absl::OkStatus();
  if (saved.tsc_khz != 0 && host.tsc_khz != 0) {
    if (host.tsc_scaling) return absl::OkStatus();
    const uint64_t off = saved.tsc_khz > host.tsc_khz
                             ? saved.tsc_khz - host.tsc_khz
                             : host.tsc_khz - saved.tsc_khz;
    if (off * 1'000'000 <= uint64_t{saved.tsc_khz} * kTscToleranceMillionths) {
      return absl::OkStatus();
    }
  }
  return Mismatch(
      "the saved guest's TSC runs at {} kHz, this host's at {} kHz (0: not "
      "known) and cannot be scaled; the difference may be {} millionths",
      saved.tsc_khz, host.tsc_khz, kTscToleranceMillionths);
}

}  // namespace

absl::Status CheckCpu(const CpuIdentity& saved, const CpuOffer& host) {
  const std::string vendor = VendorOf(saved.cpuid);
  const std::string host_vendor = VendorOf(host.cpuid);
  if (vendor != host_vendor) {
    return Mismatch("the saved guest was shown a CPU of {}, this host's is {}",
                    vendor, host_vendor);
  }
  for (const FeatureWord& word : kFeatureWords) {
    const uint32_t shown =
        Word(saved.cpuid, word.function, word.index, word.which);
    const uint32_t there =
        Word(host.cpuid, word.function, word.index, word.which);
    const uint32_t missing = shown & ~there & ~word.ignored;
    if (missing != 0) {
      return Mismatch("the saved guest was shown {}, this host lacks it",
                      NameOf(word, std::countr_zero(missing)));
    }
  }
  CATNAP_RETURN_IF_ERROR(CheckXsave(saved, host));
  return CheckTsc(saved, host);
}

void EncodeIdentity(const CpuIdentity& identity, state::StateEncoder& out) {
  EncodeCpuid(kCpuidField, identity.cpuid, out);
  out.Unsigned(kTscKhzField, identity.tsc_khz);
  out.Unsigned(kXsaveBytesField, identity.xsave_bytes);
}

absl::StatusOr<CpuIdentity> DecodeIdentity(state::StateDecoder in) {
  CpuIdentity identity;
  absl::Status status;
  while (status.ok() && in.Next()) {
    switch (in.id()) {
      case kCpuidField:
        if (identity.cpuid.size() == kMaxSavedCpuid) {
          return Error(absl::StatusCode::kDataLoss,
                       "there are more than {} saved CPUID leaves",
                       kMaxSavedCpuid);
        }
        identity.cpuid.push_back(DecodeCpuidEntry(in.Message(), &status));
        break;
      case kTscKhzField:
        identity.tsc_khz = in.U32();
        break;
      case kXsaveBytesField:
        identity.xsave_bytes = in.U64();
        break;
      default:
        break;
    }
  }
  status.Update(in.status());
  if (!status.ok()) return status;
  if (identity.cpuid.empty()) {
    return absl::DataLossError("the saved host identity has no CPUID leaves");
  }
  return identity;
}

}  // namespace catnap::arch
