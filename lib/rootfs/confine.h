#ifndef CATNAP_LIB_ROOTFS_CONFINE_H_
#define CATNAP_LIB_ROOTFS_CONFINE_H_

#include "absl/status/status.h"

namespace catnap::rootfs {

// What the program may still do once its files are open.
struct Confinement {
  bool reads_directory = false;  // May open files, for reading.
};

// Takes from this process what it needs no more: gaining privileges, dumping
// core, more memory than the work takes, changing any file that is not open,
// and all system calls but those of reading and writing (the others fail with
// EPERM). Kernels without Landlock or seccomp go without that part.
// Errors: UNAVAILABLE, the kernel has the means and refused.
absl::Status Confine(const Confinement& confinement);

}  // namespace catnap::rootfs

#endif  // CATNAP_LIB_ROOTFS_CONFINE_H_
