#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <string_view>
#include <unordered_set>
#include <utility>
#include <vector>

#include "agent/files.h"
#include "agent/tree_stream.h"
#include "base/status.h"
#include "base/unique_fd.h"

namespace catnap::agent {
namespace {

absl::Status Broken(const char* what) {
  return Error(absl::StatusCode::kUnavailable, "guest agent: tree with {}",
               what);
}

// Components that are names and nothing else.
bool IsPlainPath(std::string_view path) {
  if (path.find('\0') != std::string_view::npos) return false;
  while (true) {
    const size_t slash = path.find('/');
    const std::string_view name = path.substr(0, slash);
    if (name.empty() || name == "." || name == ".." || name.size() > NAME_MAX) {
      return false;
    }
    if (slash == std::string_view::npos) return true;
    path.remove_prefix(slash + 1);
  }
}

// Whether a symbolic link at `path` leads nowhere outside. Only leading ".."
// are taken: the link's own folders are real ones, but what comes later in the
// target may be a link itself.
bool StaysInside(std::string_view path, std::string_view target) {
  if (target.empty() || target.front() == '/') return false;
  auto depth = std::count(path.begin(), path.end(), '/');
  bool leading = true;
  while (!target.empty()) {
    const size_t slash = target.find('/');
    const std::string_view name = target.substr(0, slash);
    target.remove_prefix(slash == std::string_view::npos ? target.size()
                                                         : slash + 1);
    if (name == "..") {
      if (!leading || depth-- == 0) return false;
    } else if (!name.empty() && name != ".") {
      leading = false;
    }
  }
  return true;
}

// Makes what a hostile guest describes.
class TreeWriter {
 public:
  TreeWriter(std::filesystem::path to, TreeLimits limits)
      : to_(std::move(to)), limits_(limits) {}

  absl::Status Add(const FileEntry& entry) {
    if (entry.type == EntryType::kContent) return PutContent(entry);
    file_.Reset();
    if (++files_ > limits_.max_files) {
      return Error(absl::StatusCode::kOutOfRange,
                   "the guest's tree has more than {} files, the limit",
                   limits_.max_files);
    }
    if (files_ == 1) return AddRoot(entry);
    if (!root_.valid() || !IsPlainPath(entry.path)) {
      return Broken("a path that leads elsewhere");
    }
    const size_t slash = entry.path.rfind('/');
    const std::string parent =
        slash == std::string::npos ? "." : entry.path.substr(0, slash);
    const std::string name = entry.path.substr(slash + 1);
    CATNAP_ASSIGN_OR_RETURN(const base::UniqueFd folder, OpenFolder(parent));
    return Make(folder.get(), name, entry);
  }

  // Directories get their modes when nothing more is made in them.
  absl::Status Finish() {
    file_.Reset();
    if (files_ == 0) return Broken("no root");
    for (auto at = modes_.rbegin(); at != modes_.rend(); ++at) {
      CATNAP_ASSIGN_OR_RETURN(const base::UniqueFd folder,
                              OpenFolder(at->first, O_RDONLY));
      if (::fchmod(folder.get(), at->second) != 0) {
        return ErrnoError(errno, "chmod {}", at->first);
      }
    }
    return absl::OkStatus();
  }

