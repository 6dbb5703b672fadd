#include "runtime/image_store.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>

#include "base/status.h"
#include "catnap/errors.h"
#include "io/file.h"

namespace catnap::runtime {
namespace {

constexpr char kDraftPrefix[] = ".build-";
constexpr char kDeletedPrefix[] = ".deleted-";
constexpr char kLockPrefix[] = ".lock-";
constexpr uint32_t kMaxMajor = 1'000'000'000;

std::string VersionText(uint32_t major) { return fmt::format("{}.0", major); }

// The number of "12.0", written as VersionText() does.
std::optional<uint32_t> ParseVersion(std::string_view text) {
  uint32_t major = 0;
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), major);
  if (error != std::errc() || major == 0 || major > kMaxMajor ||
      text != VersionText(major)) {
    return std::nullopt;
  }
  return major;
}

// Names in a directory; empty when it cannot be read.
std::vector<std::string> NamesIn(const std::filesystem::path& directory) {
  std::vector<std::string> names;
  std::error_code error;
  for (std::filesystem::directory_iterator at(directory, error), end;
       !error && at != end; at.increment(error)) {
    names.push_back(at->path().filename().string());
  }
  return names;
}

// Bytes that the files of a version occupy.
uint64_t StoredBytes(const std::filesystem::path& directory) {
  uint64_t bytes = 0;
  std::error_code error;
  for (std::filesystem::recursive_directory_iterator at(directory, error), end;
       !error && at != end; at.increment(error)) {
    struct stat info {};
    if (::lstat(at->path().c_str(), &info) == 0) {
      bytes += static_cast<uint64_t>(info.st_blocks) * 512;
    }
  }
  return bytes;
}

absl::StatusOr<std::filesystem::path> MakeUniqueDirectory(
    const std::filesystem::path& parent, const std::string& prefix) {
  std::string path = (parent / (prefix + "XXXXXX")).string();
  if (::mkdtemp(path.data()) == nullptr) {
    return ErrnoError(errno, "make a directory in {}", parent.string());
  }
  return std::filesystem::path(path);
}

// LOCK_EX says that somebody makes or removes a directory, LOCK_SH that
// somebody needs it. Errors: UNAVAILABLE, another has a lock that this one
// cannot share.
absl::StatusOr<base::UniqueFd> LockDirectory(
    const std::filesystem::path& directory, int kind) {
  base::UniqueFd fd(
      ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (fd.valid() && ::flock(fd.get(), kind | LOCK_NB) == 0) return fd;
  if (fd.valid() && errno == EWOULDBLOCK) {
    return Error(absl::StatusCode::kUnavailable, "{} is locked",
                 directory.string());
  }
  return ErrnoError(errno, "lock {}", directory.string());
}

}  // namespace

ImageStore::Draft::~Draft() {
  std::error_code ignored;  // The next Open() removes what is left.
  if (!directory_.empty()) {
    std::filesystem::remove_all(directory_, ignored);
  }
}

absl::StatusOr<std::unique_ptr<ImageStore>> ImageStore::Open(
    std::filesystem::path directory, base::Logger log) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error) {
    return ErrnoError(error.value(), "make image_dir {}", directory.string());
  }
  std::unique_ptr<ImageStore> store(
      new ImageStore(std::move(directory), std::move(log)));
  store->RemoveAbandoned();
  return store;
}

absl::StatusOr<std::unique_ptr<ImageStore::RecipeLock>> ImageStore::LockRecipe(
    const std::string& text, const agent::CallLimits& limits) {
  constexpr auto kLookAgain = std::chrono::milliseconds(20);
  const std::string path = (directory_ / (kLockPrefix + text)).string();
  for (;;) {
    CATNAP_ASSIGN_OR_RETURN(base::UniqueFd fd,
                            io::OpenFile(path, O_RDWR | O_CREAT, 0644));
    if (::flock(fd.get(), LOCK_EX | LOCK_NB) == 0) {
      struct stat ours {};
      struct stat there {};
      if (::fstat(fd.get(), &ours) == 0 && ::stat(path.c_str(), &there) == 0 &&
          ours.st_ino == there.st_ino) {
        return std::make_unique<RecipeLock>(path, std::move(fd));
      }
      continue;  // Its last owner removed it.
    }
    if (errno != EWOULDBLOCK && errno != EINTR) {
      return ErrnoError(errno, "lock {}", path);
    }
    if (limits.stop.stop_requested()) {
      return absl::CancelledError("cancelled while another build runs");
    }
    if (limits.deadline.has_value() &&
        std::chrono::steady_clock::now() >= *limits.deadline) {
      return absl::DeadlineExceededError(
          "another build of the same image has not ended within CallOptions::"
          "timeout");
    }
    std::this_thread::sleep_for(kLookAgain);
  }
}

