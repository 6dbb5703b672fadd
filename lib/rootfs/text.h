#ifndef CATNAP_LIB_ROOTFS_TEXT_H_
#define CATNAP_LIB_ROOTFS_TEXT_H_

#include <string>
#include <string_view>

namespace catnap::rootfs {

// A name or text of the source as it may stand in a message: one line without
// control characters, cut when it is long.
std::string Quote(std::string_view text);

}  // namespace catnap::rootfs

#endif  // CATNAP_LIB_ROOTFS_TEXT_H_
