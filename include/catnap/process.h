#ifndef CATNAP_PROCESS_H_
#define CATNAP_PROCESS_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "catnap/call.h"
#include "catnap/export.h"

namespace catnap {

struct PtySize {
  uint16_t rows = 24, cols = 80;
};

enum class Stream { kStdout, kStderr };

// A program to run in a guest.
struct Command {
  // The program and its arguments: 1 to 4,096, together at most 256 KiB with
  // the environment. A program without a slash is looked for in the PATH.
  std::vector<std::string> argv{};
  // Over what the image and RunOptions::env set.
  std::map<std::string, std::string> env{};
  // Empty: the image's working directory and user. A user is a name or a
  // number, either with ":group" behind it.
  std::string cwd{}, user{};
  // Of any length. Exec: stdin ends behind it. Start: it stays open, and the
  // call blocks until the program has read all but the last 192 KiB.
  std::string stdin_data{};
  // Of the program's running time in the guest; then its whole tree is killed
  // and the result is ExitReason::kTimeout.
  std::optional<Millis> timeout{};
  // Runs in a terminal of this size; all output is then kStdout.
  std::optional<PtySize> pty{};
  // The first bytes of both streams together are kept; what comes after is
  // thrown away, and ExecResult::truncated is set.
  uint64_t max_output_bytes = 16u << 20;
  // Of the program and its children, in a cgroup of their own; beyond it the
  // tree is killed and the result is ExitReason::kMemoryLimit.
  std::optional<uint64_t> memory_limit_bytes{};
  // Whether its running keeps the MicroVM awake; false: a background server
  // that may fall asleep. Starting it wakes the MicroVM in any case.
  bool counts_as_activity = true;
  // Gets the output as it comes, on the executor, in order, never two calls at
  // once. While it does not return, the program's writes wait. It is not called
  // after the call (Exec) or the handle (Process) has ended. What max_output_
  // bytes cuts off is not given here either.
  std::function<void(Stream, std::string_view)> on_output{};
};

enum class ExitReason {
  kExited,        // exit_code is set.
  kSignaled,      // signal is set.
  kTimeout,       // Command::timeout.
  kInterrupted,   // Killed by the library on somebody's behalf.
  kMemoryLimit,   // Command::memory_limit_bytes.
  kNotStarted,    // exit_code: 127 not found, 126 not executable or other.
  kVmTerminated,  // The MicroVM ended meanwhile.
};

// How a program ended. A failed program is a result, not an error.
struct ExecResult {
  ExitReason reason = ExitReason::kExited;
  int exit_code = 0, signal = 0;
  std::string stdout_data{}, stderr_data{};
  bool truncated = false;
  // As the guest measured: from start to end; of the program and the children
  // it waited for.
  std::chrono::nanoseconds wall{0}, cpu{0};
  uint64_t max_rss_bytes = 0;
};

struct ProcessInfo {
  uint64_t id = 0;  // For MicroVM::Attach().
  int guest_pid = 0;
  std::vector<std::string> argv{};
};

// A program in a guest, from MicroVM::Start() or Attach(). Destroying it kills
// the program and its children, unless Detach() was called; that does not
// block. It may outlive its MicroVM and its Host.
//
// Output that nobody reads is kept up to 128 KiB for each stream; then the
// program waits.
//
// It goes on over Suspend() and Resume(), byte-exact; calls wake a MicroVM that
// may resume by itself, and are FAILED_PRECONDITION with kVmSuspended else.
// Calls that waited when it fell asleep wait on. After a restart of the host
// process MicroVM::Attach() gives another handle.
//
// Errors of all calls: UNAVAILABLE, the connection with the guest is gone;
// DEADLINE_EXCEEDED and CANCELLED by CallOptions, which change nothing about
// the program. Thread-safe: calls from several threads may overlap.
class CATNAP_EXPORT Process {
 public:
  virtual ~Process() = default;
  // Stays the same as long as the program lives. 0: it could not be started.
  virtual uint64_t id() const = 0;
  // Writes all of `data` to stdin and returns its size; blocks while the
  // program does not read. After an error any part of it may be on its way.
  // Errors: FAILED_PRECONDITION, stdin is closed.
  virtual absl::StatusOr<size_t> Write(std::string_view data,
                                       CallOptions call = {}) = 0;
  // Programs that read to the end see it. Idempotent; does not block.
  virtual absl::Status CloseStdin() = 0;
  // Blocks for output and returns how much of `into` was filled; 0 at the
  // stream's end. Of a terminal all output is kStdout.
  // Errors: FAILED_PRECONDITION, Command::on_output or Wait() takes the output.
  virtual absl::StatusOr<size_t> Read(Stream stream, std::span<char> into,
                                      CallOptions call = {}) = 0;
  // Sends a signal, 1 to 64, to the program (not to its children).
  // Errors: INVALID_ARGUMENT.
  virtual absl::Status Signal(int signal) = 0;
  // Of a terminal; else without effect.
  virtual absl::Status Resize(PtySize size) = 0;
  // Blocks until the program has ended. Output that was not read until then is
  // in the result, up to Command::max_output_bytes. May be called again.
  virtual absl::StatusOr<ExecResult> Wait(CallOptions call = {}) = 0;
  // Lets the program live on without this handle, whose calls then say
  // CANCELLED. MicroVM::Attach() finds it again.
  virtual void Detach() = 0;
};

}  // namespace catnap

#endif  // CATNAP_PROCESS_H_
