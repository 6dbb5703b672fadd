#ifndef CATNAP_LIB_IO_FILE_H_
#define CATNAP_LIB_IO_FILE_H_

#include <fcntl.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stop_token>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/unique_fd.h"

namespace catnap::io {

// Files, for threads that may block. All functions are thread-safe. Writes past
// RLIMIT_FSIZE fail with RESOURCE_EXHAUSTED, and the kernel sends SIGXFSZ to
// the calling thread; library threads block it.

// open(2), close-on-exec, not interrupted by signals. `mode` is used when
// `flags` create the file; the umask applies.
absl::StatusOr<base::UniqueFd> OpenFile(const std::string& path, int flags,
                                        mode_t mode = 0600);

// The same for a name in a directory that is open.
absl::StatusOr<base::UniqueFd> OpenFileAt(int directory,
                                          const std::string& name, int flags,
                                          mode_t mode = 0600);

// Transfers exactly `length` bytes at `offset`. An error leaves it open how
// much was transferred.
// Errors: OUT_OF_RANGE, the file ends before (ReadFully); RESOURCE_EXHAUSTED,
// disk, quota or RLIMIT_FSIZE (WriteFully).
absl::Status ReadFully(int fd, void* data, size_t length, uint64_t offset);
absl::Status WriteFully(int fd, const void* data, size_t length,
                        uint64_t offset);

// The content of a regular file (those of /proc included) of at most
// `max_bytes`. Never reads more than one byte beyond, whatever size the file
// claims, and never waits for the writer of a FIFO.
// Errors: NOT_FOUND; INVALID_ARGUMENT, larger than `max_bytes` or not a regular
// file.
absl::StatusOr<std::string> ReadFile(const std::string& path, size_t max_bytes);

// fsync(2) of a file or directory. After an error nothing is known of what was
// written before, and a second call may say OK all the same.
absl::Status FsyncFile(int fd);

// Gives the file `name` of the directory `from` the same name in the directory
// `to`: a hard link, or a copy where the file system has none, not between
// these two or no more of this file. Returns whether it is a link.
// Errors: CANCELLED, `stop` said so while copying; ALREADY_EXISTS; NOT_FOUND.
absl::StatusOr<bool> LinkOrCopy(int from, int to, const std::string& name,
                                const std::stop_token& stop);

// Makes created, renamed and removed names in the directory durable.
absl::Status FsyncDirectory(const std::string& path);

// A file that appears under its name whole and durable, or not at all. Until
// Commit() it has a temporary name in the same directory, and is removed by
// the destructor. A process that dies in between leaves the temporary file:
// IsTemporaryName() tells.
//
// Thread-compatible. Holds two descriptors.
class AtomicFile {
 public:
  // `path` is what Commit() creates or replaces. Its directory must exist.
  // Errors: INVALID_ARGUMENT, `path` names no file.
  static absl::StatusOr<std::unique_ptr<AtomicFile>> Create(
      const std::string& path, mode_t mode = 0600);
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile();

  // For reading and writing, also by others (an EventLoop) until Commit().
  int fd() const { return file_.get(); }

  // Writes after what earlier calls wrote. Blocks on the disk.
  absl::Status Append(const void* data, size_t length);

  // fsync, rename, fsync of the directory. At most once. When the last step
  // fails the file has its name, but a power failure may take it back; after
  // any other error the name stands as before.
  // Errors: FAILED_PRECONDITION, called before.
  absl::Status Commit();

  // Only the rename: whole for whoever looks, but not durable until somebody
  // makes the file and its directory so. At most one of the two, once.
  // Errors: as Commit().
  absl::Status CommitLater();

  // Whether `name` (without folders) is one that this class gives to files that
  // are not committed yet.
  static bool IsTemporaryName(std::string_view name);

 private:
  absl::Status BeginCommit();
  absl::Status Rename();
  AtomicFile(std::string path, std::string name, std::string temporary_name,
             base::UniqueFd directory, base::UniqueFd file)
      : path_(std::move(path)),
        name_(std::move(name)),
        temporary_name_(std::move(temporary_name)),
        directory_(std::move(directory)),
        file_(std::move(file)) {}

  const std::string path_;
  const std::string name_;
  std::string temporary_name_;  // Empty once there is nothing to remove.
  const base::UniqueFd directory_;
  const base::UniqueFd file_;
  bool commit_tried_ = false;
  uint64_t appended_bytes_ = 0;
};

}  // namespace catnap::io

#endif  // CATNAP_LIB_IO_FILE_H_
