#include "runtime/vm_store.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <charconv>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "base/status.h"
#include "io/file.h"

namespace catnap::runtime {
namespace {

constexpr std::string_view kSnapshotPrefix = "s";
constexpr std::string_view kNewPrefix = ".new-s";
constexpr std::string_view kAwakePrefix = "awake-";
constexpr std::string_view kNewRecordName = "vm.catnap.new";

// The number behind `prefix`, written as fmt does.
std::optional<uint64_t> NumberOf(const std::string& name,
                                 std::string_view prefix) {
  if (!name.starts_with(prefix)) return std::nullopt;
  const std::string_view digits = std::string_view(name).substr(prefix.size());
  uint64_t number = 0;
  const auto [end, error] =
      std::from_chars(digits.data(), digits.data() + digits.size(), number);
  if (error != std::errc() || digits != std::to_string(number)) {
    return std::nullopt;
  }
  return number;
}

std::vector<std::string> NamesIn(const std::filesystem::path& directory) {
  std::vector<std::string> names;
  std::error_code error;
  for (std::filesystem::directory_iterator at(directory, error), end;
       !error && at != end; at.increment(error)) {
    names.push_back(at->path().filename().string());
  }
  return names;
}

absl::Status RemoveTree(const std::filesystem::path& path) {
  std::error_code error;
  std::filesystem::remove_all(path, error);
  if (!error) return absl::OkStatus();
  return ErrnoError(error.value(), "remove {}", path.string());
}

absl::Status MakeDirectory(const std::filesystem::path& path) {
  if (::mkdir(path.c_str(), S_IRWXU) == 0) return absl::OkStatus();
  return ErrnoError(errno, "make {}", path.string());
}

// Removes what is not of the snapshot that counts.
void RemoveOthers(const std::filesystem::path& directory, uint64_t snapshot) {
  for (const std::string& name : NamesIn(directory)) {
    const auto number = NumberOf(name, kSnapshotPrefix);
    const auto awake = NumberOf(name, kAwakePrefix);
    if ((number.has_value() && *number != snapshot) ||
        (awake.has_value() && *awake != snapshot) ||
        name.starts_with(kNewPrefix) || name == kNewRecordName ||
        io::AtomicFile::IsTemporaryName(name)) {
      // What stays is removed with the next one.
      std::error_code ignored;
      std::filesystem::remove_all(directory / name, ignored);
    }
  }
}

}  // namespace

std::filesystem::path VmStore::SnapshotPath(uint64_t number) const {
  return directory_ / fmt::format("{}{}", kSnapshotPrefix, number);
}
std::filesystem::path VmStore::NewPath(uint64_t number) const {
  return directory_ / fmt::format("{}{}", kNewPrefix, number);
}
std::filesystem::path VmStore::AwakePath(uint64_t number) const {
  return directory_ / fmt::format("{}{}", kAwakePrefix, number);
}

absl::StatusOr<std::optional<StoredVm>> VmStore::Read(
    const std::filesystem::path& directory) {
  auto bytes =
      io::ReadFile((directory / kVmRecordName).string(), kMaxVmRecordBytes);
  if (absl::IsNotFound(bytes.status())) return std::optional<StoredVm>();
  if (!bytes.ok()) return bytes.status();
  CATNAP_ASSIGN_OR_RETURN(
      VmRecord record,
      DecodeVmRecord(
          {reinterpret_cast<const uint8_t*>(bytes->data()), bytes->size()}));
  if (record.options.id != directory.filename().string()) {
    return absl::DataLossError("a record of another MicroVM");
  }
  const VmStore store(directory, /*durable=*/true);
  std::error_code error;
  StoredVm stored;
  stored.ran = record.snapshot == 0 ||
               std::filesystem::exists(store.AwakePath(record.snapshot), error);
  if (record.snapshot != 0 && !std::filesystem::is_directory(
                                  store.SnapshotPath(record.snapshot), error)) {
    return Error(absl::StatusCode::kDataLoss, "its snapshot {} is missing",
                 store.SnapshotPath(record.snapshot).string());
  }
  RemoveOthers(directory, record.snapshot);
  stored.record = std::move(record);
  return std::optional<StoredVm>(std::move(stored));
}

absl::Status VmStore::Create() {
  if (::mkdir(directory_.c_str(), S_IRWXU) != 0) {
    if (errno != EEXIST)
      return ErrnoError(errno, "make {}", directory_.string());
    if (::access((directory_ / kVmRecordName).c_str(), F_OK) == 0) {
      return Error(absl::StatusCode::kAlreadyExists,
                   "{} has the record of a MicroVM that could not be opened; "
                   "the log says why",
                   directory_.string());
    }
    // What one of this name left that could not be removed at its end.
    CATNAP_RETURN_IF_ERROR(RemoveTree(directory_));
    CATNAP_RETURN_IF_ERROR(MakeDirectory(directory_));
  }
  Adopt();
  return MakeDirectory(live());
}

absl::Status VmStore::ClearLive() {
  CATNAP_RETURN_IF_ERROR(RemoveTree(live()));
  return MakeDirectory(live());
}

absl::Status VmStore::Write(const VmRecord& record, bool sync) {
  if (!durable_) return absl::OkStatus();
  CATNAP_ASSIGN_OR_RETURN(const std::vector<uint8_t> bytes,
                          EncodeVmRecord(record));
  const base::MutexLock lock(&mutex_);
  const std::string path = (directory_ / kVmRecordName).string();
  if (sync) {
    CATNAP_ASSIGN_OR_RETURN(const auto file, io::AtomicFile::Create(path));
    CATNAP_RETURN_IF_ERROR(file->Append(bytes.data(), bytes.size()));
    return file->Commit();
  }
  const std::string fresh = (directory_ / kNewRecordName).string();
  CATNAP_ASSIGN_OR_RETURN(const base::UniqueFd file,
                          io::OpenFile(fresh, O_WRONLY | O_CREAT | O_TRUNC));
  CATNAP_RETURN_IF_ERROR(
      io::WriteFully(file.get(), bytes.data(), bytes.size(), 0));
  if (::rename(fresh.c_str(), path.c_str()) != 0) {
    return ErrnoError(errno, "rename {}", fresh);
  }
  return absl::OkStatus();
}

absl::Status VmStore::Sync() {
  if (!durable_) return absl::OkStatus();
  const base::MutexLock lock(&mutex_);
  CATNAP_ASSIGN_OR_RETURN(
      const base::UniqueFd file,
      io::OpenFile((directory_ / kVmRecordName).string(), O_RDONLY));
  if (::fsync(file.get()) != 0) return ErrnoError(errno, "fsync the record");
  CATNAP_RETURN_IF_ERROR(io::FsyncDirectory(directory_.string()));
  return io::FsyncDirectory(directory_.parent_path().string());
}

absl::StatusOr<std::filesystem::path> VmStore::BeginSnapshot(uint64_t number) {
  std::filesystem::path path = NewPath(number);
  CATNAP_RETURN_IF_ERROR(RemoveTree(path));
  CATNAP_RETURN_IF_ERROR(MakeDirectory(path));
  return path;
}

void VmStore::DropSnapshot(uint64_t number) {
  std::error_code ignored;  // Read() and BeginSnapshot() look again.
  std::filesystem::remove_all(NewPath(number), ignored);
}

absl::Status VmStore::PublishSnapshot(const VmRecord& record) {
  const std::filesystem::path from = NewPath(record.snapshot);
  const std::filesystem::path to = SnapshotPath(record.snapshot);
  if (durable_) CATNAP_RETURN_IF_ERROR(io::FsyncDirectory(from.string()));
  if (::rename(from.c_str(), to.c_str()) != 0) {
    return ErrnoError(errno, "rename {} to {}", from.string(), to.string());
  }
  if (durable_) {
    CATNAP_RETURN_IF_ERROR(io::FsyncDirectory(directory_.string()));
    // After an error the record may have its name all the same, and then it
    // needs its snapshot: that stays.
    CATNAP_RETURN_IF_ERROR(Write(record, /*sync=*/true));
  }
  RemoveOthers(directory_, record.snapshot);
  return absl::OkStatus();
}

std::filesystem::path VmStore::FindSnapshot(uint64_t number) const {
  std::error_code error;
  std::filesystem::path unpublished = NewPath(number);
  return std::filesystem::is_directory(unpublished, error)
             ? unpublished
             : SnapshotPath(number);
}

absl::Status VmStore::MarkAwake(uint64_t number) {
  if (!durable_ || number == 0) return absl::OkStatus();
  const base::MutexLock lock(&mutex_);
  CATNAP_ASSIGN_OR_RETURN(
      const base::UniqueFd file,
      io::OpenFile(AwakePath(number).string(), O_WRONLY | O_CREAT));
  return absl::OkStatus();
}

absl::Status VmStore::ClearAwake(uint64_t number) {
  if (!durable_ || number == 0) return absl::OkStatus();
  const base::MutexLock lock(&mutex_);
  if (::unlink(AwakePath(number).c_str()) != 0 && errno != ENOENT) {
    return ErrnoError(errno, "remove {}", AwakePath(number).string());
  }
  return io::FsyncDirectory(directory_.string());
}

absl::Status VmStore::Remove() {
  if (!owned_) return absl::OkStatus();
  const base::MutexLock lock(&mutex_);
  // First the record: without one the rest is what is removed at the next
  // start.
  ::unlink((directory_ / kVmRecordName).c_str());
  return RemoveTree(directory_);
}

}  // namespace catnap::runtime
