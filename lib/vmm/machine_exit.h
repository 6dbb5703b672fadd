#ifndef CATNAP_LIB_VMM_MACHINE_EXIT_H_
#define CATNAP_LIB_VMM_MACHINE_EXIT_H_

#include <string>
#include <string_view>

namespace catnap::vmm {

// Why a machine ended. The guest's fate is a result, never an error of the
// library.
enum class EndReason {
  kStopped,        // Stop() was called.
  kPowerOff,       // The guest switched itself off.
  kReset,          // The guest asked for a reset.
  kTripleFault,    // The guest faulted beyond repair.
  kInternalError,  // KVM could not emulate what the guest did.
  kEntryFailed,    // The CPU refused the guest's state.
  kMemoryFault,    // The host could not provide guest memory.
  kMemoryLost,     // Memory that was to be read from a file cannot be.
  kHostError,      // KVM failed in a way that is not the guest's doing.
};

struct MachineExit {
  EndReason reason = EndReason::kStopped;
  std::string detail{};  // A person's text; may be empty.
};

std::string_view NameOf(EndReason reason);

}  // namespace catnap::vmm

#endif  // CATNAP_LIB_VMM_MACHINE_EXIT_H_
