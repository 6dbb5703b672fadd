#include "guest/agent/files.h"

#include <dirent.h>
#include <fcntl.h>
#include <fts.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <utility>

#include "guest/agent/text.h"

namespace catnap::guest {
namespace {

using agent::EntryType;
using agent::FileEntry;
using agent::FileRequest;
using agent::FileResult;
using agent::Kind;

constexpr size_t kPieceBytes = 32 << 10;

std::string ReadLink(const std::string& path) {
  std::array<char, PATH_MAX> target{};
  const ssize_t length = readlink(path.c_str(), target.data(), target.size());
  return length < 0 ? ""
                    : std::string(target.data(), static_cast<size_t>(length));
}

FileResult StatPath(const FileRequest& request) {
  struct stat info {};
  if (lstat(request.path.c_str(), &info) != 0) {
    return FileError(errno, request.path);
  }
  FileResult result;
  result.entry.emplace();
  FillEntry(info, &*result.entry);
  const size_t slash = request.path.rfind('/');
  result.entry->path = request.path.substr(slash + 1);
  if (S_ISLNK(info.st_mode)) result.entry->link = ReadLink(request.path);
  return result;
}

FileResult MakeDirectory(const FileRequest& request) {
  const mode_t mode = request.mode & 07777;
  if (request.recursive) {
    for (size_t at = request.path.find('/', 1); at != std::string::npos;
         at = request.path.find('/', at + 1)) {
      if (mkdir(request.path.substr(0, at).c_str(), 0755) != 0 &&
          errno != EEXIST) {
        return FileError(errno, request.path);
      }
    }
  }
  if (mkdir(request.path.c_str(), mode) != 0) {
    struct stat info {};
    const int error = errno;
    if (!request.recursive || error != EEXIST ||
        stat(request.path.c_str(), &info) != 0 || !S_ISDIR(info.st_mode)) {
      return FileError(error, request.path);
    }
    return {};
  }
  chmod(request.path.c_str(), mode);  // What the umask took away.
  return {};
}

// Removes a tree a slice at a time, so that a large one does not hold up the
// agent's other streams.
class RemoveTask final : public Task {
 public:
  RemoveTask(Server* server, uint32_t stream, std::string path)
      : server_(server), stream_(stream), path_(std::move(path)) {
    std::array<char*, 2> paths = {path_.data(), nullptr};
    tree_ = fts_open(paths.data(), FTS_PHYSICAL | FTS_NOCHDIR | FTS_NOSTAT,
                     nullptr);
  }
  ~RemoveTask() override {
    if (timer_.has_value()) server_->loop()->RemoveTimer(*timer_);
    if (tree_ != nullptr) fts_close(tree_);
  }

  void Step() {
    timer_.reset();
    for (int i = 0; i < 1000; ++i) {
      FTSENT* const entry = tree_ == nullptr ? nullptr : fts_read(tree_);
      if (entry == nullptr) {
        server_->Finish(stream_, Encode(result_));
        return;
      }
      RemoveEntry(*entry);
    }
    timer_ = server_->loop()->AddTimer(Loop::Time{}, [this] { Step(); });
  }

 private:
  void RemoveEntry(const FTSENT& entry) {
    int failed = 0;
    switch (entry.fts_info) {
      case FTS_D:
        return;  // After what is in it.
      case FTS_DP:
        failed = rmdir(entry.fts_accpath);
        break;
      case FTS_DNR:
      case FTS_ERR:
        errno = entry.fts_errno;
        failed = -1;
        break;
      default:
        failed = unlink(entry.fts_accpath);
        break;
    }
    if (failed != 0 && result_.error == 0) {
      result_ = FileError(errno, entry.fts_path);
    }
  }

  Server* const server_;  // Not owned.
  const uint32_t stream_;
  std::string path_;
  FTS* tree_;
  FileResult result_;
  std::optional<Loop::TimerId> timer_;
};

class ReadTask final : public SourceTask {
 public:
  ReadTask(Server* server, uint32_t stream, const FileRequest& request)
      : SourceTask(server, stream), request_(request) {
    // Not blocked by a pipe without a writer.
    fd_ = open(request.path.c_str(),
               O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    struct stat info {};
    if (fd_ < 0 || fstat(fd_, &info) != 0) {
      result_ = FileError(errno, request.path);
    } else if (!S_ISREG(info.st_mode)) {
      result_ =
          FileError(S_ISDIR(info.st_mode) ? EISDIR : EINVAL, request.path);
    }
  }
  ~ReadTask() override {
    if (fd_ >= 0) close(fd_);
  }

 private:
  bool Produce(std::vector<uint8_t>* to) override {
    if (result_.error != 0) return false;
    to->resize(kPieceBytes);
    const ssize_t got = read(fd_, to->data(), to->size());
    to->resize(got < 0 ? 0 : static_cast<size_t>(got));
    if (got < 0) result_ = FileError(errno, request_.path);
    if (got <= 0) return false;
    result_.size += static_cast<uint64_t>(got);
    if (request_.max_bytes != 0 && result_.size > request_.max_bytes) {
      to->clear();
      result_ = FileError(EFBIG, request_.path);
      return false;
    }
    return true;
  }

  const FileRequest request_;
  int fd_ = -1;
};

class ListTask final : public SourceTask {
 public:
  ListTask(Server* server, uint32_t stream, const FileRequest& request)
      : SourceTask(server, stream), request_(request) {
    directory_ = opendir(request.path.c_str());
    if (directory_ == nullptr) result_ = FileError(errno, request.path);
  }
  ~ListTask() override {
    if (directory_ != nullptr) closedir(directory_);
  }

