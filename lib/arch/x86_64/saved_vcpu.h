#ifndef CATNAP_LIB_ARCH_X86_64_SAVED_VCPU_H_
#define CATNAP_LIB_ARCH_X86_64_SAVED_VCPU_H_

#include <linux/kvm.h>

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvm/vcpu_fd.h"
#include "state/decoder.h"
#include "state/encoder.h"

namespace catnap::arch {

// All that makes up one vCPU, but for its TSC: that is one clock with those of
// the other vCPUs (SavedClock).
struct SavedVcpu {
  std::vector<kvm_cpuid_entry2> cpuid;  // What it was given to show.
  kvm_regs regs{};
  kvm_sregs sregs{};
  kvm_lapic_state lapic{};
  uint64_t tsc_deadline = 0;  // 0: not armed, or the guest cannot.
  std::vector<kvm_msr_entry> msrs;
  kvm_xcrs xcrs{};
  std::vector<uint8_t> xsave;  // Empty: a CPU without XSAVE.
  kvm_vcpu_events events{};
  kvm_debugregs debug{};
  uint32_t mp_state = 0;
};

// Of `listed` (from KVM_GET_MSR_INDEX_LIST), those that are a guest's state:
// not what belongs to the host, to features that no guest gets, or to a clock
// that is saved apart.
std::vector<uint32_t> GuestMsrs(const std::vector<uint32_t>& listed);

// REQUIRES: no vCPU of the machine runs. `msrs` from GuestMsrs().
absl::StatusOr<SavedVcpu> SaveVcpu(kvm::VcpuFd& vcpu,
                                   const std::vector<uint32_t>& msrs,
                                   std::vector<kvm_cpuid_entry2> cpuid);

// Into a vCPU that never ran and whose TSC is set: what comes from `saved` and
// does not depend on the other vCPUs. With `same_cpuid` the vCPU shows
// saved.cpuid already.
// Errors: FAILED_PRECONDITION naming an MSR that KVM refuses; INVALID_ARGUMENT
// for a state that no CPU can have.
absl::Status RestoreVcpu(kvm::VcpuFd& vcpu, const SavedVcpu& saved);

// What may be refused in what a table of CPUID can hold.
inline constexpr size_t kMaxSavedCpuid = 256;

void EncodeCpuid(uint32_t field, const std::vector<kvm_cpuid_entry2>& table,
                 state::StateEncoder& out);
// Reads one element of such a list.
kvm_cpuid_entry2 DecodeCpuidEntry(state::StateDecoder in, absl::Status* status);

void EncodeVcpu(const SavedVcpu& vcpu, state::StateEncoder& out);
// From hostile bytes: nothing is allocated beyond what the fields hold, and
// within the limits of KVM. Whether a value makes sense is KVM's to say.
// Errors: DATA_LOSS; a field that is missing is one.
absl::StatusOr<SavedVcpu> DecodeVcpu(state::StateDecoder in);

// kvm-clock and the TSCs, of one instant.
struct SavedClock {
  uint64_t kvm_clock = 0;     // Nanoseconds.
  std::vector<uint64_t> tsc;  // One for each vCPU.
  friend bool operator==(const SavedClock&, const SavedClock&) = default;
};

// The guest's TSCs as they are at one instant.
absl::StatusOr<std::vector<uint64_t>> SaveTscs(
    const std::vector<kvm::VcpuFd*>& vcpus);
// Lets all of them go on from there, with the same distances between them.
absl::Status RestoreTscs(const std::vector<kvm::VcpuFd*>& vcpus,
                         const std::vector<uint64_t>& tscs);

void EncodeClock(const SavedClock& clock, state::StateEncoder& out);
absl::StatusOr<SavedClock> DecodeClock(state::StateDecoder in);

// IOAPIC and both PICs.
struct SavedIrqchip {
  kvm_ioapic_state ioapic{};
  kvm_pic_state pics[2]{};
};

void EncodeIrqchip(const SavedIrqchip& chip, state::StateEncoder& out);
absl::StatusOr<SavedIrqchip> DecodeIrqchip(state::StateDecoder in);

}  // namespace catnap::arch

#endif  // CATNAP_LIB_ARCH_X86_64_SAVED_VCPU_H_
