#include "rootfs/directory_source.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "base/unique_fd.h"
#include "rootfs/extended.h"
#include "rootfs/text.h"

namespace catnap::rootfs {
namespace {

constexpr size_t kReadBytes = 1 << 20;
// What Linux lets the list of a file's attributes, or one of them, have.
constexpr size_t kMaxExtendedBytes = 64 << 10;

absl::Status CannotRead(int error, const char* what) {
  return Error(absl::StatusCode::kInvalidArgument, "{}: {}", what,
               ErrnoText(error));
}

struct CloseDirectory {
  void operator()(DIR* directory) const { ::closedir(directory); }
};

class DirectoryWalk {
 public:
  DirectoryWalk(int root, const Owners& owners, Tree* tree)
      : root_(root), owners_(owners), tree_(tree), buffer_(kReadBytes) {}

  absl::Status Run() {
    // Paths and not descriptors wait here: trees may be deeper than the
    // process may have files open.
    std::vector<std::string> waiting = {"."};
    while (!waiting.empty()) {
      const std::string path = std::move(waiting.back());
      waiting.pop_back();
      if (const absl::Status status = Visit(path, &waiting); !status.ok()) {
        return AddContext(status, Quote(current_));
      }
    }
    return absl::OkStatus();
  }

 private:
  // openat2(2) from `from`: never out of it, nor through a symbolic link.
  static base::UniqueFd Open(int from, const std::string& path, uint64_t flags,
                             uint64_t resolve) {
    open_how how{};
    how.flags = flags | O_CLOEXEC | O_NOFOLLOW;
    how.resolve = resolve | RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS;
    long fd = -1;  // NOLINT(google-runtime-int): what syscall() returns.
    do {
      fd = ::syscall(SYS_openat2, from, path.c_str(), &how, sizeof(how));
    } while (fd < 0 && (errno == EINTR || errno == EAGAIN));
    return base::UniqueFd(static_cast<int>(fd));
  }

