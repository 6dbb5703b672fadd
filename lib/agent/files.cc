#include "agent/files.h"

#include <algorithm>
#include <cerrno>
#include <functional>
#include <memory>
#include <utility>

#include "base/mutex.h"
#include "base/status.h"

namespace catnap::agent {
namespace {

absl::StatusCode CodeOf(int error) {
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      return absl::StatusCode::kNotFound;
    case EEXIST:
      return absl::StatusCode::kAlreadyExists;
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::StatusCode::kPermissionDenied;
    case ENOSPC:
    case EDQUOT:
    case ENOMEM:
    case EMFILE:
      return absl::StatusCode::kResourceExhausted;
    case EFBIG:
    case EOVERFLOW:
      return absl::StatusCode::kOutOfRange;
    default:
      return absl::StatusCode::kFailedPrecondition;
  }
}

// What the guest says is shown, but only as text.
std::string Printable(const std::string& text) {
  std::string clean = text;
  for (char& c : clean) {
    if (c < ' ' || c > '~') c = '?';
  }
  return clean;
}

absl::Status Malformed() {
  return absl::UnavailableError("guest agent: malformed answer");
}

// One operation: content in and out of a bounded size, then a result.
class FileCall final : public StreamHandler {
 public:
  using Done = absl::AnyInvocable<void(absl::Status, FileResult) &&>;
  // Returns false to refuse what the guest sent.
  using Sink = std::function<bool(std::span<const uint8_t>)>;

  FileCall(Client* client, Sink sink, std::string sending, Done done)
      : client_(client),
        sink_(std::move(sink)),
        sending_(std::move(sending)),
        done_(std::move(done)) {}

  static void Start(Client* client, Kind kind, const FileRequest& request,
                    const CallLimits& limits, Sink sink, std::string sending,
                    Done done) {
    auto call = std::make_shared<FileCall>(client, std::move(sink),
                                           std::move(sending), std::move(done));
    const auto stream = client->Open(kind, Encode(request), call, limits);
    if (!stream.ok()) {
      std::move(call->done_)(stream.status(), {});
      return;
    }
    {
      base::MutexLock lock(&call->mutex_);
      call->stream_ = *stream;
    }
    call->OnWritable();
  }

  size_t OnData(uint8_t /*channel*/, std::span<const uint8_t> data,
                bool /*end*/) override {
    if (!refused_ && (sink_ == nullptr || !sink_(data))) {
      // The stream's end is what the guest makes of it; the result is ours.
      refused_ = true;
    }
    return data.size();
  }

  void OnWritable() override {
    base::MutexLock lock(&mutex_);
    again_ = true;  // Whoever sends now looks again.
    if (stream_ == 0 || busy_) return;
    busy_ = true;
    while (std::exchange(again_, false) && sent_ < sending_.size()) {
      const size_t at = sent_;
      const uint32_t stream = stream_;
      mutex_.Unlock();
      const size_t taken = client_->Write(
          stream, kMainChannel,
          {reinterpret_cast<const uint8_t*>(sending_.data()) + at,
           sending_.size() - at},
          true);
      mutex_.Lock();
      sent_ += taken;
    }
    busy_ = false;
  }

  void OnEnd(absl::StatusOr<Encoded> fields) override {
    FileResult result;
    absl::Status status = fields.status();
    if (status.ok() && !Decode(*fields, &result)) status = Malformed();
    if (status.ok()) status = FileStatusOf(result);
    if (status.ok() && refused_) status = Malformed();
    std::move(done_)(std::move(status), std::move(result));
  }

 private:
  Client* const client_;  // Not owned.
  const Sink sink_;
  const std::string sending_;
  Done done_;
  bool refused_ = false;  // Touched by the stream's calls only.
  base::Mutex mutex_;
  uint32_t stream_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t sent_ ABSL_GUARDED_BY(mutex_) = 0;
  bool busy_ ABSL_GUARDED_BY(mutex_) = false;
  bool again_ ABSL_GUARDED_BY(mutex_) = false;
};

void Simple(Client* client, Kind kind, const FileRequest& request,
            const CallLimits& limits, FileStatus done) {
  FileCall::Start(
      client, kind, request, limits, nullptr, "",
      [done = std::move(done)](absl::Status status, const FileResult&) mutable {
        std::move(done)(std::move(status));
      });
}

}  // namespace

