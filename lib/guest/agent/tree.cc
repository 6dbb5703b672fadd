#include <fcntl.h>
#include <fts.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <limits>
#include <map>
#include <utility>

#include "guest/agent/files.h"

namespace catnap::guest {
namespace {

using agent::EntryType;
using agent::FileEntry;
using agent::FileRequest;
using agent::FileResult;

constexpr size_t kPieceBytes = 32 << 10;
constexpr size_t kMaxHardLinks = 65'536;  // More become files of their own.

// Sends a tree: records of small files are packed together.
class TreeOutTask final : public SourceTask {
 public:
  TreeOutTask(Server* server, uint32_t stream, const FileRequest& request)
      : SourceTask(server, stream), request_(request), root_(request.path) {
    while (root_.size() > 1 && root_.back() == '/') root_.pop_back();
    std::array<char*, 2> paths = {root_.data(), nullptr};
    tree_ = fts_open(paths.data(), FTS_PHYSICAL | FTS_NOCHDIR, nullptr);
    if (tree_ == nullptr) result_ = FileError(errno, root_);
  }
  ~TreeOutTask() override {
    CloseFile();
    if (tree_ != nullptr) fts_close(tree_);
  }

 private:
  bool Produce(std::vector<uint8_t>* to) override {
    while (result_.error == 0 && to->size() < kPieceBytes) {
      if (fd_ >= 0) {
        PutContent(to);
        continue;
      }
      FTSENT* const found = fts_read(tree_);
      if (found == nullptr) return false;
      PutFound(*found, to);
    }
    return result_.error == 0;
  }

  void PutFound(const FTSENT& found, std::vector<uint8_t>* to) {
    switch (found.fts_info) {
      case FTS_DNR:
      case FTS_ERR:
      case FTS_NS:
        result_ = FileError(found.fts_errno, found.fts_path);
        return;
      case FTS_D:
      case FTS_F:
      case FTS_SL:
      case FTS_SLNONE:
        break;
      default:
        return;  // Left again; devices, sockets and pipes.
    }
    FileEntry entry;
    const struct stat& info = *found.fts_statp;
    FillEntry(info, &entry);
    const std::string_view path(found.fts_path, found.fts_pathlen);
    entry.path = path.substr(std::min(root_.size(), path.size()));
    if (!entry.path.empty() && entry.path.front() == '/')
      entry.path.erase(0, 1);
    if (++files_ > request_.max_files && request_.max_files != 0) {
      result_ = FileError(EOVERFLOW, found.fts_path);
      return;
    }
    if (entry.type == EntryType::kSymlink) {
      std::array<char, PATH_MAX> target{};
      const ssize_t length =
          readlink(found.fts_accpath, target.data(), target.size());
      if (length < 0) return;  // Gone meanwhile.
      entry.link.assign(target.data(), static_cast<size_t>(length));
    }
    if (entry.type == EntryType::kFile) {
      const auto key = std::pair(info.st_dev, info.st_ino);
      const auto first = links_.find(key);
      if (info.st_nlink > 1 && first != links_.end()) {
        entry.type = EntryType::kHardLink;
        entry.link = first->second;
      } else {
        if (info.st_nlink > 1 && links_.size() < kMaxHardLinks) {
          links_.emplace(key, entry.path);
        }
        fd_ = open(found.fts_accpath,
                   O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
        if (fd_ < 0) {
          result_ = FileError(errno, found.fts_path);
          return;
        }
        offset_ = 0;
        data_end_ = 0;
        ReadPiece(&entry);
      }
    }
    agent::AppendRecord(Encode(entry), to);
  }

  void PutContent(std::vector<uint8_t>* to) {
    FileEntry entry;
    entry.type = EntryType::kContent;
    ReadPiece(&entry);
    if (!entry.data.empty()) agent::AppendRecord(Encode(entry), to);
  }

  // The next bytes that are no hole; closes the file at its end.
  void ReadPiece(FileEntry* entry) {
    // Asked for once for each run of data: tmpfs looks at every page of it.
    if (offset_ >= data_end_) {
      const off_t data = lseek(fd_, offset_, SEEK_DATA);
      if (data < 0 && errno == ENXIO) {  // Only a hole is left.
        CloseFile();
        return;
      }
      // A file system without holes says EINVAL: all is data.
      if (data >= 0) offset_ = data;
      data_end_ = lseek(fd_, offset_, SEEK_HOLE);
      if (data_end_ <= offset_) data_end_ = std::numeric_limits<off_t>::max();
    }
    const size_t want = std::min(agent::kRecordDataBytes,
                                 static_cast<size_t>(data_end_ - offset_));
    entry->offset = static_cast<uint64_t>(offset_);
    entry->data.resize(want);
    const ssize_t got = pread(fd_, entry->data.data(), want, offset_);
    entry->data.resize(got < 0 ? 0 : static_cast<size_t>(got));
    if (got < 0) result_ = FileError(errno, root_);
    if (got <= 0) {
      CloseFile();
      return;
    }
    offset_ += got;
    result_.size += static_cast<uint64_t>(got);
    if (request_.max_bytes != 0 && result_.size > request_.max_bytes) {
      result_ = FileError(EFBIG, root_);
    }
  }

  void CloseFile() {
    if (fd_ >= 0) close(std::exchange(fd_, -1));
  }

  const FileRequest request_;
  std::string root_;
  FTS* tree_ = nullptr;
  int fd_ = -1;  // The file whose content is being sent.
  off_t offset_ = 0;
  off_t data_end_ = 0;  // Where the next hole starts.
  uint64_t files_ = 0;
  std::map<std::pair<dev_t, ino_t>, std::string> links_;
};

// Makes a tree from records. The host checked nothing but is trusted: it could
// run any program here.
class TreeInTask final : public Task {
 public:
  TreeInTask(Server* server, uint32_t stream, const FileRequest& request)
      : server_(server), stream_(stream), root_(request.path) {
    while (root_.size() > 1 && root_.back() == '/') root_.pop_back();
  }
  ~TreeInTask() override {
    if (fd_ >= 0) close(fd_);
  }

