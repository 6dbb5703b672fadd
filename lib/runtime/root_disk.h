#ifndef CATNAP_LIB_RUNTIME_ROOT_DISK_H_
#define CATNAP_LIB_RUNTIME_ROOT_DISK_H_

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <stop_token>

#include "absl/status/status.h"

namespace catnap::runtime {

inline constexpr uint64_t kMinRootDiskBytes = uint64_t{1} << 30;
inline constexpr uint64_t kMaxRootDiskBytes = uint64_t{1} << 40;

// What a root file system is made of.
struct RootSource {
  enum class Kind {
    kDirectory,
    kTar,  // Plain, or compressed with gzip, xz, zstd or bzip2.
  };
  // Whose the files are in the guest. kDefault: a tar's numbers, and those of
  // a directory, except that what belongs to an ordinary user who calls
  // becomes root's.
  enum class Owner { kDefault, kKeep, kRoot };

  Kind kind = Kind::kDirectory;
  std::filesystem::path path{};
  Owner owner = Owner::kDefault;
};

// More than this is RESOURCE_EXHAUSTED. None: what fits on the disk.
struct RootLimits {
  std::optional<uint64_t> max_bytes{};  // Of content, holes left out.
  std::optional<uint64_t> max_files{};
};

// When to give up.
struct RootCall {
  std::optional<std::chrono::steady_clock::time_point> deadline{};
  std::stop_token stop{};
};

// Makes `output` a thin raw image of `disk_bytes` with an ext4 file system that
// holds what `source` says. Appears whole and durable, in place of what was
// there, or not at all.
//
// The work is done by the program catnap-rootfs, which must be installed: a
// hostile archive can end that, not this process. It is looked for in the
// folder that the environment variable CATNAP_LIBEXEC_DIR names, or else where
// the library was installed or built. No SIGCHLD handler is needed, nor hurt.
//
// Blocks: about 0.2 s for 100 MB that are in the page cache, and the time of
// fsync. Holds seven descriptors meanwhile, and seven more while it starts the
// program. Thread-safe.
// Errors:
//   INVALID_ARGUMENT     `disk_bytes` (a multiple of 4096 from 1 GiB to 1 TiB);
//                        a file of the source that cannot be read, or not be in
//                        a tree (named)
//   NOT_FOUND            the source, or the folder of `output`
//   DATA_LOSS            the archive is damaged or cut off
//   RESOURCE_EXHAUSTED   the disk, the host's or a limit is too small
//   FAILED_PRECONDITION  catnap-rootfs is not there
//   DEADLINE_EXCEEDED, CANCELLED
//   UNAVAILABLE          the host failed, or the directory changed meanwhile
absl::Status BuildRootDisk(const RootSource& source,
                           const std::filesystem::path& output,
                           uint64_t disk_bytes, const RootLimits& limits = {},
                           const RootCall& call = {});

}  // namespace catnap::runtime

#endif  // CATNAP_LIB_RUNTIME_ROOT_DISK_H_
