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

// Puts a file of `run_directory`, in memory, over /etc/machine-id, so that a
// copy does not write its disk for it. A root without /etc has none.
void CoverMachineId(const std::string& run_directory);

// What programs see as /etc/machine-id: the cover, or else the root's file;
// where that cannot be written, it is covered, if it is there.
int SetMachineId(const agent::MachineId& id, const std::string& run_directory);

}  // namespace catnap::guest

#endif  // CATNAP_LIB_GUEST_AGENT_IDENTITY_H_
