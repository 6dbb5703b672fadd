#ifndef CATNAP_LIB_ROOTFS_DIRECTORY_SOURCE_H_
#define CATNAP_LIB_ROOTFS_DIRECTORY_SOURCE_H_

#include "absl/status/status.h"
#include "rootfs/owner.h"
#include "rootfs/tree.h"

namespace catnap::rootfs {

// Adds what lies under the directory behind `fd`, which is borrowed, to
// `tree`, in the order of names. Symbolic links are not followed. A directory
// that something is mounted on comes without that, empty; sockets are left
// out. Holes of files stay holes.
//
// Errors name the file: INVALID_ARGUMENT, it cannot be read or cannot be in
// the tree; UNAVAILABLE, it changed meanwhile; those of Tree.
absl::Status AddDirectoryTree(int fd, const Owners& owners, Tree* tree);

}  // namespace catnap::rootfs

#endif  // CATNAP_LIB_ROOTFS_DIRECTORY_SOURCE_H_
