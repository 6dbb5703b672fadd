#ifndef CATNAP_LIB_DISK_CLONE_FILE_H_
#define CATNAP_LIB_DISK_CLONE_FILE_H_

#include <string>

#include "absl/status/status.h"

namespace catnap::disk {

// How a file that is never written again comes to a second name.
enum class CopyMode {
  kLink,   // One file with two names, or a clone where that cannot be.
  kClone,  // Another file, which shares its blocks where the file system can.
};

// Makes the file `to` with the content of the regular file `from`: by FICLONE,
// which takes no time and no space, or else by copying what is not a hole. The
// content is durable afterwards, its name is not. Blocks.
// Errors: ALREADY_EXISTS; RESOURCE_EXHAUSTED, the disk; after all but the first
// there is no `to`.
absl::Status CloneFile(const std::string& from, const std::string& to);

// Brings `from` to the name `to` as well. Errors: as CloneFile().
absl::Status LinkOrCloneFile(const std::string& from, const std::string& to,
                             CopyMode mode);

}  // namespace catnap::disk

#endif  // CATNAP_LIB_DISK_CLONE_FILE_H_
