#include "runtime/snapshot_store.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <system_error>

#include "base/random.h"
#include "base/status.h"
#include "io/file.h"

namespace catnap::runtime {
namespace {

constexpr std::string_view kNewPrefix = ".new-";
constexpr size_t kIdBytes = 8;

absl::StatusOr<SnapshotRecord> ReadRecord(const std::filesystem::path& path) {
  CATNAP_ASSIGN_OR_RETURN(const std::string bytes,
                          io::ReadFile((path / kSnapshotRecordName).string(),
                                       kMaxSnapshotRecordBytes));
  return DecodeSnapshotRecord(
      {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
}

}  // namespace

absl::StatusOr<std::string> RandomName(const std::string& prefix) {
  CATNAP_ASSIGN_OR_RETURN(const auto bytes, base::RandomBytes<kIdBytes>());
  std::string name = prefix;
  for (const uint8_t byte : bytes) name += fmt::format("{:02x}", byte);
  return name;
}

SnapshotFiles::~SnapshotFiles() {
  if (keep_) return;
  std::error_code ignored;  // The next Open() removes what is left.
  std::filesystem::remove(path_ / kSnapshotRecordName, ignored);
  std::filesystem::remove_all(path_, ignored);
}

absl::StatusOr<SnapshotData::Source> SnapshotData::source() const {
  const base::MutexLock lock(&mutex_);
  if (!gone_.ok()) return gone_;
  return source_;
}

bool SnapshotData::LetGo(const absl::Status& why) {
  Source last;
  const base::MutexLock lock(&mutex_);
  if (!gone_.ok()) return false;
  gone_ = why;
  std::swap(last, source_);
  return true;
}

absl::StatusOr<std::unique_ptr<SnapshotStore>> SnapshotStore::Open(
    std::filesystem::path directory, base::Logger log,
    const FindImage& find_image, std::weak_ptr<void> host) {
  if (::mkdir(directory.c_str(), S_IRWXU) != 0 && errno != EEXIST) {
    return ErrnoError(errno, "make {}", directory.string());
  }
  std::unique_ptr<SnapshotStore> store(
      new SnapshotStore(std::move(directory), std::move(log), std::move(host)));
  std::error_code error;
  std::vector<std::filesystem::path> found;
  for (std::filesystem::directory_iterator at(store->directory_, error), end;
       !error && at != end; at.increment(error)) {
    found.push_back(at->path());
  }
  for (const auto& path : found) store->ReadOne(path, find_image);
  return store;
}

void SnapshotStore::ReadOne(const std::filesystem::path& path,
                            const FindImage& find_image) {
  std::error_code error;
  if (path.filename().string().starts_with(kNewPrefix) ||
      !std::filesystem::exists(path / kSnapshotRecordName, error)) {
    std::filesystem::remove_all(path, error);
    return;
  }
  auto record = ReadRecord(path);
  if (record.ok() && record->id != path.filename().string()) {
    record = absl::DataLossError("a record of another snapshot");
  }
  using Found = absl::StatusOr<std::shared_ptr<const ImageRecord>>;
  ImageUse use;
  const Found image =
      record.ok() ? find_image(*record, &use) : Found(record.status());
  if (!image.ok()) {
    log_.LogIfError(image.status(), "snapshot {} is left alone", path.string());
    return;
  }
  auto files = std::make_shared<SnapshotFiles>(path);
  files->Keep(true);
  SnapshotData::Source source;
  source.origin.directory = files->guest();
  source.origin.is_copy = true;
  source.files = std::move(files);
  source.image_use = std::move(use);
  const std::string id = record->id;
  auto data = std::make_shared<SnapshotData>(*std::move(record), *image,
                                             std::move(source), host_);
  const base::MutexLock lock(&mutex_);
  entries_[id] = {.data = data, .named = data};
}

absl::StatusOr<std::shared_ptr<SnapshotFiles>> SnapshotStore::NewFiles() {
  CATNAP_ASSIGN_OR_RETURN(const std::string name,
                          RandomName(std::string(kNewPrefix)));
  const std::filesystem::path path = directory_ / name;
  if (::mkdir(path.c_str(), S_IRWXU) != 0) {
    return ErrnoError(errno, "make {}", path.string());
  }
  auto files = std::make_shared<SnapshotFiles>(path);
  if (::mkdir(files->guest().c_str(), S_IRWXU) != 0) {
    return ErrnoError(errno, "make {}", files->guest().string());
  }
  return files;
}

absl::Status SnapshotStore::Publish(const SnapshotRecord& record,
                                    SnapshotFiles* files) {
  CATNAP_ASSIGN_OR_RETURN(const std::vector<uint8_t> bytes,
                          EncodeSnapshotRecord(record));
  CATNAP_RETURN_IF_ERROR(io::FsyncDirectory(files->guest().string()));
  CATNAP_ASSIGN_OR_RETURN(
      const auto file,
      io::AtomicFile::Create((files->path() / kSnapshotRecordName).string()));
  CATNAP_RETURN_IF_ERROR(file->Append(bytes.data(), bytes.size()));
  CATNAP_RETURN_IF_ERROR(file->Commit());
  const std::filesystem::path to = directory_ / record.id;
  if (::renameat2(AT_FDCWD, files->path().c_str(), AT_FDCWD, to.c_str(),
                  RENAME_NOREPLACE) != 0) {
    return ErrnoError(errno, "rename {} to {}", files->path().string(),
                      to.string());
  }
  files->path_ = to;
  return io::FsyncDirectory(directory_.string());
}

absl::StatusOr<std::shared_ptr<SnapshotData>> SnapshotStore::Add(
    SnapshotRecord record, std::shared_ptr<const ImageRecord> image,
    SnapshotData::Source source) {
  const base::MutexLock lock(&mutex_);
  if (!record.name.empty() && FindLocked(record.name) != nullptr) {
    return Error(
        absl::StatusCode::kAlreadyExists,
        "there is a snapshot \"{}\"; Snapshot::Delete() frees its name",
        record.name);
  }
  if (source.files != nullptr) {
    if (!record.name.empty()) {
      CATNAP_RETURN_IF_ERROR(Publish(record, source.files.get()));
      source.files->Keep(true);
    }
    source.origin.directory = source.files->guest();
  }
  source.origin.is_copy = true;
  const std::string id = record.id;
  const bool named = !record.name.empty();
  auto data = std::make_shared<SnapshotData>(
      std::move(record), std::move(image), std::move(source), host_);
  entries_[id] = {.data = data, .named = named ? data : nullptr};
  return data;
}

std::shared_ptr<SnapshotData> SnapshotStore::FindLocked(
    std::string_view id_or_name) {
  if (const auto at = entries_.find(id_or_name); at != entries_.end()) {
    return at->second.data.lock();
  }
  for (const auto& [id, entry] : entries_) {
    if (entry.named != nullptr && entry.named->record().name == id_or_name) {
      return entry.named;
    }
  }
  return nullptr;
}

std::vector<std::shared_ptr<SnapshotData>> SnapshotStore::List() {
  std::vector<std::shared_ptr<SnapshotData>> all;
  const base::MutexLock lock(&mutex_);
  for (auto at = entries_.begin(); at != entries_.end();) {
    if (auto data = at->second.data.lock()) {
      all.push_back(std::move(data));
      ++at;
    } else {
      at = entries_.erase(at);
    }
  }
  return all;
}

absl::StatusOr<std::shared_ptr<SnapshotData>> SnapshotStore::Get(
    std::string_view id_or_name) {
  const base::MutexLock lock(&mutex_);
  if (auto data = FindLocked(id_or_name)) return data;
  return Error(absl::StatusCode::kNotFound, "there is no snapshot \"{}\"",
               std::string(id_or_name));
}

absl::Status SnapshotStore::Delete(const std::shared_ptr<SnapshotData>& data) {
  std::shared_ptr<SnapshotFiles> files;
  Entry last;
  {
    const base::MutexLock lock(&mutex_);
    const auto source = data->source();
    if (!source.ok()) return absl::OkStatus();
    files = source->files;
    if (files != nullptr && !data->record().name.empty()) {
      // From here on it is none, whatever happens.
      const std::string record = (files->path() / kSnapshotRecordName).string();
      if (::unlink(record.c_str()) != 0 && errno != ENOENT) {
        return ErrnoError(errno, "remove {}", record);
      }
      files->Keep(false);
      CATNAP_RETURN_IF_ERROR(io::FsyncDirectory(files->path().string()));
    }
    const auto at = entries_.find(data->record().id);
    if (at != entries_.end()) {
      last = std::move(at->second);
      entries_.erase(at);
    }
  }
  data->LetGo(Error(absl::StatusCode::kFailedPrecondition,
                    "snapshot {} was deleted", data->record().id));
  return absl::OkStatus();
}

void SnapshotStore::Close(const absl::Status& why) {
  std::map<std::string, Entry, std::less<>> entries;
  {
    const base::MutexLock lock(&mutex_);
    entries.swap(entries_);
  }
  for (const auto& [id, entry] : entries) {
    if (const auto data = entry.data.lock()) data->LetGo(why);
  }
}

}  // namespace catnap::runtime