 private:
  bool Produce(std::vector<uint8_t>* to) override {
    if (result_.error != 0) return false;
    while (to->size() < kPieceBytes) {
      // The directory is this task's alone.
      const dirent* const found = readdir(directory_);  // NOLINT
      if (found == nullptr) return false;
      const std::string name = found->d_name;
      struct stat info {};
      if (name == "." || name == ".." ||
          fstatat(dirfd(directory_), name.c_str(), &info,
                  AT_SYMLINK_NOFOLLOW) != 0) {
        continue;  // Gone meanwhile.
      }
      if (request_.max_files != 0 && result_.size >= request_.max_files) {
        result_ = FileError(EOVERFLOW, request_.path);
        return false;
      }
      ++result_.size;
      FileEntry entry;
      FillEntry(info, &entry);
      entry.path = name;
      if (S_ISLNK(info.st_mode)) {
        entry.link = ReadLink(request_.path + "/" + name);
      }
      agent::AppendRecord(Encode(entry), to);
    }
    return true;
  }

  const FileRequest request_;
  DIR* directory_;
};

class WriteTask final : public Task {
 public:
  WriteTask(Server* server, uint32_t stream, const FileRequest& request)
      : server_(server), stream_(stream), path_(request.path) {
    fd_ = open(path_.c_str(),
               O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NONBLOCK | O_NOCTTY,
               request.mode & 07777);
    if (fd_ < 0 || fchmod(fd_, request.mode & 07777) != 0) Fail();
    Put({reinterpret_cast<const uint8_t*>(request.data.data()),
         request.data.size()});
    if (!request.more) End();
  }
  ~WriteTask() override {
    if (fd_ >= 0) close(fd_);
  }

  void OnData(uint8_t channel, Bytes data, bool end) override {
    Put(data);
    server_->Consume(stream_, channel, data.size());
    // An error ends the stream at once; the host stops sending.
    if (end || result_.error != 0) End();
  }

 private:
  void Fail() {
    if (result_.error == 0) result_ = FileError(errno, path_);
  }
  void Put(Bytes data) {
    while (!data.empty() && result_.error == 0) {
      const ssize_t written = write(fd_, data.data(), data.size());
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) {
        Fail();
        return;
      }
      result_.size += static_cast<uint64_t>(written);
      data = data.subspan(static_cast<size_t>(written));
    }
  }
  void End() {
    if (fd_ >= 0 && close(std::exchange(fd_, -1)) != 0) Fail();
    server_->Finish(stream_, Encode(result_));
  }

  Server* const server_;  // Not owned.
  const uint32_t stream_;
  const std::string path_;
  int fd_ = -1;
  FileResult result_;
};

template <typename T>
std::unique_ptr<Task> Source(Server* server, uint32_t stream,
                             const FileRequest& request) {
  auto task = std::make_unique<T>(server, stream, request);
  task->Pump();
  return task;
}

}  // namespace

agent::FileResult FileError(int error, std::string_view what) {
  FileResult result;
  result.error = error;
  result.text = ErrorText(what, error);
  if (result.text.size() > agent::kMaxErrorText) {
    result.text.resize(agent::kMaxErrorText);
  }
  return result;
}

void FillEntry(const struct stat& info, FileEntry* entry) {
  entry->type = S_ISREG(info.st_mode)   ? EntryType::kFile
                : S_ISDIR(info.st_mode) ? EntryType::kDirectory
                : S_ISLNK(info.st_mode) ? EntryType::kSymlink
                                        : EntryType::kOther;
  entry->size = static_cast<uint64_t>(info.st_size);
  entry->mode = info.st_mode;
  entry->uid = info.st_uid;
  entry->gid = info.st_gid;
  entry->mtime_ns =
      int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec;
}

void SourceTask::Pump() {
  for (;;) {
    if (sent_ == pending_.size()) {
      pending_.clear();
      sent_ = 0;
      if (done_) {
        server_->Finish(stream_, Encode(result_));
        return;
      }
      if (server_->WritableBytes(stream_, agent::kMainChannel) == 0) return;
      done_ = !Produce(&pending_);
      continue;
    }
    sent_ += server_->Write(stream_, agent::kMainChannel,
                            Bytes(pending_).subspan(sent_), false);
    if (sent_ < pending_.size()) return;
  }
}

std::unique_ptr<Task> MakeFileTask(Server* server, uint32_t stream, Kind kind,
                                   Bytes bytes) {
  FileRequest request;
  if (!Decode(bytes, &request)) {
    server->Refuse(stream, agent::ResetCode::kProtocol, "malformed request");
    return nullptr;
  }
  switch (kind) {
    case Kind::kReadFile:
      return Source<ReadTask>(server, stream, request);
    case Kind::kListDirectory:
      return Source<ListTask>(server, stream, request);
    case Kind::kWriteFile:
      return std::make_unique<WriteTask>(server, stream, request);
    case Kind::kStat:
      server->Finish(stream, Encode(StatPath(request)));
      return nullptr;
    case Kind::kMakeDirectory:
      server->Finish(stream, Encode(MakeDirectory(request)));
      return nullptr;
    case Kind::kRemove: {
      if (request.recursive) {
        auto task = std::make_unique<RemoveTask>(server, stream, request.path);
        task->Step();
        return task;
      }
      FileResult result;
      if (remove(request.path.c_str()) != 0) {
        result = FileError(errno, request.path);
      }
      server->Finish(stream, Encode(result));
      return nullptr;
    }
    default:
      return MakeTreeTask(server, stream, kind, request);
  }
}

}  // namespace catnap::guest
