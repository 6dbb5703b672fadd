#include <fcntl.h>
#include <fts.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <limits>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "agent/files.h"
#include "agent/tree_stream.h"
#include "base/status.h"
#include "base/unique_fd.h"

namespace catnap::agent {
namespace {

constexpr size_t kBatchBytes = 64 << 10;

struct FtsCloser {
  void operator()(FTS* tree) const { ::fts_close(tree); }
};

// Reads the host's tree and writes its records.
class TreeReader {
 public:
  TreeReader(TreeStream* to, std::string root, TreeLimits limits)
      : to_(to), root_(std::move(root)), limits_(limits) {}

  absl::Status Run() {
    std::array<char*, 2> paths = {root_.data(), nullptr};
    const std::unique_ptr<FTS, FtsCloser> tree(
        ::fts_open(paths.data(), FTS_PHYSICAL | FTS_NOCHDIR, nullptr));
    if (tree == nullptr) return ErrnoError(errno, "open {}", root_);
    for (;;) {
      errno = 0;
      const FTSENT* const found = ::fts_read(tree.get());
      if (found == nullptr) break;
      CATNAP_RETURN_IF_ERROR(Add(*found));
      if (ended_) return absl::OkStatus();
    }
    if (errno != 0) return ErrnoError(errno, "read {}", root_);
    Flush(true);
    return absl::OkStatus();
  }

 private:
  absl::Status Add(const FTSENT& found) {
    switch (found.fts_info) {
      case FTS_DNR:
      case FTS_ERR:
      case FTS_NS:
        return ErrnoError(found.fts_errno, "read {}", found.fts_path);
      case FTS_D:
      case FTS_F:
      case FTS_SL:
      case FTS_SLNONE:
        break;
      default:
        return absl::OkStatus();
    }
    if (++files_ > limits_.max_files) {
      return Error(absl::StatusCode::kOutOfRange,
                   "{} has more than {} files, the limit", root_,
                   limits_.max_files);
    }
    const struct stat& info = *found.fts_statp;
    FileEntry entry;
    entry.path = std::string(found.fts_path, found.fts_pathlen)
                     .substr(std::min<size_t>(root_.size(), found.fts_pathlen));
    entry.path.erase(0, entry.path.find_first_not_of('/'));
    entry.mode = info.st_mode;
    entry.uid = info.st_uid;
    entry.gid = info.st_gid;
    entry.mtime_ns =
        int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec;
    if (entry.path.size() > kMaxPathBytes) {
      return Error(absl::StatusCode::kInvalidArgument,
                   "the path {} is longer than {} bytes", entry.path,
                   kMaxPathBytes);
    }
    if (S_ISDIR(info.st_mode)) {
      entry.type = EntryType::kDirectory;
    } else if (S_ISLNK(info.st_mode)) {
      entry.type = EntryType::kSymlink;
      std::array<char, PATH_MAX> target{};
      const ssize_t length =
          ::readlink(found.fts_accpath, target.data(), target.size());
      if (length < 0) return ErrnoError(errno, "readlink {}", found.fts_path);
      entry.link.assign(target.data(), static_cast<size_t>(length));
    } else {
      return AddFile(found, info, std::move(entry));
    }
    Put(entry);
    return absl::OkStatus();
  }

  absl::Status AddFile(const FTSENT& found, const struct stat& info,
                       FileEntry entry) {
    if (info.st_nlink > 1) {
      const auto [first, is_new] =
          links_.emplace(std::pair(info.st_dev, info.st_ino), entry.path);
      if (!is_new) {
        entry.type = EntryType::kHardLink;
        entry.link = first->second;
        Put(entry);
        return absl::OkStatus();
      }
    }
    entry.type = EntryType::kFile;
    entry.size = static_cast<uint64_t>(info.st_size);
    bytes_ += entry.size;
    if (bytes_ > limits_.max_bytes) {
      return Error(absl::StatusCode::kOutOfRange,
                   "{} has more than {} bytes, the limit", root_,
                   limits_.max_bytes);
    }
    const base::UniqueFd fd(::open(
        found.fts_accpath, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
    if (!fd.valid()) return ErrnoError(errno, "open {}", found.fts_path);
    // One with a disk block for every byte has no holes to look for.
    constexpr off_t kStatBlockBytes = 512;
    const bool sparse = info.st_blocks * kStatBlockBytes < info.st_size;
    off_t offset = 0;
    off_t data_end = sparse ? 0 : info.st_size;
    while (!ended_ && (sparse || offset < info.st_size)) {
      // Asked for once for each run of data: tmpfs looks at every page of it.
      if (sparse && offset >= data_end) {
        const off_t data = ::lseek(fd.get(), offset, SEEK_DATA);
        if (data < 0 && errno == ENXIO) break;  // Only a hole is left.
        if (data > offset) offset = data;
        data_end = ::lseek(fd.get(), offset, SEEK_HOLE);
        if (data_end <= offset) data_end = std::numeric_limits<off_t>::max();
      }
      const size_t want =
          std::min(kRecordDataBytes, static_cast<size_t>(data_end - offset));
      entry.offset = static_cast<uint64_t>(offset);
      entry.data.resize(want);
      const ssize_t got = ::pread(fd.get(), entry.data.data(), want, offset);
      if (got < 0) return ErrnoError(errno, "read {}", found.fts_path);
      entry.data.resize(static_cast<size_t>(got));
      if (got == 0) break;
      offset += got;
      Put(entry);
      entry = FileEntry{.type = EntryType::kContent};
    }
    if (entry.type == EntryType::kFile) {  // Empty, or a hole.
      entry.data.clear();
      Put(entry);
    }
    return absl::OkStatus();
  }

  void Put(const FileEntry& entry) {
    AppendRecord(Encode(entry), &batch_);
    if (batch_.size() >= kBatchBytes) Flush(false);
  }

  void Flush(bool end) {
    if (!ended_ && !to_->Write(batch_, end)) ended_ = true;
    batch_.clear();
  }

  TreeStream* const to_;  // Not owned.
  std::string root_;
  const TreeLimits limits_;
  uint64_t files_ = 0;
  uint64_t bytes_ = 0;
  bool ended_ = false;  // The guest gave up; the result says why.
  Encoded batch_;
  std::map<std::pair<dev_t, ino_t>, std::string> links_;
};

}  // namespace

absl::Status CopyIn(Client* client, const std::filesystem::path& from,
                    const std::string& to, TreeLimits limits,
                    const CallLimits& call) {
  CATNAP_ASSIGN_OR_RETURN(
      const auto stream,
      TreeStream::Open(client, Kind::kTreeIn, {.path = to}, call));
  TreeReader reader(stream.get(), from.string(), limits);
  absl::Status status = reader.Run();
  if (!status.ok()) {
    stream->Cancel();
    return status;
  }
  return stream->Wait();
}

}  // namespace catnap::agent
