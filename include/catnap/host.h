#ifndef CATNAP_HOST_H_
#define CATNAP_HOST_H_

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "catnap/call.h"
#include "catnap/errors.h"
#include "catnap/executor.h"
#include "catnap/export.h"
#include "catnap/image.h"
#include "catnap/log.h"
#include "catnap/microvm.h"
#include "catnap/snapshot.h"

namespace catnap {

namespace runtime {
class HostCore;
}

// What this machine can do for the library. Plain data.
struct HostReport {
  bool kvm = false;             // /dev/kvm opens and has what we need.
  bool kvm_runs_linux = false;  // A tiny guest went to user mode and back.
  // userfaultfd delivered a page that KVM missed: lazily restored guests. Else
  // memory is loaded before a guest runs.
  bool userfaultfd = false;
  // The kernel lists a guest's own pages by PAGEMAP_SCAN (Linux 6.7). Else
  // /proc/self/pagemap is read, at a higher cost.
  bool pagemap_scan = false;
  // Files in the directory for temporary files ($TMPDIR, else /tmp) can be
  // cloned (FICLONE: XFS with reflink, btrfs). A state directory on another
  // file system may answer otherwise. Else files are copied.
  bool reflink = false;
  bool io_uring = false;  // Else files are served by a few threads.
  // OK, or what starting a MicroVM would say here:
  //   FAILED_PRECONDITION  kNoKvmDevice, kNoKvmPermission, or
  //                        kKvmCannotRunLinux
  //   RESOURCE_EXHAUSTED   no descriptors or memory left for the check
  absl::Status usable{};
  // One paragraph that a person can act on: what is there, what is missing,
  // what follows from it, and the descriptor and mapping limits.
  std::string summary{};
};

struct HostOptions {
  // Where MicroVMs keep their disks and snapshots; made when missing, with mode
  // 0700, and used by one process at a time. Empty: a private temporary
  // directory, which Close() removes, with all MicroVMs.
  std::filesystem::path state_dir{};
  // Where images are kept; shared by any number of processes. Empty:
  // state_dir/"images".
  std::filesystem::path image_dir{};
  // An ELF vmlinux or a bzImage that has the drivers of our guest kernel built
  // in. Empty: the guest kernel installed with the library.
  std::filesystem::path kernel{};
  // The two quotas are UNIMPLEMENTED when set, in this version.
  uint64_t memory_quota_bytes = 0;
  uint64_t storage_quota_bytes = 0;
  int io_threads = 0;  // Event loops, 1 to 64; 0: min(2, CPUs).
  // Of what is stored of guests' memory: zstd, -7 (fast) to 19 (small). Images,
  // which are stored once and read often, have 10 at least: a sixth smaller
  // than 1 and as fast to read, for 13 ms more of a CPU for each MiB of memory.
  int compression_level = 1;
  // Real-time signal for vCPU kicks, which the library blocks in its vCPU
  // threads only; 0: SIGRTMIN + 6.
  int kick_signal = 0;
  std::shared_ptr<LogSink> log{};        // Null: silent.
  std::shared_ptr<Executor> executor{};  // Runs callbacks; null: one thread.
};

// What becomes of MicroVMs that run. Ephemeral ones end in any case; what
// sleeps sleeps on.
enum class AtClose { kSuspend, kTerminate };
struct CloseOptions {
  AtClose running = AtClose::kSuspend;
  Millis timeout{30'000};  // For all suspends together, and for callbacks.
};

// Which objects to list; what is not set matches all.
struct Filter {
  std::optional<std::string> image{};  // By name.
  Labels labels{};                     // All of these.
};

// Owns the MicroVMs of one state directory, and the threads that serve them.
//
// Thread-safe. Objects of one Host cannot be used with another.
class CATNAP_EXPORT Host {
 public:
  // Errors:
  //   INVALID_ARGUMENT     an option, by name
  //   FAILED_PRECONDITION  kStateDirInUse, another process has state_dir
  //   PERMISSION_DENIED    a directory cannot be made or written
  //   RESOURCE_EXHAUSTED   threads, descriptors
  // Works where KVM does not: MicroVM::Run() then says why. Blocks for
  // milliseconds. MicroVMs that sleep in state_dir are listed kSuspended, and
  // those that ran when their process died as RunOptions::after_crash says.
  // What cannot be read, or whose image is gone, is logged and left alone.
  static absl::StatusOr<std::shared_ptr<Host>> Open(HostOptions options);

  // Looks at this machine: opens /dev/kvm, runs two tiny guests on it, and
  // tries the kernel interfaces that make the library fast.
  //
  // Thread-safe. Blocks for tens of milliseconds, 5 s at the very most (a KVM
  // that never answers the tiny guests). Leaves nothing behind: descriptors
  // are closed, threads joined, the temporary files it makes removed.
  static HostReport Probe();

  // All versions in image_dir, by name and version. Unreadable ones are left
  // out and logged. Reads the disk.
  std::vector<Image> ListImages() const;
  // Default: the newest version. Errors: NOT_FOUND; DATA_LOSS.
  absl::StatusOr<Image> GetImage(std::string_view name,
                                 std::string_view version = {}) const;
  // By id. Those that ended stay listed for 20 minutes, at most 1,000.
  std::vector<MicroVM> ListMicroVMs(const Filter& filter = {}) const;
  // Errors: NOT_FOUND.
  absl::StatusOr<MicroVM> GetMicroVM(std::string_view id) const;

  // Those with a name, and those that somebody has a handle of.
  std::vector<Snapshot> ListSnapshots(const Filter& filter = {}) const;
  // Errors: NOT_FOUND.
  absl::StatusOr<Snapshot> GetSnapshot(std::string_view id_or_name) const;
  // Makes ahead of demand what `count` machines of the image need, so that
  // MicroVM::Run() is as fast as it can be: all of the image's memory, and
  // machines that wait, with which the kernel's memory for them counts (1.5 MiB
  // each for 512 MiB and one processor). Blocks.
  // Errors: INVALID_ARGUMENT; RESOURCE_EXHAUSTED, all that wait would take more
  // than 192 MiB or half of RLIMIT_NOFILE, and none was made; as
  // MicroVM::Run().
  absl::Status Prewarm(const Image& image, int count);

  // Suspends or ends what runs, ends every call, and joins all threads. Calls
  // that wait return CANCELLED with kHostClosed. Idempotent; ~Host() is
  // Close({}). The Host is closed whatever is returned.
  // Errors: why a MicroVM could not be suspended, such as RESOURCE_EXHAUSTED
  // or DEADLINE_EXCEEDED: it is left as RunOptions::after_crash says.
  // DEADLINE_EXCEEDED, callbacks still run after `timeout`: what they need is
  // kept until they return.
  absl::Status Close(CloseOptions options = {});
  ~Host();
  Host(const Host&) = delete;
  Host& operator=(const Host&) = delete;

 private:
  friend class runtime::HostCore;
  explicit Host(std::shared_ptr<runtime::HostCore> core);
  const std::shared_ptr<runtime::HostCore> core_;
};

}  // namespace catnap

#endif  // CATNAP_HOST_H_