 private:
  absl::Status AddRoot(const FileEntry& entry) {
    if (!entry.path.empty()) return Broken("no root");
    if (entry.type == EntryType::kDirectory) {
      if (::mkdir(to_.c_str(), 0755) != 0 && errno != EEXIST) {
        return ErrnoError(errno, "mkdir {}", to_.string());
      }
      // The caller's own path: links in it are the caller's.
      root_ = base::UniqueFd(
          ::open(to_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
      if (!root_.valid()) return ErrnoError(errno, "open {}", to_.string());
      return absl::OkStatus();
    }
    const std::filesystem::path parent = to_.parent_path();
    const base::UniqueFd folder(::open(parent.empty() ? "." : parent.c_str(),
                                       O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!folder.valid()) return ErrnoError(errno, "open {}", parent.string());
    return Make(folder.get(), to_.filename().string(), entry);
  }

  absl::StatusOr<base::UniqueFd> OpenFolder(const std::string& path,
                                            int flags = O_PATH) {
    open_how how{};
    how.flags = static_cast<uint64_t>(flags | O_DIRECTORY | O_CLOEXEC);
    how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS;
    const auto fd =
        ::syscall(SYS_openat2, root_.get(), path.c_str(), &how, sizeof(how));
    if (fd < 0) return ErrnoError(errno, "open {} in {}", path, to_.string());
    return base::UniqueFd(static_cast<int>(fd));
  }

  absl::Status Make(int folder, const std::string& name,
                    const FileEntry& entry) {
    const mode_t mode = entry.mode & 0777;
    int result = 0;
    switch (entry.type) {
      case EntryType::kDirectory:
        result = ::mkdirat(folder, name.c_str(), 0700);
        if (result != 0 && errno == EEXIST) {
          struct stat info {};
          result = ::fstatat(folder, name.c_str(), &info, AT_SYMLINK_NOFOLLOW);
          if (result == 0 && !S_ISDIR(info.st_mode)) {
            errno = ENOTDIR;
            result = -1;
          }
        }
        modes_.emplace_back(entry.path, mode);
        break;
      case EntryType::kFile:
        return MakeFile(folder, name, entry, mode);
      case EntryType::kSymlink:
        if (!StaysInside(entry.path, entry.link)) return absl::OkStatus();
        Clear(folder, name);
        result = ::symlinkat(entry.link.c_str(), folder, name.c_str());
        break;
      case EntryType::kHardLink:
        return MakeHardLink(folder, name, entry);
      default:
        return Broken("a device");
    }
    if (result != 0) return ErrnoError(errno, "make {}", entry.path);
    return absl::OkStatus();
  }

  absl::Status MakeFile(int folder, const std::string& name,
                        const FileEntry& entry, mode_t mode) {
    size_ = entry.size;
    if (entry.size > limits_.max_bytes - bytes_) {
      return Error(absl::StatusCode::kOutOfRange,
                   "the guest's tree has more than {} bytes, the limit",
                   limits_.max_bytes);
    }
    bytes_ += entry.size;
    Clear(folder, name);
    file_ = base::UniqueFd(
        ::openat(folder, name.c_str(),
                 O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
    if (!file_.valid() ||
        ::ftruncate(file_.get(), static_cast<off_t>(entry.size)) != 0 ||
        ::fchmod(file_.get(), mode) != 0) {
      return ErrnoError(errno, "make {}", entry.path);
    }
    made_.insert(entry.path);
    return PutContent(entry);
  }

  // Only to a file that this copy made.
  absl::Status MakeHardLink(int folder, const std::string& name,
                            const FileEntry& entry) {
    if (!made_.contains(entry.link)) return Broken("a link to nothing");
    const size_t slash = entry.link.rfind('/');
    CATNAP_ASSIGN_OR_RETURN(
        const base::UniqueFd from,
        OpenFolder(slash == std::string::npos ? "."
                                              : entry.link.substr(0, slash)));
    const std::string first = entry.link.substr(slash + 1);
    Clear(folder, name);
    if (::linkat(from.get(), first.c_str(), folder, name.c_str(), 0) != 0) {
      return ErrnoError(errno, "link {}", entry.path);
    }
    return absl::OkStatus();
  }

  // A file that is in the way. A directory stays, and is an error later.
  static void Clear(int folder, const std::string& name) {
    ::unlinkat(folder, name.c_str(), 0);
  }

  absl::Status PutContent(const FileEntry& entry) {
    if (entry.data.empty()) return absl::OkStatus();
    // A file may not grow beyond what was counted.
    if (!file_.valid() || entry.offset > size_ ||
        entry.data.size() > size_ - entry.offset) {
      return Broken("content outside its file");
    }
    std::string_view data = entry.data;
    auto offset = static_cast<off_t>(entry.offset);
    while (!data.empty()) {
      const ssize_t written =
          ::pwrite(file_.get(), data.data(), data.size(), offset);
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) return ErrnoError(errno, "write in {}", to_.string());
      data.remove_prefix(static_cast<size_t>(written));
      offset += written;
    }
    return absl::OkStatus();
  }

  const std::filesystem::path to_;
  const TreeLimits limits_;
  base::UniqueFd root_;
  base::UniqueFd file_;  // What content is for.
  uint64_t size_ = 0;    // Of file_.
  uint64_t files_ = 0;
  uint64_t bytes_ = 0;
  std::unordered_set<std::string> made_;
  std::vector<std::pair<std::string, mode_t>> modes_;
};

absl::Status Receive(TreeStream* stream, TreeWriter* writer) {
  RecordReader records;
  uint64_t count = 0;
  for (;;) {
    const Encoded bytes = stream->Read();
    if (bytes.empty()) break;
    records.Feed(bytes);
    while (const auto fields = records.Next()) {
      FileEntry entry;
      if (!Decode(*fields, &entry)) return Broken("a malformed entry");
      // Entries without content must not keep us for ever: they are files,
      // which are counted.
      if (entry.type == EntryType::kContent && entry.data.empty()) {
        return Broken("an empty entry");
      }
      CATNAP_RETURN_IF_ERROR(writer->Add(entry));
      ++count;
    }
    if (!records.ok()) return Broken("a record too long");
  }
  CATNAP_RETURN_IF_ERROR(stream->Wait());
  if (!records.empty() || count == 0) return Broken("its end missing");
  return writer->Finish();
}

}  // namespace

absl::Status CopyOut(Client* client, const std::string& from,
                     const std::filesystem::path& to, TreeLimits limits,
                     const CallLimits& call) {
  CATNAP_ASSIGN_OR_RETURN(const auto stream,
                          TreeStream::Open(client, Kind::kTreeOut,
                                           {.path = from,
                                            .max_bytes = limits.max_bytes,
                                            .max_files = limits.max_files},
                                           call));
  TreeWriter writer(to, limits);
  absl::Status status = Receive(stream.get(), &writer);
  if (!status.ok()) stream->Cancel();
  return status;
}

}  // namespace catnap::agent