absl::Status FileStatusOf(const FileResult& result) {
  if (result.error == 0) return absl::OkStatus();
  return WithReason(
      Error(CodeOf(result.error), "guest: {}", Printable(result.text)),
      ErrorReason::kGuestPath);
}

void ReadFile(Client* client, const std::string& path, uint64_t max_bytes,
              const CallLimits& limits, FileDone<std::string> done) {
  auto content = std::make_shared<std::string>();
  FileCall::Start(
      client, Kind::kReadFile, {.path = path, .max_bytes = max_bytes}, limits,
      [content, max_bytes](std::span<const uint8_t> data) {
        if (data.size() > max_bytes - content->size()) return false;
        content->append(data.begin(), data.end());
        return true;
      },
      "",
      [content, done = std::move(done)](absl::Status status,
                                        const FileResult&) mutable {
        if (!status.ok()) {
          std::move(done)(std::move(status));
        } else {
          std::move(done)(std::move(*content));
        }
      });
}

void WriteFile(Client* client, const std::string& path, std::string data,
               uint32_t mode, const CallLimits& limits, FileStatus done) {
  FileRequest request{.path = path, .mode = mode};
  request.data = data.substr(0, kMaxInlineData);
  data.erase(0, request.data.size());
  request.more = !data.empty();
  FileCall::Start(
      client, Kind::kWriteFile, request, limits, nullptr, std::move(data),
      [done = std::move(done)](absl::Status status, const FileResult&) mutable {
        std::move(done)(std::move(status));
      });
}

void Stat(Client* client, const std::string& path, const CallLimits& limits,
          FileDone<FileEntry> done) {
  FileCall::Start(
      client, Kind::kStat, {.path = path}, limits, nullptr, "",
      [done = std::move(done)](absl::Status status, FileResult result) mutable {
        if (status.ok() && !result.entry.has_value()) {
          status = Malformed();
        }
        if (!status.ok()) {
          std::move(done)(std::move(status));
        } else {
          std::move(done)(std::move(*result.entry));
        }
      });
}

void ListDirectory(Client* client, const std::string& path, size_t max_entries,
                   const CallLimits& limits,
                   FileDone<std::vector<FileEntry>> done) {
  struct Listing {
    RecordReader records;
    std::vector<FileEntry> entries;
  };
  auto listing = std::make_shared<Listing>();
  FileCall::Start(
      client, Kind::kListDirectory, {.path = path, .max_files = max_entries},
      limits,
      [listing, max_entries](std::span<const uint8_t> data) {
        listing->records.Feed(data);
        while (const auto fields = listing->records.Next()) {
          FileEntry entry;
          if (listing->entries.size() >= max_entries ||
              !Decode(*fields, &entry) || !entry.data.empty() ||
              entry.path.empty() || entry.path.find('/') != std::string::npos) {
            return false;
          }
          listing->entries.push_back(std::move(entry));
        }
        return listing->records.ok();
      },
      "",
      [listing, done = std::move(done)](absl::Status status,
                                        const FileResult&) mutable {
        if (status.ok() && !listing->records.empty()) status = Malformed();
        if (!status.ok()) {
          std::move(done)(std::move(status));
          return;
        }
        std::sort(listing->entries.begin(), listing->entries.end(),
                  [](const FileEntry& a, const FileEntry& b) {
                    return a.path < b.path;
                  });
        std::move(done)(std::move(listing->entries));
      });
}

void MakeDirectory(Client* client, const std::string& path, uint32_t mode,
                   const CallLimits& limits, FileStatus done) {
  Simple(client, Kind::kMakeDirectory,
         {.path = path, .mode = mode, .recursive = true}, limits,
         std::move(done));
}

void Remove(Client* client, const std::string& path, bool recursive,
            const CallLimits& limits, FileStatus done) {
  Simple(client, Kind::kRemove, {.path = path, .recursive = recursive}, limits,
         std::move(done));
}

}  // namespace catnap::agent
