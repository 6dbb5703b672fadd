#ifndef CATNAP_LIB_KVM_VCPU_EXIT_H_
#define CATNAP_LIB_KVM_VCPU_EXIT_H_

#include <cstdint>
#include <span>
#include <string>

namespace catnap::kvm {

enum class ExitKind {
  kNothing,        // Run again.
  kInterrupted,    // A signal came: look what is wanted.
  kPort,           // An access to I/O ports.
  kMmio,           // An access to a guest address without memory.
  kShutdown,       // Triple fault, or the guest asked KVM to end.
  kInternalError,  // KVM could not go on with this guest.
  kEntryFailed,    // The CPU refused the guest's state.
  kMemoryFault,    // The host could not provide a page.
  kHostError,      // Something that should not happen.
};

// Why KVM_RUN came back.
struct VcpuExit {
  ExitKind kind = ExitKind::kNothing;
  // kPort, kMmio:
  bool write = false;
  uint64_t address = 0;  // Port or guest physical address.
  // Size of one access, 1-8; `data` holds one or, for string instructions on
  // ports, several.
  uint32_t access_bytes = 0;
  std::span<uint8_t> data{};
  // The kinds from kShutdown on: a person's text.
  std::string detail{};
};

}  // namespace catnap::kvm

#endif  // CATNAP_LIB_KVM_VCPU_EXIT_H_
