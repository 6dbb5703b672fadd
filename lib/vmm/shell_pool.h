#ifndef CATNAP_LIB_VMM_SHELL_POOL_H_
#define CATNAP_LIB_VMM_SHELL_POOL_H_

#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "base/thread.h"
#include "kvm/system.h"
#include "vmm/machine.h"

namespace catnap::vmm {

// What a shell that waits costs the host, in bytes: kernel structures of VM
// and vCPUs, the touched part of a thread's stack, and the reverse map that a
// KVM with shadow page tables keeps for each page of guest memory. An upper
// estimate: lib/README.md has the measured values it comes from.
uint64_t ShellCostBytes(const ShellConfig& config);

// Makes shells ahead of demand and destroys machines behind it, on one worker
// thread, so that a launch pays for neither.
//
// How many it keeps follows demand: for each configuration as many as were
// taken in the current or the last interval, within max_bytes and max_waiting
// over all of them. A configuration that nobody asked for during two intervals
// is drained. The worker lets a burst of launches pass before it begins, or the
// last ones would wait for what it does for later ones.
//
// Thread safety: thread-safe.
class ShellPool {
 public:
  struct Options {
    // Over all waiting shells; 0 keeps none. A hundred for guests of 512 MiB.
    uint64_t max_bytes = 192 << 20;
    // Shells that wait at most. 0: as many as half of the descriptors that the
    // process may have now (RLIMIT_NOFILE) are enough for, so that what runs
    // has the others.
    uint64_t max_waiting = 0;
    std::chrono::milliseconds interval{10'000};
  };
  // How long no shell must have been taken before the worker begins, and after
  // which time since the first one it begins in any case.
  static constexpr std::chrono::milliseconds kRest{5};
  static constexpr std::chrono::milliseconds kLongestRest{500};

  struct Stats {
    uint64_t hits = 0;    // Take() found a shell.
    uint64_t misses = 0;  // Take() made one.
    uint64_t waiting = 0;
    uint64_t waiting_bytes = 0;
    // The last shell that could not be made ahead; OK when none failed since.
    absl::Status last_failure{};
  };

  // Errors: RESOURCE_EXHAUSTED (no thread).
  static absl::StatusOr<std::unique_ptr<ShellPool>> Create(
      std::shared_ptr<const kvm::System> system, Options options);
  // Destroys waiting shells and retired machines; joins the worker.
  ~ShellPool();
  ShellPool(const ShellPool&) = delete;
  ShellPool& operator=(const ShellPool&) = delete;

  // A shell nobody used before: a waiting one (microseconds), or one made now
  // (as long as Machine::CreateShell). Asks the worker for more.
  // Errors: as Machine::CreateShell.
  absl::StatusOr<std::unique_ptr<Machine>> Take(const ShellConfig& config);
  // Makes `count` shells wait, within max_bytes; returns when they do.
  // Errors: RESOURCE_EXHAUSTED when max_bytes or max_waiting does not hold them
  // (nothing is made then); as Machine::CreateShell.
  absl::Status Prewarm(const ShellConfig& config, uint64_t count);
  // Destroys `machine` on the worker. Does not wait.
  void Retire(std::unique_ptr<Machine> machine);
  // Blocks until the worker has nothing to do, which it does at once.
  void WaitIdle();

  Stats stats() const;

 private:
  struct Kind {
    ShellConfig config;
    std::deque<std::unique_ptr<Machine>> waiting;
    uint64_t taken_now = 0;   // In the current interval.
    uint64_t taken_last = 0;  // In the one before.
    uint64_t wanted() const { return std::max(taken_now, taken_last); }
  };

  ShellPool(std::shared_ptr<const kvm::System> system, Options options)
      : system_(std::move(system)), options_(options) {}
  void Work();
  // Until when the worker rests, if it does.
  std::optional<std::chrono::steady_clock::time_point> RestsUntilLocked() const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Returns whether it did something, with the mutex released meanwhile.
  bool WorkOnceLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool FillOneLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void EndIntervalLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Kind& KindLocked(const ShellConfig& config)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AddLocked(Kind& kind, std::unique_ptr<Machine> shell)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::unique_ptr<Machine> RemoveOneLocked(Kind& kind)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // How many more of that configuration may wait.
  uint64_t RoomLocked(const ShellConfig& config) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::shared_ptr<const kvm::System> system_;
  const Options options_;
  mutable base::Mutex mutex_;
  base::CondVar work_;
  base::CondVar idle_;
  // Few kinds: a host runs few sizes of guest. References stay valid.
  std::deque<Kind> kinds_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::unique_ptr<Machine>> retired_ ABSL_GUARDED_BY(mutex_);
  std::chrono::steady_clock::time_point interval_end_ ABSL_GUARDED_BY(mutex_);
  uint64_t waiting_ ABSL_GUARDED_BY(mutex_) = 0;  // Over all kinds.
  uint64_t waiting_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t hits_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t misses_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status last_failure_ ABSL_GUARDED_BY(mutex_);
  // Of the burst that the worker lets pass; none: it is served.
  std::optional<std::chrono::steady_clock::time_point> burst_begin_
      ABSL_GUARDED_BY(mutex_);
  std::chrono::steady_clock::time_point last_take_ ABSL_GUARDED_BY(mutex_);
  int waiters_ ABSL_GUARDED_BY(mutex_) = 0;  // For the worker.
  bool busy_ ABSL_GUARDED_BY(mutex_) = false;
  bool closing_ ABSL_GUARDED_BY(mutex_) = false;
  base::Thread worker_;  // Last: starts when all else is there.
};

}  // namespace catnap::vmm

#endif  // CATNAP_LIB_VMM_SHELL_POOL_H_