ImageStore::RecipeLock::~RecipeLock() { ::unlink(path_.c_str()); }

void ImageStore::RemoveAbandoned() const {
  for (const std::string& name : NamesIn(directory_)) {
    const bool draft = name.starts_with(kDraftPrefix);
    if (!draft && !name.starts_with(kDeletedPrefix)) continue;
    const auto lock = LockDirectory(directory_ / name, LOCK_EX);
    if (!lock.ok()) continue;
    std::error_code error;
    std::filesystem::remove_all(directory_ / name, error);
    if (!error && draft) {
      log_.Info("removed {}: its build ended early",
                (directory_ / name).string());
    }
  }
}

absl::StatusOr<std::unique_ptr<ImageStore::Draft>> ImageStore::NewDraft() {
  // Another process may open the store between the two steps and take the
  // directory for an abandoned one.
  for (int i = 0; i < 10; ++i) {
    CATNAP_ASSIGN_OR_RETURN(std::filesystem::path directory,
                            MakeUniqueDirectory(directory_, kDraftPrefix));
    auto lock = LockDirectory(directory, LOCK_EX);
    struct stat info {};
    if (lock.ok() && ::stat(directory.c_str(), &info) == 0) {
      return std::make_unique<Draft>(std::move(directory), *std::move(lock));
    }
  }
  return Error(absl::StatusCode::kUnavailable,
               "another process removes what is made in {}; try again",
               directory_.string());
}

absl::StatusOr<std::shared_ptr<const ImageRecord>> ImageStore::Publish(
    std::unique_ptr<Draft> draft, ImageRecord record) {
  const std::filesystem::path family = directory_ / record.name;
  if (::mkdir(family.c_str(), 0755) != 0 && errno != EEXIST) {
    return ErrnoError(errno, "make {}", family.string());
  }
  const std::vector<uint32_t> versions = VersionsOf(record.name);
  record.major = versions.empty() ? 1 : versions.back() + 1;
  // Other builds of the name may be faster; each try has a higher number.
  for (; record.major <= kMaxMajor; ++record.major) {
    CATNAP_ASSIGN_OR_RETURN(const std::vector<uint8_t> bytes,
                            EncodeImageRecord(record));
    const std::string file = (draft->directory() / kImageRecordName).string();
    CATNAP_ASSIGN_OR_RETURN(const auto stored,
                            io::AtomicFile::Create(file, 0644));
    CATNAP_RETURN_IF_ERROR(stored->Append(bytes.data(), bytes.size()));
    CATNAP_RETURN_IF_ERROR(stored->Commit());
    if (::chmod(draft->directory().c_str(), 0755) != 0) {
      return ErrnoError(errno, "chmod {}", draft->directory().string());
    }
    const std::filesystem::path to = family / VersionText(record.major);
    if (::renameat2(AT_FDCWD, draft->directory().c_str(), AT_FDCWD, to.c_str(),
                    RENAME_NOREPLACE) == 0) {
      draft->directory_.clear();
      draft->lock_.Reset();  // For those that use it.
      CATNAP_RETURN_IF_ERROR(io::FsyncDirectory(family.string()));
      CATNAP_RETURN_IF_ERROR(io::FsyncDirectory(directory_.string()));
      return Read(record.name, record.major);
    }
    if (errno != EEXIST && errno != ENOTEMPTY) {
      return ErrnoError(errno, "rename {} to {}", draft->directory().string(),
                        to.string());
    }
  }
  return Error(absl::StatusCode::kResourceExhausted, "{} has {} versions",
               record.name, kMaxMajor);
}

std::vector<uint32_t> ImageStore::VersionsOf(const std::string& name) const {
  std::vector<uint32_t> versions;
  for (const std::string& text : NamesIn(directory_ / name)) {
    if (const auto major = ParseVersion(text)) versions.push_back(*major);
  }
  std::sort(versions.begin(), versions.end());
  return versions;
}