  void OnData(uint8_t channel, Bytes data, bool end) override {
    records_.Feed(data);
    while (result_.error == 0) {
      const auto fields = records_.Next();
      if (!fields.has_value()) break;
      FileEntry entry;
      if (!Decode(*fields, &entry) || !Make(entry)) {
        if (result_.error == 0) result_ = FileError(EPROTO, root_);
      }
    }
    if (!records_.ok()) result_ = FileError(EPROTO, root_);
    server_->Consume(stream_, channel, data.size());
    if (end || result_.error != 0) {
      CloseFile();
      server_->Finish(stream_, Encode(result_));
    }
  }

 private:
  std::string Path(const std::string& path) const {
    if (path.empty()) return root_;
    return root_ == "/" ? root_ + path : root_ + "/" + path;
  }

  bool Fail(const std::string& path) {
    if (result_.error == 0) result_ = FileError(errno, path);
    return false;
  }

  bool Make(const FileEntry& entry) {
    if (entry.type == EntryType::kContent) return Put(entry);
    CloseFile();
    const std::string path = Path(entry.path);
    const mode_t mode = entry.mode & 07777;
    switch (entry.type) {
      case EntryType::kDirectory: {
        struct stat info {};
        if (mkdir(path.c_str(), 0700) != 0 &&
            (errno != EEXIST || stat(path.c_str(), &info) != 0 ||
             !S_ISDIR(info.st_mode))) {
          return Fail(path);
        }
        break;
      }
      case EntryType::kSymlink:
        if (!Replace(path, [&] {
              return symlink(entry.link.c_str(), path.c_str());
            })) {
          return Fail(path);
        }
        break;
      case EntryType::kHardLink:
        if (!Replace(path, [&] {
              return link(Path(entry.link).c_str(), path.c_str());
            })) {
          return Fail(path);
        }
        return true;  // Shares what the first one has.
      case EntryType::kFile:
        return MakeFile(entry, path);
      default:
        return false;
    }
    // The owner first: a change of it takes set-id bits away.
    if (is_root_ && lchown(path.c_str(), entry.uid, entry.gid) != 0) {
      return Fail(path);
    }
    if (entry.type != EntryType::kSymlink && chmod(path.c_str(), mode) != 0) {
      return Fail(path);
    }
    return true;
  }

  // Many small files come in a row: no call that changes nothing, and none by
  // the path once the file is open.
  bool MakeFile(const FileEntry& entry, const std::string& path) {
    const mode_t mode = entry.mode & 07777;
    fd_ =
        open(path.c_str(),
             O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK,
             mode & 0777);
    struct stat info {};
    if (fd_ < 0 || fstat(fd_, &info) != 0) return Fail(path);
    // What is not written is a hole.
    if (entry.offset + entry.data.size() != entry.size &&
        ftruncate(fd_, static_cast<off_t>(entry.size)) != 0) {
      return Fail(path);
    }
    if (!Put(entry)) return false;
    mtime_ns_ = entry.mtime_ns;
    // The owner first: a change of it takes set-id bits away.
    const bool foreign = info.st_uid != entry.uid || info.st_gid != entry.gid;
    if (is_root_ && foreign && fchown(fd_, entry.uid, entry.gid) != 0) {
      return Fail(path);
    }
    // A write takes set-id bits away, too.
    const bool changed = (info.st_mode & 07777) != mode || (mode & 07000) != 0;
    if (changed && fchmod(fd_, mode) != 0) return Fail(path);
    return true;
  }

  template <typename Make>
  static bool Replace(const std::string& path, Make make) {
    if (make() == 0) return true;
    return errno == EEXIST && unlink(path.c_str()) == 0 && make() == 0;
  }

  bool Put(const FileEntry& entry) {
    std::string_view data = entry.data;
    auto offset = static_cast<off_t>(entry.offset);
    while (!data.empty()) {
      const ssize_t written = pwrite(fd_, data.data(), data.size(), offset);
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) return Fail(root_);
      data.remove_prefix(static_cast<size_t>(written));
      offset += written;
    }
    return true;
  }

  void CloseFile() {
    if (fd_ < 0) return;
    std::array<timespec, 2> times{};
    times[0].tv_nsec = UTIME_OMIT;
    times[1].tv_sec = mtime_ns_ / 1'000'000'000;
    times[1].tv_nsec = mtime_ns_ % 1'000'000'000;
    if (times[1].tv_nsec >= 0) futimens(fd_, times.data());
    if (close(std::exchange(fd_, -1)) != 0) Fail(root_);
  }

  Server* const server_;  // Not owned.
  const uint32_t stream_;
  const bool is_root_ = geteuid() == 0;
  std::string root_;
  agent::RecordReader records_;
  int fd_ = -1;  // The file that content records are for.
  int64_t mtime_ns_ = 0;
  FileResult result_;
};

}  // namespace

std::unique_ptr<Task> MakeTreeTask(Server* server, uint32_t stream,
                                   agent::Kind kind,
                                   const FileRequest& request) {
  if (kind == agent::Kind::kTreeIn) {
    return std::make_unique<TreeInTask>(server, stream, request);
  }
  if (kind != agent::Kind::kTreeOut) return nullptr;
  auto task = std::make_unique<TreeOutTask>(server, stream, request);
  task->Pump();
  return task;
}

}  // namespace catnap::guest
