#ifndef CATNAP_LIB_RUNTIME_SNAPSHOT_STORE_H_
#define CATNAP_LIB_RUNTIME_SNAPSHOT_STORE_H_

#include <atomic>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/log.h"
#include "base/mutex.h"
#include "runtime/guest.h"
#include "runtime/image_record.h"
#include "runtime/snapshot_record.h"

namespace catnap::runtime {

// A directory of a snapshot; removed with this object, unless it is kept.
class SnapshotFiles {
 public:
  explicit SnapshotFiles(std::filesystem::path path) : path_(std::move(path)) {}
  ~SnapshotFiles();
  SnapshotFiles(const SnapshotFiles&) = delete;
  SnapshotFiles& operator=(const SnapshotFiles&) = delete;

  const std::filesystem::path& path() const { return path_; }
  // A guest's state.
  std::filesystem::path guest() const { return path_ / kSnapshotGuestName; }
  void Keep(bool keep) { keep_ = keep; }

 private:
  friend class SnapshotStore;
  std::filesystem::path path_;  // Constant once it is published.
  std::atomic<bool> keep_{false};
};

// What is behind the handles of one snapshot. Thread-safe.
class SnapshotData {
 public:
  // Where a guest comes from, and what must live until it runs.
  struct Source {
    GuestOrigin origin{};
    std::shared_ptr<SnapshotFiles> files{};  // Null: in memory.
    ImageUse image_use{};
  };

  SnapshotData(SnapshotRecord record, std::shared_ptr<const ImageRecord> image,
               Source source, std::weak_ptr<void> host)
      : record_(std::move(record)),
        image_(std::move(image)),
        host_(std::move(host)),
        source_(std::move(source)) {}
  SnapshotData(const SnapshotData&) = delete;
  SnapshotData& operator=(const SnapshotData&) = delete;

  const SnapshotRecord& record() const { return record_; }
  const std::shared_ptr<const ImageRecord>& image() const { return image_; }
  // The HostCore that made it.
  const std::weak_ptr<void>& host() const { return host_; }

  // Errors: FAILED_PRECONDITION, deleted; CANCELLED, the Host was closed.
  absl::StatusOr<Source> source() const;
  // Lets go of it, for `why`. False: somebody did before.
  bool LetGo(const absl::Status& why);

 private:
  const SnapshotRecord record_;
  const std::shared_ptr<const ImageRecord> image_;
  const std::weak_ptr<void> host_;
  mutable base::Mutex mutex_;
  absl::Status gone_ ABSL_GUARDED_BY(mutex_);
  Source source_ ABSL_GUARDED_BY(mutex_);
};

// The snapshots of one Host: those with a name, and those that somebody has a
// handle of. VM_FORMAT.md says what is in its directory. Thread-safe; blocks on
// the disk.
class SnapshotStore {
 public:
  // Finds a record's image, and keeps it.
  using FindImage =
      std::function<absl::StatusOr<std::shared_ptr<const ImageRecord>>(
          const SnapshotRecord& record, ImageUse* use)>;

  // Makes the directory, lists what has a name in it, and removes the rest.
  // What cannot be read is logged and left alone.
  static absl::StatusOr<std::unique_ptr<SnapshotStore>> Open(
      std::filesystem::path directory, base::Logger log,
      const FindImage& find_image, std::weak_ptr<void> host);

  // A directory for a snapshot that is being made, with guest() in it.
  absl::StatusOr<std::shared_ptr<SnapshotFiles>> NewFiles();
  // Makes a snapshot of what is ready. One with a name and files is durable.
  // Errors: ALREADY_EXISTS, the name.
  absl::StatusOr<std::shared_ptr<SnapshotData>> Add(
      SnapshotRecord record, std::shared_ptr<const ImageRecord> image,
      SnapshotData::Source source);

  std::vector<std::shared_ptr<SnapshotData>> List();
  // Errors: NOT_FOUND.
  absl::StatusOr<std::shared_ptr<SnapshotData>> Get(
      std::string_view id_or_name);
  absl::Status Delete(const std::shared_ptr<SnapshotData>& data);
  // Lets go of all, with `why`; what has a name stays on the disk.
  void Close(const absl::Status& why);

 private:
  struct Entry {
    std::weak_ptr<SnapshotData> data;
    std::shared_ptr<SnapshotData> named;  // Keeps it; null without a name.
  };

  SnapshotStore(std::filesystem::path directory, base::Logger log,
                std::weak_ptr<void> host)
      : directory_(std::move(directory)),
        log_(std::move(log)),
        host_(std::move(host)) {}
  void ReadOne(const std::filesystem::path& path, const FindImage& find_image);
  absl::Status Publish(const SnapshotRecord& record, SnapshotFiles* files);
  std::shared_ptr<SnapshotData> FindLocked(std::string_view id_or_name)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::filesystem::path directory_;
  const base::Logger log_;
  const std::weak_ptr<void> host_;
  base::Mutex mutex_;
  std::map<std::string, Entry, std::less<>> entries_ ABSL_GUARDED_BY(mutex_);
};

// A name that nobody chose: `prefix` and random digits.
absl::StatusOr<std::string> RandomName(const std::string& prefix);

}  // namespace catnap::runtime

#endif  // CATNAP_LIB_RUNTIME_SNAPSHOT_STORE_H_
