#ifndef CATNAP_LIB_AGENT_SLEEP_H_
#define CATNAP_LIB_AGENT_SLEEP_H_

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "agent/client.h"
#include "agent/messages.h"

namespace catnap::agent {

// Before a guest's state is taken, and after it was brought back. `done` is
// called once, with no lock held; when the connection is gone, before the call
// returns. A guest that is frozen stays so, also when its connection ends,
// until Wake() or Thaw() on this connection or a later one. What is asked of it
// meanwhile (programs, files, connections) waits until then.

struct FreezeOptions {
  // For all programs to stand still. Writing dirty data does not count.
  std::chrono::milliseconds bound{kDefaultFreezeBoundMs};
  // Dirty data of the root file system is written before, while all runs.
  bool flush = false;
};

struct FreezeReport {
  std::chrono::nanoseconds flush{};  // What each took in the guest.
  std::chrono::nanoseconds freeze{};
};

// Stops all programs of the guest; the agent itself answers on. One that is
// frozen already stays so: OK. After any error the guest runs on.
// Errors: FAILED_PRECONDITION, they did not stop in time, or this guest cannot
// be frozen; CANCELLED, by a thaw; as Client::Open().
void Freeze(Client* client, const FreezeOptions& options,
            const CallLimits& limits,
            absl::AnyInvocable<void(absl::StatusOr<FreezeReport>) &&> done);

struct WakeOptions {
  // Another machine than the one that was saved: its connections with others
  // are destroyed. The identity below is the caller's to choose.
  bool is_copy = false;
  std::string hostname{};  // Empty: as it was.
  std::optional<MachineId> machine_id{};
  std::optional<MacAddress> mac{};
  // Of /run/catnap/generation. 0, or the one that it has: the next one.
  uint64_t generation = 0;
  // For a machine that is no copy, but whose network was not kept.
  Connections connections = Connections::kKeep;
  // The new content of /run/catnap/env; none: as it was.
  std::optional<std::vector<std::string>> env{};
};

// Sets the guest's clock to this host's, mixes 64 bytes of this host's
// randomness into the guest's, does what the options say, and then lets the
// programs run on. Works on a guest that is not frozen, too.
// The clock is off by at most half the time that the shortest of up to three
// short requests takes, by its middle; they are sent before.
// The text says what was left out, such as an identity that cannot be written;
// mostly "".
// Errors: FAILED_PRECONDITION, clock, randomness or generation could not be set
// and the guest is as frozen as it was; as Client::Open(). INVALID_ARGUMENT: a
// host name that is too long.
void Wake(Client* client, const WakeOptions& options, const CallLimits& limits,
          absl::AnyInvocable<void(absl::StatusOr<std::string>) &&> done);

// Lets the programs run on as if nothing had happened. Also ends a freeze that
// is under way. OK when nothing is frozen.
void Thaw(Client* client, const CallLimits& limits,
          absl::AnyInvocable<void(absl::Status) &&> done);

}  // namespace catnap::agent

#endif  // CATNAP_LIB_AGENT_SLEEP_H_
