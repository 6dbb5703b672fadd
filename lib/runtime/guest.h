#ifndef CATNAP_LIB_RUNTIME_GUEST_H_
#define CATNAP_LIB_RUNTIME_GUEST_H_

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "agent/client.h"
#include "base/log.h"
#include "base/page_range.h"
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

// How a guest's state is written.
struct StoreOptions {
  bool durable = true;  // What was written survives a crash of the machine.
  // Stored once and read often: takes longer, and is smaller.
  bool is_image = false;
  // What is stored first, in this order; empty: as the image has it. Borrowed.
  std::span<const base::PageRange> hot{};
  // Gives up: CANCELLED, or DEADLINE_EXCEEDED.
  std::stop_token stop{};
  std::optional<std::chrono::steady_clock::time_point> deadline{};
};

// What a stored state takes.
struct StoredSizes {
  uint64_t stored_bytes = 0;  // On disk, not shared with what it came from.
  uint64_t own_bytes = 0;     // Memory that differs from its image's.
};

// What a copy of a guest is made for.
enum class CaptureUse {
  // Guests start from it: it is kept, and the guest it is of goes on over the
  // same pages. So they take memory once, but the guest has to touch all anew.
  kRun,
  // It is stored and let go of: until then the guest's own pages are in memory
  // twice, and the guest stands still for as short as can be.
  kStore,
};

// A guest's memory, disk and machine as they were at one instant, in memory:
// what forks start from. Immutable, thread-safe.
class CapturedGuest {
 public:
  virtual ~CapturedGuest() = default;
  // Memory of the host that only this holds.
  virtual uint64_t own_bytes() const = 0;
  // Writes it into `directory`, which exists and is empty, so that a guest can
  // be started from there. After an error the directory is to be removed.
  // Blocks. Errors: RESOURCE_EXHAUSTED, the disk; as StoreOptions say.
  virtual absl::StatusOr<StoredSizes> Store(
      const std::filesystem::path& directory, const StoreOptions& options) = 0;
};

// What a guest is started from instead of a boot.
struct GuestOrigin {
  // One of the two. A directory that Guest::Suspend() or CapturedGuest::Store()
  // filled; it is only read, and may be removed once the guest was started.
  std::filesystem::path directory{};
  std::shared_ptr<CapturedGuest> captured{};
  // Another machine than the one that was saved: it gets an identity of its
  // own, and nothing of the old one's connections.
  bool is_copy = false;
};

// What a guest is started from.
struct GuestConfig {
  std::shared_ptr<const ImageRecord> image;
  // None: the disk is booted, the image's or, when `directory` has one, that.
  std::optional<GuestOrigin> origin{};
  // For its own files, and its own. Empty, or (without an origin) as a guest
  // that ended left it.
  std::filesystem::path directory;
  std::vector<Disk> disks;
  NetworkPolicy egress;
  std::shared_ptr<UniqueFd> tap;  // Null: the built-in network.
  // How much of what is stored is read before it runs.
  Prefetch prefetch = Prefetch::kHotSet;
  std::string vm_id;
  // With an origin: /run/catnap/env from before its programs run on, as
  // NAME=value. A boot leaves that, and the rest of its identity, to its
  // caller.
  std::vector<std::string> env;
  std::shared_ptr<LogSink> log;
  std::shared_ptr<Executor> executor;  // Of the log.
  io::EventLoop* loop = nullptr;       // Borrowed; outlives the guest.
  std::shared_ptr<agent::ServiceListener> services;
  // Called at most once, on any thread, when the guest ended by itself. Must
  // not block, nor call the guest.
  std::function<void(GuestEnd)> on_end;
  // The files of a new guest, which nobody knows yet, need not be durable
  // before Guest::Sync().
  bool sync_later = false;
  // Called once, within Start(), when a guest could be booted from `directory`
  // as it is, and before this one runs. An error ends the start. May be null.
  std::function<absl::Status()> on_prepared{};
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
  // Frames that left by its network since it was started; for idle detection.
  virtual uint64_t OutboundFrames() const { return 0; }
  // Makes durable what GuestConfig::sync_later left open. Blocks.
  // Errors: what the file system says.
  virtual absl::Status Sync() { return absl::OkStatus(); }
  // Also while it is suspended: for when it runs again.
  // Errors: INVALID_ARGUMENT, a rule.
  virtual absl::Status SetEgress(const NetworkPolicy& policy) = 0;

  // Stops the guest, writes its state into `directory` (which exists and is
  // empty) and lets go of its memory and vCPUs; its connection waits, with all
  // its streams, and loses nothing. After an error the guest runs on as if
  // nothing had happened, and the directory is to be removed. Blocks.
  // Errors: CANCELLED, DEADLINE_EXCEEDED as StoreOptions say; RESOURCE_
  // EXHAUSTED, the disk; FAILED_PRECONDITION, the guest could not be frozen.
  virtual absl::StatusOr<StoredSizes> Suspend(
      const std::filesystem::path& directory, const StoreOptions& options) = 0;
  // After Suspend(): brings it back from `directory`, which is only read and
  // may be removed afterwards. After an error it sleeps on.
  // Errors: DATA_LOSS, what was stored is damaged; RESOURCE_EXHAUSTED. Damage
  // in what GuestConfig::prefetch leaves for later ends the guest then, with
  // TerminationReason::kStorage.
  virtual absl::Status Resume(const std::filesystem::path& directory,
                              const agent::CallLimits& limits) = 0;
  // Gives back memory of a copy that holds what the guest it was copied from
  // has there. It stands still for a millisecond or so. Does nothing while it
  // sleeps, falls asleep, wakes or is copied. Blocks.
  virtual void Settle() {}
  // Copies the guest, which stands still for some milliseconds and goes on.
  // Errors: as Suspend().
  virtual absl::StatusOr<std::shared_ptr<CapturedGuest>> Capture(
      CaptureUse use, const agent::CallLimits& limits) = 0;
};

// Starts guests. Thread-safe; blocks while the kernel is loaded.
class GuestFactory {
 public:
  virtual ~GuestFactory() = default;
  virtual absl::StatusOr<std::unique_ptr<Guest>> Start(GuestConfig config) = 0;
  // Runs a copy of `captured` in `config.directory`, which is of no use
  // afterwards, until its agent has executed a program; has it sleep, and wakes
  // it for another. Returns the pages that it touched, about in that order:
  // what a copy, and one that wakes, is to have first. Empty where that cannot
  // be seen. Blocks.
  virtual absl::StatusOr<std::vector<base::PageRange>> Train(
      // NOLINTNEXTLINE(performance-unnecessary-value-param): to be moved from.
      GuestConfig /*config*/,
      const std::shared_ptr<CapturedGuest>& /*captured*/,
      const agent::CallLimits& /*limits*/) {
    return std::vector<base::PageRange>();
  }
  // Tells guest kernels and agents apart: an image is built for one of each.
  virtual absl::StatusOr<std::string> Identity() { return std::string(); }
  // Reads and checks every byte of a guest's state in `directory`.
  // Errors: DATA_LOSS, names what is damaged.
  virtual absl::Status Verify(const ImageRecord& /*image*/,
                              const std::filesystem::path& /*directory*/,
                              const agent::CallLimits& /*limits*/) {
    return absl::UnimplementedError("this kind of guest cannot be verified");
  }
  // Makes what `count` guests of the image need ahead of demand. Blocks.
  virtual absl::Status Prewarm(const ImageRecord& /*image*/, int /*count*/) {
    return absl::OkStatus();
  }
};

}  // namespace catnap::runtime

#endif  // CATNAP_LIB_RUNTIME_GUEST_H_
