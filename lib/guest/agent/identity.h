#ifndef CATNAP_LIB_GUEST_AGENT_IDENTITY_H_
#define CATNAP_LIB_GUEST_AGENT_IDENTITY_H_

#include <cstdint>
#include <span>
#include <string>

#include "agent/messages.h"

namespace catnap::guest {

// What a machine that wakes has to set anew. Each returns 0 or the errno.

// To what it was when the monotonic clock showed `monotonic_ns`, and the time
// since; 0: to what it is now.
int SetWallClock(uint64_t ns_since_1970, uint64_t monotonic_ns);

uint64_t MonotonicNow();

// Counts in full, and all draws from now on depend on it.
int MixEntropy(std::span<const uint8_t> entropy);

int SetHostname(const std::string& name);

// /etc/machine-id of the root. Where that cannot be written, a file of
// `run_directory` is put over it, if it is there. A root without /etc has none.
int SetMachineId(const agent::MachineId& id, const std::string& run_directory);

}  // namespace catnap::guest

#endif  // CATNAP_LIB_GUEST_AGENT_IDENTITY_H_
