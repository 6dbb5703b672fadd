#ifndef CATNAP_LIB_RUNTIME_GUEST_IDENTITY_H_
#define CATNAP_LIB_RUNTIME_GUEST_IDENTITY_H_

#include <chrono>
#include <string>

#include "absl/status/status.h"
#include "agent/sleep.h"

namespace catnap::runtime {

// A wake's answer, which a hostile guest may never send, is waited for so long:
// as long as a boot. A hundred forks that share a slow processor take a minute.
constexpr auto kWakeLatest = std::chrono::seconds(120);

// Has a wake make a guest another machine than all others: of this name, with
// a machine id and a generation drawn for it.
// Errors: what the system's random numbers say.
absl::Status AddIdentity(const std::string& hostname,
                         agent::WakeOptions* options);

}  // namespace catnap::runtime

#endif  // CATNAP_LIB_RUNTIME_GUEST_IDENTITY_H_
