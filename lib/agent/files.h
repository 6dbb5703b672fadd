#ifndef CATNAP_LIB_AGENT_FILES_H_
#define CATNAP_LIB_AGENT_FILES_H_

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "agent/client.h"
#include "agent/messages.h"

namespace catnap::agent {

// File operations in the guest. `done` is called once, with no lock held; when
// the connection is gone, before the call returns. Errors beside those of the
// connection, all with kGuestPath: NOT_FOUND, ALREADY_EXISTS,
// PERMISSION_DENIED, RESOURCE_EXHAUSTED (the guest's disk), OUT_OF_RANGE (more
// than was asked for), FAILED_PRECONDITION (whatever else the guest says).
template <typename T>
using FileDone = absl::AnyInvocable<void(absl::StatusOr<T>) &&>;
using FileStatus = absl::AnyInvocable<void(absl::Status) &&>;

void ReadFile(Client* client, const std::string& path, uint64_t max_bytes,
              const CallLimits& limits, FileDone<std::string> done);
// Makes the file or replaces its content; not atomic.
void WriteFile(Client* client, const std::string& path, std::string data,
               uint32_t mode, const CallLimits& limits, FileStatus done);
void Stat(Client* client, const std::string& path, const CallLimits& limits,
          FileDone<FileEntry> done);
void ListDirectory(Client* client, const std::string& path, size_t max_entries,
                   const CallLimits& limits,
                   FileDone<std::vector<FileEntry>> done);
// Makes parents too; a directory that is there is no error.
void MakeDirectory(Client* client, const std::string& path, uint32_t mode,
                   const CallLimits& limits, FileStatus done);
void Remove(Client* client, const std::string& path, bool recursive,
            const CallLimits& limits, FileStatus done);

struct TreeLimits {
  uint64_t max_bytes = uint64_t{8} << 30;  // Holes count, too.
  uint64_t max_files = 1'000'000;
};

// Trees: they block and read or write the host's files on the caller's thread,
// so that a slow disk holds nobody else up. REQUIRES: not called by a handler.
//
// CopyIn copies a file or a tree to the guest path `to`: modes, owners, times,
// symbolic and hard links, holes; no devices, sockets or pipes.
absl::Status CopyIn(Client* client, const std::filesystem::path& from,
                    const std::string& to, TreeLimits limits,
                    const CallLimits& call);
// CopyOut trusts nothing of what the guest sends: files, directories and links
// are made below `to` without following links, symbolic links that lead out are
// left out, set-id bits are dropped, the owner is the caller.
// Errors also: OUT_OF_RANGE (limits), UNAVAILABLE (the guest broke the rules).
absl::Status CopyOut(Client* client, const std::string& from,
                     const std::filesystem::path& to, TreeLimits limits,
                     const CallLimits& call);

// A guest's result as a status.
absl::Status FileStatusOf(const FileResult& result);

}  // namespace catnap::agent

#endif  // CATNAP_LIB_AGENT_FILES_H_