absl::StatusOr<std::shared_ptr<const ImageRecord>> ImageStore::Read(
    const std::string& name, uint32_t major) const {
  const std::filesystem::path directory =
      directory_ / name / VersionText(major);
  CATNAP_ASSIGN_OR_RETURN(const std::string bytes,
                          io::ReadFile((directory / kImageRecordName).string(),
                                       kMaxImageRecordBytes));
  auto record = DecodeImageRecord(
      {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
  if (record.ok() && (record->name != name || record->major != major)) {
    record = absl::DataLossError("a record of another image");
  }
  if (!record.ok()) return AddContext(record.status(), directory.string());
  record->directory = directory;
  record->version = VersionText(major);
  record->stored_bytes = StoredBytes(directory);
  return std::make_shared<const ImageRecord>(*std::move(record));
}

absl::StatusOr<std::shared_ptr<const ImageRecord>> ImageStore::Get(
    std::string_view name, std::string_view version) const {
  const std::string family(name);
  CATNAP_RETURN_IF_ERROR(CheckName("name", family));
  const std::vector<uint32_t> versions = VersionsOf(family);
  if (versions.empty()) {
    return Error(absl::StatusCode::kNotFound,
                 "{} has no image \"{}\"; Image::Build() makes one",
                 directory_.string(), family);
  }
  if (version.empty()) return Read(family, versions.back());
  const auto major = ParseVersion(version);
  if (!major.has_value() ||
      !std::binary_search(versions.begin(), versions.end(), *major)) {
    return Error(absl::StatusCode::kNotFound,
                 "image \"{}\" has no version \"{}\"; the newest is {}", family,
                 std::string(version), VersionText(versions.back()));
  }
  return Read(family, *major);
}

std::shared_ptr<const ImageRecord> ImageStore::FindRecipe(
    const std::string& name, const std::vector<uint8_t>& recipe) const {
  const std::vector<uint32_t> versions = VersionsOf(name);
  for (auto at = versions.rbegin(); at != versions.rend(); ++at) {
    auto record = Read(name, *at);
    if (record.ok() && (*record)->recipe == recipe) return *std::move(record);
  }
  return nullptr;
}

std::vector<std::shared_ptr<const ImageRecord>> ImageStore::List() const {
  std::vector<std::shared_ptr<const ImageRecord>> records;
  std::vector<std::string> names = NamesIn(directory_);
  std::sort(names.begin(), names.end());
  for (const std::string& name : names) {
    if (!CheckName("name", name).ok()) continue;
    for (const uint32_t major : VersionsOf(name)) {
      auto record = Read(name, major);
      if (record.ok()) {
        records.push_back(*std::move(record));
      } else {
        log_.LogIfError(record.status(), "image {} {} is left out", name,
                        VersionText(major));
      }
    }
  }
  return records;
}

absl::StatusOr<ImageUse> ImageStore::Use(const ImageRecord& record) {
  const std::string directory = record.directory.string();
  const base::MutexLock lock(&mutex_);
  std::erase_if(uses_, [](const auto& use) { return use.second.expired(); });
  if (const auto at = uses_.find(directory); at != uses_.end()) {
    if (auto known = at->second.lock()) return known;
  }
  auto fd = LockDirectory(directory, LOCK_SH);
  if (absl::IsUnavailable(fd.status())) {
    return Error(absl::StatusCode::kUnavailable,
                 "image {} {} is being published or deleted; try again",
                 record.name, record.version);
  }
  struct stat locked {};
  struct stat named {};
  const bool gone = absl::IsNotFound(fd.status()) ||
                    (fd.ok() && (::fstat(fd->get(), &locked) != 0 ||
                                 ::stat(directory.c_str(), &named) != 0 ||
                                 locked.st_ino != named.st_ino));
  if (gone) {
    return Error(absl::StatusCode::kNotFound,
                 "image {} {} was deleted; Image::Build() makes another",
                 record.name, record.version);
  }
  if (!fd.ok()) return fd.status();
  auto use = std::make_shared<const base::UniqueFd>(*std::move(fd));
  uses_[directory] = use;
  return use;
}

absl::Status ImageStore::Delete(const ImageRecord& record) {
  const auto lock = LockDirectory(record.directory, LOCK_EX);
  if (absl::IsUnavailable(lock.status())) {
    return WithReason(
        Error(
            absl::StatusCode::kFailedPrecondition,
            "image {} {} is in use: end the MicroVMs and delete the snapshots "
            "that come from it first",
            record.name, record.version),
        ErrorReason::kInUse);
  }
  const std::filesystem::path store =
      record.directory.parent_path().parent_path();
  CATNAP_ASSIGN_OR_RETURN(const std::filesystem::path grave,
                          MakeUniqueDirectory(store, kDeletedPrefix));
  // Onto the empty directory: it is gone at once, and whole.
  if (::rename(record.directory.c_str(), grave.c_str()) != 0) {
    const int why = errno;
    ::rmdir(grave.c_str());
    if (why == ENOENT) return absl::OkStatus();
    return ErrnoError(why, "remove {}", record.directory.string());
  }
  absl::Status synced =
      io::FsyncDirectory(record.directory.parent_path().string());
  std::error_code error;
  std::filesystem::remove_all(grave, error);
  if (error) return ErrnoError(error.value(), "remove {}", grave.string());
  return synced;
}

}  // namespace catnap::runtime
