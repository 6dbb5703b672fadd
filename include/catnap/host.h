#ifndef CATNAP_HOST_H_
#define CATNAP_HOST_H_

#include <string>

#include "absl/status/status.h"
#include "catnap/errors.h"
#include "catnap/export.h"

namespace catnap {

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

class CATNAP_EXPORT Host {
 public:
  // Looks at this machine: opens /dev/kvm, runs two tiny guests on it, and
  // tries the kernel interfaces that make the library fast.
  //
  // Thread-safe. Blocks for tens of milliseconds, 5 s at the very most (a KVM
  // that never answers the tiny guests). Leaves nothing behind: descriptors
  // are closed, threads joined, the temporary files it makes removed.
  static HostReport Probe();
};

}  // namespace catnap

#endif  // CATNAP_HOST_H_
