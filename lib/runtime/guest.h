#ifndef CATNAP_LIB_RUNTIME_GUEST_H_
#define CATNAP_LIB_RUNTIME_GUEST_H_

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "agent/client.h"
#include "base/log.h"
#include "catnap/microvm.h"
#include "catnap/run_options.h"
#include "io/event_loop.h"
#include "runtime/image_record.h"

namespace catnap::runtime {

// Why a guest ended by itself.
struct GuestEnd {
  TerminationReason reason = TerminationReason::kInternal;
  std::string text{};  // For people.
};

// What a guest is started from.
struct GuestConfig {
  std::shared_ptr<const ImageRecord> image;
  std::filesystem::path directory;  // For its own files; empty, and its own.
  std::vector<Disk> disks;
  NetworkPolicy egress;
  std::shared_ptr<UniqueFd> tap;  // Null: the built-in network.
  std::string vm_id;
  std::shared_ptr<LogSink> log;
  std::shared_ptr<Executor> executor;  // Of the log.
  io::EventLoop* loop = nullptr;       // Borrowed; outlives the guest.
  std::shared_ptr<agent::ServiceListener> services;
  // Called at most once, on any thread, when the guest ended by itself. Must
  // not block, nor call the guest.
  std::function<void(GuestEnd)> on_end;
};

// A running guest with its agent: what a MicroVM is while it runs. The seam
// between life cycle and machine.
//
// Thread-safe. The destructor calls Stop(), and does not wait for clients that
// were handed out: those only fail from then on.
class Guest {
 public:
  virtual ~Guest() = default;
  // The agent's connection; blocks until there is one, `deadline` has passed,
  // or `give_up` says so, which is asked again after each Wake().
  // Errors: UNAVAILABLE with kAgentUnresponsive.
  virtual absl::StatusOr<std::shared_ptr<agent::Client>> WaitForClient(
      std::chrono::steady_clock::time_point deadline,
      const std::function<bool()>& give_up) = 0;
  virtual void Wake() = 0;
  // Ends the guest and all its streams. Idempotent. Not on the loop's thread,
  // nor in on_end.
  virtual void Stop() = 0;
  // The last 64 KiB that its kernel wrote.
  virtual std::string ConsoleTail() const = 0;
  // CPU time of its vCPUs, in seconds.
  virtual double VcpuSeconds() const = 0;
  // Its disk's own part, in bytes.
  virtual uint64_t StoredBytes() const = 0;
  // What it waits for, such as a full disk of the host; mostly "".
  virtual std::string WaitsFor() const = 0;
  // Errors: INVALID_ARGUMENT, a rule.
  virtual absl::Status SetEgress(const NetworkPolicy& policy) = 0;
};

// Starts guests. Thread-safe; blocks while the kernel is loaded.
class GuestFactory {
 public:
  virtual ~GuestFactory() = default;
  virtual absl::StatusOr<std::unique_ptr<Guest>> Start(GuestConfig config) = 0;
};

}  // namespace catnap::runtime

#endif  // CATNAP_LIB_RUNTIME_GUEST_H_
