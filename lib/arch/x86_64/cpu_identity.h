#ifndef CATNAP_LIB_ARCH_X86_64_CPU_IDENTITY_H_
#define CATNAP_LIB_ARCH_X86_64_CPU_IDENTITY_H_

#include <linux/kvm.h>

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "state/decoder.h"
#include "state/encoder.h"

namespace catnap::arch {

// What a guest relies on of the host that it was saved on.
struct CpuIdentity {
  std::vector<kvm_cpuid_entry2> cpuid;  // As its first vCPU was given it.
  uint32_t tsc_khz = 0;                 // 0: KVM did not know.
  uint64_t xsave_bytes = 0;             // Of KVM's XSAVE area.
};

// What a host has to offer.
struct CpuOffer {
  std::vector<kvm_cpuid_entry2> cpuid;  // The most that a guest gets there.
  uint32_t tsc_khz = 0;
  bool tsc_scaling = false;
  uint64_t xsave_bytes = 0;
};

// A TSC that is so much off is the same to NTP, which corrects up to 500.
inline constexpr uint64_t kTscToleranceMillionths = 250;

// Whether the guest can go on there: same vendor, every feature that it was
// shown, the same layout of the XSAVE area, and a TSC of the same rate, or one
// that can be scaled to it. Model and cache sizes may differ.
// Errors: FAILED_PRECONDITION with kCpuMismatch, naming the first difference.
absl::Status CheckCpu(const CpuIdentity& saved, const CpuOffer& host);

void EncodeIdentity(const CpuIdentity& identity, state::StateEncoder& out);
// From hostile bytes. Errors: DATA_LOSS.
absl::StatusOr<CpuIdentity> DecodeIdentity(state::StateDecoder in);

}  // namespace catnap::arch

#endif  // CATNAP_LIB_ARCH_X86_64_CPU_IDENTITY_H_
