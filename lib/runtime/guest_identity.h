#ifndef CATNAP_LIB_RUNTIME_GUEST_IDENTITY_H_
#define CATNAP_LIB_RUNTIME_GUEST_IDENTITY_H_

#include <string>

#include "absl/status/status.h"
#include "agent/sleep.h"

namespace catnap::runtime {

// Has a wake make a guest another machine than all others: of this name, with
// a machine id and a generation drawn for it.
// Errors: what the system's random numbers say.
absl::Status AddIdentity(const std::string& hostname,
                         agent::WakeOptions* options);

}  // namespace catnap::runtime

#endif  // CATNAP_LIB_RUNTIME_GUEST_IDENTITY_H_
