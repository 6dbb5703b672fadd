#ifndef CATNAP_LIB_RUNTIME_DIRECTORY_COPY_H_
#define CATNAP_LIB_RUNTIME_DIRECTORY_COPY_H_

#include <cstdint>
#include <filesystem>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "agent/client.h"

namespace catnap::runtime {

// Copies the regular files of `from` and of the directories in it into `to`,
// which exists and is empty, and syncs them. Clones where the file system can;
// holes stay holes. Anything but files and directories is refused. Blocks.
// Errors: INVALID_ARGUMENT, what it refuses; RESOURCE_EXHAUSTED; CANCELLED,
// DEADLINE_EXCEEDED.
absl::Status CopyDirectory(const std::filesystem::path& from,
                           const std::filesystem::path& to,
                           const agent::CallLimits& limits);

// The same by hard links, where both are on one file system; what is there must
// not be written to any more.
absl::Status LinkDirectory(const std::filesystem::path& from,
                           const std::filesystem::path& to);

// Bytes that all files below occupy.
uint64_t OccupiedBytes(const std::filesystem::path& directory);

}  // namespace catnap::runtime

#endif  // CATNAP_LIB_RUNTIME_DIRECTORY_COPY_H_
