#ifndef CATNAP_LIB_AGENT_PROCESS_H_
#define CATNAP_LIB_AGENT_PROCESS_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "agent/client.h"
#include "agent/messages.h"
#include "base/mutex.h"

namespace catnap::agent {

// What a process in the guest tells, in order, with no lock held and never two
// at once. Each may be null.
struct ProcessEvents {
  // Only if ExecRequest::report_start is set.
  absl::AnyInvocable<void(const Started&)> on_started{};
  // `channel` is kStdout or kStderr. Returns how many bytes are used; for the
  // others, GuestProcess::Consume(). Null: all is thrown away.
  absl::AnyInvocable<size_t(uint8_t channel, std::span<const uint8_t> data)>
      on_output{};
  // The last call. An error is the library's or the connection's; the guest's
  // fate is a report. DEADLINE_EXCEEDED and CANCELLED: the tree was killed.
  absl::AnyInvocable<void(absl::StatusOr<ExitReport>) &&> on_exit{};
};

// A process in the guest. Destroying it changes nothing; Kill() ends it.
// Thread-safe. The client must outlive it.
class GuestProcess {
 public:
  // Starts `request`. Its stdin_data may have any length; what is too long for
  // one frame follows by itself. stdin stays open after it if stdin_open is
  // set.
  // Errors: as Client::Open(); then no event comes.
  static absl::StatusOr<std::shared_ptr<GuestProcess>> Start(
      Client* client, ExecRequest request, ProcessEvents events,
      const CallLimits& limits = {});
  // Takes part in a process that a connection before this one started: its
  // last output, what follows, and its end, also when that was before, while
  // nobody listened. NOT_FOUND comes by on_exit.
  static absl::StatusOr<std::shared_ptr<GuestProcess>> Attach(
      Client* client, uint64_t process_id, ProcessEvents events);

  // Takes as much of `data` as can be sent without blocking, and returns how
  // much; `end` counts when that is all. After less, call again later;
  // FAILED_PRECONDITION when stdin is closed.
  absl::StatusOr<size_t> Write(std::span<const uint8_t> data, bool end);
  void Consume(uint8_t channel, size_t bytes);
  void Signal(int signal);
  void Resize(WindowSize size);
  // Ends the events with CANCELLED and lets the process live on.
  void Detach();
  // Of the client; for Client::Cancel().
  uint32_t stream() const;
  // Kills the tree and ends the events with CANCELLED.
  void Kill();

 private:
  class Handler;
  GuestProcess(Client* client, std::shared_ptr<Handler> handler);

  Client* const client_;  // Not owned.
  const std::shared_ptr<Handler> handler_;
};

struct ExecOutcome {
  ExitReport report{};
  std::string stdout_data{}, stderr_data{};
};

// Runs `request` to its end and collects its output: the first
// `max_output_bytes` of both channels together, even when the agent lies about
// the request's limit, which is set from it.
// Returns the stream for Client::Cancel(). Errors: as Client::Open().
absl::StatusOr<uint32_t> Exec(
    Client* client, ExecRequest request, uint64_t max_output_bytes,
    const CallLimits& limits,
    absl::AnyInvocable<void(absl::StatusOr<ExecOutcome>) &&> done);

// The processes that live, those of earlier connections too.
absl::Status ListProcesses(
    Client* client, const CallLimits& limits,
    absl::AnyInvocable<void(absl::StatusOr<std::vector<ProcessEntry>>) &&>
        done);

}  // namespace catnap::agent

#endif  // CATNAP_LIB_AGENT_PROCESS_H_
