#ifndef CATNAP_LIB_ROOTFS_OWNER_H_
#define CATNAP_LIB_ROOTFS_OWNER_H_

#include <cstdint>

#include "rootfs/ext4_image.h"

namespace catnap::rootfs {

// Whose the files are inside. kCaller: what belongs to the user `caller`
// becomes root's, with root's group, as when an ordinary user unpacked it.
enum class OwnerRule { kKeep, kRoot, kCaller };

struct Owners {
  OwnerRule rule = OwnerRule::kKeep;
  uint32_t caller = 0;

  void Apply(Attributes* attributes) const {
    if (rule == OwnerRule::kRoot ||
        (rule == OwnerRule::kCaller && attributes->uid == caller)) {
      attributes->uid = 0;
      attributes->gid = 0;
    }
  }
};

}  // namespace catnap::rootfs

#endif  // CATNAP_LIB_ROOTFS_OWNER_H_