  absl::Status Visit(const std::string& path,
                     std::vector<std::string>* waiting) {
    current_ = path;
    const base::UniqueFd fd =
        Open(root_, path, O_RDONLY | O_DIRECTORY, RESOLVE_NO_XDEV);
    if (!fd.valid() && errno == EXDEV) {
      // What can be seen here is what is mounted, not what is under it.
      return tree_->AddDirectory(path, {});
    }
    if (!fd.valid()) return CannotRead(errno, "open");
    struct stat info {};
    if (::fstat(fd.get(), &info) != 0) return CannotRead(errno, "stat");
    CATNAP_ASSIGN_OR_RETURN(Attributes attributes,
                            ReadAttributes(info, fd.get()));
    CATNAP_RETURN_IF_ERROR(tree_->AddDirectory(path, std::move(attributes)));
    CATNAP_ASSIGN_OR_RETURN(const std::vector<std::string> names,
                            ReadNames(fd.get()));
    const size_t first = waiting->size();
    for (const std::string& name : names) {
      current_ = path == "." ? name : fmt::format("{}/{}", path, name);
      CATNAP_RETURN_IF_ERROR(AddChild(fd.get(), name, waiting));
    }
    // Taken from the end, they come in the order of names.
    std::reverse(waiting->begin() + static_cast<ptrdiff_t>(first),
                 waiting->end());
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<std::string>> ReadNames(int fd) {
    base::UniqueFd own(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
    if (!own.valid()) return CannotRead(errno, "open");
    const std::unique_ptr<DIR, CloseDirectory> list(::fdopendir(own.get()));
    if (list == nullptr) return CannotRead(errno, "list");
    own.Release();
    std::vector<std::string> names;
    while (true) {
      errno = 0;
      // One thread, and a stream of its own.
      // NOLINTNEXTLINE(concurrency-mt-unsafe)
      const dirent* entry = ::readdir(list.get());
      if (entry == nullptr) break;
      std::string name = entry->d_name;
      if (name != "." && name != "..") names.push_back(std::move(name));
    }
    if (errno != 0) return CannotRead(errno, "list");
    std::sort(names.begin(), names.end());
    return names;
  }

  absl::Status AddChild(int parent, const std::string& name,
                        std::vector<std::string>* waiting) {
    struct stat info {};
    if (::fstatat(parent, name.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0) {
      return CannotRead(errno, "stat");
    }
    if (S_ISDIR(info.st_mode)) {
      waiting->push_back(current_);
      return absl::OkStatus();
    }
    if (S_ISSOCK(info.st_mode)) return absl::OkStatus();
    if (info.st_nlink > 1) {
      const auto [first, is_new] =
          linked_.try_emplace(std::pair(info.st_dev, info.st_ino), current_);
      if (!is_new) return tree_->AddHardLink(current_, first->second);
    }
    if (S_ISREG(info.st_mode)) return AddFile(parent, name, info);
    // Extended attributes of such files mean nothing in another machine.
    CATNAP_ASSIGN_OR_RETURN(const Attributes attributes,
                            ReadAttributes(info, kNoDescriptor));
    if (S_ISLNK(info.st_mode)) {
      const ssize_t length =
          ::readlinkat(parent, name.c_str(),
                       reinterpret_cast<char*>(buffer_.data()), buffer_.size());
      if (length < 0) return CannotRead(errno, "read the link");
      return tree_->AddLink(current_,
                            {reinterpret_cast<const char*>(buffer_.data()),
                             static_cast<size_t>(length)},
                            attributes);
    }
    return tree_->AddSpecial(
        current_, static_cast<uint16_t>(info.st_mode & S_IFMT),
        major(info.st_rdev), minor(info.st_rdev), attributes);
  }

  absl::Status AddFile(int parent, const std::string& name,
                       const struct stat& seen) {
    // Not blocking: what it was may have become a FIFO. A file that is mounted
    // over another is taken as it is seen.
    const base::UniqueFd fd = Open(parent, name, O_RDONLY | O_NONBLOCK, 0);
    if (!fd.valid()) return CannotRead(errno, "open");
    struct stat info {};
    if (::fstat(fd.get(), &info) != 0) return CannotRead(errno, "stat");
    if (!S_ISREG(info.st_mode) || info.st_ino != seen.st_ino) return Changed();
    CATNAP_ASSIGN_OR_RETURN(const Attributes attributes,
                            ReadAttributes(info, fd.get()));
    CATNAP_RETURN_IF_ERROR(tree_->BeginFile(current_));
    const auto size = static_cast<uint64_t>(info.st_size);
    CATNAP_RETURN_IF_ERROR(AddContent(fd.get(), size));
    return tree_->EndFile(size, attributes);
  }

  absl::Status AddContent(int fd, uint64_t size) {
    uint64_t at = 0;
    uint64_t data_end = 0;
    while (at < size) {
      if (at >= data_end) {
        const off_t data = ::lseek(fd, static_cast<off_t>(at), SEEK_DATA);
        if (data < 0 && errno == ENXIO) return absl::OkStatus();  // A hole.
        // File systems that know no holes say so.
        if (data < 0 && errno != EINVAL) return CannotRead(errno, "read");
        if (data >= 0) at = static_cast<uint64_t>(data);
        const off_t hole = ::lseek(fd, static_cast<off_t>(at), SEEK_HOLE);
        data_end =
            hole > static_cast<off_t>(at) ? static_cast<uint64_t>(hole) : size;
        if (at >= size) break;
      }
      const size_t want = static_cast<size_t>(
          std::min<uint64_t>(buffer_.size(), std::min(data_end, size) - at));
      const ssize_t got =
          ::pread(fd, buffer_.data(), want, static_cast<off_t>(at));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return CannotRead(errno, "read");
      if (got == 0) return Changed();
      CATNAP_RETURN_IF_ERROR(tree_->Append(
          at, std::span(buffer_).first(static_cast<size_t>(got))));
      at += static_cast<uint64_t>(got);
    }
    return absl::OkStatus();
  }

  // Extended attributes come from `fd`, unless it is kNoDescriptor.
  absl::StatusOr<Attributes> ReadAttributes(const struct stat& info, int fd) {
    Attributes attributes;
    attributes.permissions = static_cast<uint16_t>(info.st_mode & 07777);
    attributes.uid = info.st_uid;
    attributes.gid = info.st_gid;
    attributes.mtime_seconds = info.st_mtim.tv_sec;
    attributes.mtime_nanoseconds = static_cast<uint32_t>(info.st_mtim.tv_nsec);
    owners_.Apply(&attributes);
    if (fd == kNoDescriptor) return attributes;
    std::vector<char> names(kMaxExtendedBytes);
    const ssize_t length = ::flistxattr(fd, names.data(), names.size());
    if (length < 0 && errno == ENOTSUP) return attributes;
    if (length < 0) return CannotRead(errno, "list extended attributes");
    std::vector<char> value(length > 0 ? kMaxExtendedBytes : 0);
    std::string_view rest(names.data(), static_cast<size_t>(length));
    while (!rest.empty()) {
      const std::string name(rest.substr(0, rest.find('\0')));
      rest.remove_prefix(std::min(rest.size(), name.size() + 1));
      if (!IsKeptAttribute(name)) continue;
      const ssize_t size =
          ::fgetxattr(fd, name.c_str(), value.data(), value.size());
      if (size < 0 && errno == ENODATA) continue;
      if (size < 0) return CannotRead(errno, "read extended attributes");
      CATNAP_RETURN_IF_ERROR(AddExtended(
          name, {value.data(), static_cast<size_t>(size)}, &attributes));
    }
    return attributes;
  }

  static absl::Status Changed() {
    return Error(absl::StatusCode::kUnavailable,
                 "it changed while it was read; try again");
  }

  static constexpr int kNoDescriptor = -1;

  const int root_;
  const Owners owners_;
  Tree* const tree_;
  std::vector<uint8_t> buffer_;
  std::string current_;  // What messages name.
  // First paths of files that have more than one.
  std::map<std::pair<dev_t, ino_t>, std::string> linked_;
};

}  // namespace

absl::Status AddDirectoryTree(int fd, const Owners& owners, Tree* tree) {
  return DirectoryWalk(fd, owners, tree).Run();
}

}  // namespace catnap::rootfs
