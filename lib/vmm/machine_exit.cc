#include "vmm/machine_exit.h"

namespace catnap::vmm {

std::string_view NameOf(EndReason reason) {
  switch (reason) {
    case EndReason::kStopped:
      return "stopped";
    case EndReason::kPowerOff:
      return "power off";
    case EndReason::kReset:
      return "reset";
    case EndReason::kTripleFault:
      return "triple fault";
    case EndReason::kInternalError:
      return "KVM internal error";
    case EndReason::kEntryFailed:
      return "guest entry failed";
    case EndReason::kMemoryFault:
      return "guest memory fault";
    case EndReason::kMemoryLost:
      return "guest memory lost";
    case EndReason::kHostError:
      return "host error";
  }
  return "unknown";
}

}  // namespace catnap::vmm
