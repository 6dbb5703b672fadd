#ifndef CATNAP_LIB_ROOTFS_EXIT_CODE_H_
#define CATNAP_LIB_ROOTFS_EXIT_CODE_H_

namespace catnap::rootfs {

// How catnap-rootfs ends. The library that starts it knows the numbers
// (runtime/root_disk.cc), and so may others.
enum class ExitCode {
  kDone = 0,
  kUsage = 2,
  kBadSource = 3,      // The source cannot be read, or not be put into ext4.
  kNoSpace = 4,        // Of the disk, the host's or a limit.
  kIoFailed = 5,       // The host failed, or the source changed.
  kDamagedSource = 6,  // The archive is damaged, cut off or none.
};

}  // namespace catnap::rootfs

#endif  // CATNAP_LIB_ROOTFS_EXIT_CODE_H_
