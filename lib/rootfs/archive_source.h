#ifndef CATNAP_LIB_ROOTFS_ARCHIVE_SOURCE_H_
#define CATNAP_LIB_ROOTFS_ARCHIVE_SOURCE_H_

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "rootfs/owner.h"
#include "rootfs/tree.h"

namespace catnap::rootfs {

// Adds the content of a tar archive (ustar, GNU or pax; plain or compressed
// with gzip, xz, zstd or bzip2) to `tree`, entry by entry in its order.
// Owners are the archive's numbers. Names in pax headers need a UTF-8 locale.
//
// Errors name the entry: INVALID_ARGUMENT, an entry that cannot be in the
// tree; DATA_LOSS, the archive is damaged, cut off or none; those of Tree.
//
// Reads `fd`, which is borrowed, from its position to the end.
absl::Status AddArchive(int fd, const Owners& owners, Tree* tree);
absl::Status AddArchive(std::span<const uint8_t> bytes, const Owners& owners,
                        Tree* tree);

}  // namespace catnap::rootfs

#endif  // CATNAP_LIB_ROOTFS_ARCHIVE_SOURCE_H_
