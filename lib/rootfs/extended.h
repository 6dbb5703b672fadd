#ifndef CATNAP_LIB_ROOTFS_EXTENDED_H_
#define CATNAP_LIB_ROOTFS_EXTENDED_H_

#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "rootfs/ext4_image.h"

namespace catnap::rootfs {

// Whether a guest of ours makes use of the extended attribute `name`. Others,
// such as those of a security module, are left out.
bool IsKeptAttribute(std::string_view name);

// Checks one attribute that is kept and puts it into `attributes`; the last of
// a name wins.
// Errors: INVALID_ARGUMENT, ext4 cannot hold it, or it is no access control
// list as Linux writes one.
absl::Status AddExtended(std::string_view name, std::string_view value,
                         Attributes* attributes);

// An entry of an access control list.
struct AclEntry {
  uint16_t tag = 0;          // As in Linux's extended attributes.
  uint16_t permissions = 0;  // rwx, 7
  uint32_t id = 0;           // Of kAclUser and kAclGroup.
};
inline constexpr uint16_t kAclUserObject = 0x01;
inline constexpr uint16_t kAclUser = 0x02;
inline constexpr uint16_t kAclGroupObject = 0x04;
inline constexpr uint16_t kAclGroup = 0x08;
inline constexpr uint16_t kAclMask = 0x10;
inline constexpr uint16_t kAclOther = 0x20;

// Puts a list into `attributes`, in the order that Linux wants, as the one for
// access or the default one of a directory.
// Errors: as AddExtended().
absl::Status AddAcl(bool is_default, std::vector<AclEntry> entries,
                    Attributes* attributes);

}  // namespace catnap::rootfs

#endif  // CATNAP_LIB_ROOTFS_EXTENDED_H_
