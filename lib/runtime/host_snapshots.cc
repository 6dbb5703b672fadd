#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <system_error>
#include <utility>
#include <vector>

#include "base/status.h"
#include "base/thread.h"
#include "catnap/errors.h"
#include "io/file.h"
#include "runtime/completion.h"
#include "runtime/directory_copy.h"
#include "runtime/host_core.h"
#include "runtime/options.h"
#include "runtime/snapshot_store.h"

namespace catnap::runtime {
namespace {

// Machines that start at once for one call.
constexpr size_t kMaxStarts = 8;
constexpr size_t kMaxForks = 4096;
constexpr char kSavePrefix[] = ".catnap-save-";

absl::Status Closed() {
  return WithReason(absl::CancelledError("the Host was closed"),
                    ErrorReason::kHostClosed);
}

// What is not set is the parent's.
RunOptions ChildOptions(const RunOptions& child, const RunOptions& parent) {
  const RunOptions unset;
  RunOptions options = child;
  if (!options.idle_policy.has_value()) {
    options.idle_policy = parent.idle_policy;
  }
  if (!options.max_lifetime.has_value()) {
    options.max_lifetime = parent.max_lifetime;
  }
  if (options.env.empty()) options.env = parent.env;
  if (options.labels.empty()) options.labels = parent.labels;
  if (options.egress == unset.egress) options.egress = parent.egress;
  if (options.ingress == unset.ingress) options.ingress = parent.ingress;
  if (options.services.empty()) options.services = parent.services;
  if (options.disks.empty()) options.disks = parent.disks;
  if (options.guest_log == nullptr) options.guest_log = parent.guest_log;
  if (options.on_release == unset.on_release) {
    options.on_release = parent.on_release;
  }
  if (options.durability == unset.durability) {
    options.durability = parent.durability;
  }
  if (options.after_crash == unset.after_crash) {
    options.after_crash = parent.after_crash;
  }
  return options;
}

}  // namespace

absl::StatusOr<std::shared_ptr<HostCore>> HostCore::OfSnapshot(
    const Snapshot& snapshot) {
  if (snapshot.data_ == nullptr) {
    return absl::FailedPreconditionError(
        "the Snapshot is an empty handle; MicroVM::TakeSnapshot() or "
        "Host::GetSnapshot() gives one");
  }
  const std::shared_ptr<void> host = snapshot.data_->host().lock();
  if (host == nullptr) return Closed();
  return std::static_pointer_cast<HostCore>(host);
}

absl::StatusOr<std::shared_ptr<SnapshotData>> HostCore::Take(
    Vm* vm, const SnapshotOptions& options, const agent::CallLimits& call) {
  // Close() stops this and waits for it.
  std::optional<RunningBuild> running;
  {
    const base::MutexLock lock(&mutex_);
    CATNAP_RETURN_IF_ERROR(CheckOpenLocked());
    running.emplace(&builds_);
  }
  std::stop_source stop;
  const std::stop_callback by_caller(call.stop,
                                     [&stop] { stop.request_stop(); });
  const std::stop_callback by_close(builds_.stop.get_token(),
                                    [&stop] { stop.request_stop(); });
  const agent::CallLimits limits(call.deadline, stop.get_token());
  if (!options.name.empty()) {
    CATNAP_RETURN_IF_ERROR(CheckName("name", options.name));
    if (snapshots_->Get(options.name).ok()) {
      return Error(absl::StatusCode::kAlreadyExists,
                   "there is a snapshot \"{}\"; Snapshot::Delete() frees its "
                   "name",
                   options.name);
    }
  }
  CATNAP_RETURN_IF_ERROR(CheckLabels(options.labels));
  SnapshotRecord record;
  CATNAP_ASSIGN_OR_RETURN(record.id, RandomName("snap-"));
  record.name = options.name;
  record.labels = options.labels;
  record.image_name = vm->image().name;
  record.image_major = vm->image().major;
  record.image_disk_id = vm->image().disk_id;
  record.cpu_baseline = vm->image().cpu_baseline;
  record.memory_bytes = vm->image().memory_bytes;
  record.created_at = clock_.WallNow();

  const bool stored = options.where == SnapshotOptions::Where::kStore;
  SnapshotData::Source source;
  CATNAP_ASSIGN_OR_RETURN(source.image_use, images_->Use(vm->image()));
  if (stored) {
    CATNAP_ASSIGN_OR_RETURN(source.files, snapshots_->NewFiles());
  }
  CATNAP_ASSIGN_OR_RETURN(
      std::shared_ptr<CapturedGuest> captured,
      vm->Capture(stored ? CaptureUse::kStore : CaptureUse::kRun, limits,
                  [&](const std::filesystem::path& sleeps_in,
                      uint64_t own_bytes) -> absl::Status {
                    record.own_bytes = own_bytes;
                    if (source.files == nullptr) {
                      CATNAP_ASSIGN_OR_RETURN(source.files,
                                              snapshots_->NewFiles());
                    }
                    return LinkDirectory(sleeps_in, source.files->guest());
                  }));
  if (captured != nullptr) record.own_bytes = captured->own_bytes();
  if (captured != nullptr && stored) {
    StoreOptions store;
    store.durable = !record.name.empty();
    store.stop = limits.stop;
    store.deadline = limits.deadline;
    CATNAP_ASSIGN_OR_RETURN(const StoredSizes sizes,
                            captured->Store(source.files->guest(), store));
    record.own_bytes = sizes.own_bytes;
    record.stored_bytes = sizes.stored_bytes;
  } else if (captured != nullptr) {
    source.origin.captured = std::move(captured);
  } else {
    record.stored_bytes = OccupiedBytes(source.files->path());
  }
  return snapshots_->Add(std::move(record), vm->image_record(),
                         std::move(source));
}

absl::StatusOr<Snapshot> HostCore::TakeSnapshot(Vm* vm,
                                                const SnapshotOptions& options,
                                                const CallOptions& call) {
  CATNAP_ASSIGN_OR_RETURN(const agent::CallLimits limits, LimitsOf(call));
  CATNAP_ASSIGN_OR_RETURN(auto data, Take(vm, options, limits));
  return Snapshot(std::move(data));
}

absl::StatusOr<MicroVM> HostCore::Restore(const Snapshot& snapshot,
                                          RunOptions options,
                                          const CallOptions& call) {
  CATNAP_ASSIGN_OR_RETURN(const auto core, OfSnapshot(snapshot));
  if (core.get() != this) {
    return absl::InvalidArgumentError("the snapshot is of another Host");
  }
  CATNAP_ASSIGN_OR_RETURN(const agent::CallLimits limits, LimitsOf(call));
  CATNAP_ASSIGN_OR_RETURN(const SnapshotData::Source source,
                          snapshot.data_->source());
  return Launch(snapshot.data_->image(), std::move(options), source.origin,
                limits);
}

absl::StatusOr<std::vector<MicroVM>> HostCore::ForkEach(
    Vm* vm, std::vector<RunOptions> children, const CallOptions& call) {
  CATNAP_ASSIGN_OR_RETURN(const agent::CallLimits limits, LimitsOf(call));
  if (children.size() > kMaxForks) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "{} forks are asked for, at most {} are made at once",
                 children.size(), kMaxForks);
  }
  const RunOptions parent = vm->CurrentOptions();
  for (RunOptions& child : children) {
    child = ChildOptions(child, parent);
    child.if_exists = IfExists::kFail;
    CATNAP_RETURN_IF_ERROR(CheckRunOptions(child, vm->image()));
    for (const Disk& disk : child.disks) {
      const bool shared = std::any_of(
          parent.disks.begin(), parent.disks.end(), [&disk](const Disk& other) {
            return !other.read_only && other.image == disk.image;
          });
      if (shared) {
        return Error(absl::StatusCode::kFailedPrecondition,
                     "the parent writes to disk {}: name a copy of it in the "
                     "child's disks",
                     disk.image.string());
      }
    }
  }
  if (children.empty()) return std::vector<MicroVM>();
  SnapshotOptions options;
  options.where = SnapshotOptions::Where::kMemory;
  CATNAP_ASSIGN_OR_RETURN(const auto data, Take(vm, options, limits));
  CATNAP_ASSIGN_OR_RETURN(const SnapshotData::Source source, data->source());
  return LaunchAll(vm->image_record(), std::move(children), source.origin,
                   limits);
}

absl::StatusOr<std::vector<MicroVM>> HostCore::LaunchAll(
    const std::shared_ptr<const ImageRecord>& image,
    std::vector<RunOptions> all, const GuestOrigin& origin,
    const agent::CallLimits& limits) {
  std::vector<std::shared_ptr<Vm>> vms;
  absl::Status status;
  for (RunOptions& options : all) {
    bool is_new = false;
    auto vm = FindOrAdd(image, std::move(options), &is_new);
    if (vm.ok() && !is_new) {
      vm = Error(absl::StatusCode::kAlreadyExists, "there is a MicroVM \"{}\"",
                 (*vm)->id());
    }
    if (!vm.ok()) {
      status = vm.status();
      break;
    }
    vms.push_back(*std::move(vm));
  }
  if (status.ok()) {
    base::Mutex mutex;
    std::atomic<size_t> next{0};
    std::atomic<bool> failed{false};
    const auto work = [&] {
      for (size_t i = next++; i < vms.size() && !failed; i = next++) {
        absl::Status started = vms[i]->Start(limits, origin);
        if (started.ok()) continue;
        failed = true;
        const base::MutexLock lock(&mutex);
        if (status.ok()) status = std::move(started);
      }
    };
    std::vector<base::Thread> threads;
    while (threads.size() + 1 < std::min(vms.size(), kMaxStarts)) {
      auto thread = base::Thread::Start("catnap-fork", work);
      if (!thread.ok()) break;  // The others do it.
      threads.push_back(*std::move(thread));
    }
    work();
    threads.clear();
  }
  // Only now: the last to start would wait for the files of the first.
  if (status.ok()) {
    for (const auto& vm : vms) vm->SyncSoon();
  }
  if (!status.ok()) {
    for (const auto& vm : vms) {
      vm->End(TerminationReason::kRequested,
              "another one of the same call could not be started");
    }
  }
  std::vector<MicroVM> made;
  const base::MutexLock lock(&mutex_);
  for (const auto& vm : vms) {
    const auto at = vms_.find(vm->id());
    if (at == vms_.end() || at->second.vm != vm) {
      if (status.ok()) status = Closed();
    } else if (status.ok()) {
      made.push_back(HandleLocked(at->second));
    } else {
      vms_.erase(at);
    }
  }
  if (!status.ok()) return status;
  return made;
}

std::vector<Snapshot> HostCore::ListSnapshots(const Filter& filter) {
  std::vector<Snapshot> snapshots;
  for (auto& data : snapshots_->List()) {
    const SnapshotRecord& record = data->record();
    if (Matches(filter, record.image_name, record.labels)) {
      snapshots.push_back(Snapshot(std::move(data)));
    }
  }
  return snapshots;
}

absl::StatusOr<Snapshot> HostCore::GetSnapshot(std::string_view id_or_name) {
  CATNAP_ASSIGN_OR_RETURN(auto data, snapshots_->Get(id_or_name));
  return Snapshot(std::move(data));
}

absl::Status HostCore::DeleteSnapshot(
    const std::shared_ptr<SnapshotData>& data) {
  return snapshots_->Delete(data);
}

absl::Status HostCore::VerifySnapshot(const std::shared_ptr<SnapshotData>& data,
                                      const CallOptions& call) {
  CATNAP_ASSIGN_OR_RETURN(const agent::CallLimits limits, LimitsOf(call));
  CATNAP_ASSIGN_OR_RETURN(const SnapshotData::Source source, data->source());
  if (source.files == nullptr) return absl::OkStatus();
  std::optional<RunningBuild> running;
  {
    const base::MutexLock lock(&mutex_);
    CATNAP_RETURN_IF_ERROR(CheckOpenLocked());
    running.emplace(&builds_);
  }
  return factory_->Verify(*data->image(), source.files->guest(), limits);
}

absl::Status HostCore::SaveSnapshot(const std::shared_ptr<SnapshotData>& data,
                                    const std::filesystem::path& dir,
                                    const CallOptions& call) {
  CATNAP_ASSIGN_OR_RETURN(const agent::CallLimits within, LimitsOf(call));
  // Close() stops this and waits for it.
  std::optional<RunningBuild> running;
  {
    const base::MutexLock lock(&mutex_);
    CATNAP_RETURN_IF_ERROR(CheckOpenLocked());
    running.emplace(&builds_);
  }
  std::stop_source stop;
  const std::stop_callback by_caller(within.stop,
                                     [&stop] { stop.request_stop(); });
  const std::stop_callback by_close(builds_.stop.get_token(),
                                    [&stop] { stop.request_stop(); });
  const agent::CallLimits limits(within.deadline, stop.get_token());
  CATNAP_ASSIGN_OR_RETURN(const SnapshotData::Source source, data->source());
  std::error_code error;
  const std::filesystem::path to = std::filesystem::absolute(dir, error);
  if (error || to.filename().empty()) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "dir is \"{}\", must name a new directory", dir.string());
  }
  std::string made = (to.parent_path() / kSavePrefix).string() + "XXXXXX";
  if (::mkdtemp(made.data()) == nullptr) {
    return ErrnoError(errno, "make a directory in {}",
                      to.parent_path().string());
  }
  const SnapshotFiles files(made);  // Removes what is not published.
  const std::filesystem::path image = files.path() / kSnapshotImageName;
  for (const auto& path : {files.guest(), image}) {
    if (::mkdir(path.c_str(), S_IRWXU) != 0) {
      return ErrnoError(errno, "make {}", path.string());
    }
  }
  SnapshotRecord record = data->record();
  if (source.origin.captured != nullptr) {
    StoreOptions store;
    store.stop = limits.stop;
    store.deadline = limits.deadline;
    CATNAP_ASSIGN_OR_RETURN(
        const StoredSizes sizes,
        source.origin.captured->Store(files.guest(), store));
    record.own_bytes = sizes.own_bytes;
    record.stored_bytes = sizes.stored_bytes;
  } else {
    CATNAP_RETURN_IF_ERROR(
        CopyDirectory(source.files->guest(), files.guest(), limits));
  }
  CATNAP_RETURN_IF_ERROR(
      CopyDirectory(data->image()->directory, image, limits));
  CATNAP_ASSIGN_OR_RETURN(const std::vector<uint8_t> bytes,
                          EncodeSnapshotRecord(record));
  CATNAP_ASSIGN_OR_RETURN(
      const auto file,
      io::AtomicFile::Create((files.path() / kSnapshotRecordName).string()));
  CATNAP_RETURN_IF_ERROR(file->Append(bytes.data(), bytes.size()));
  CATNAP_RETURN_IF_ERROR(file->Commit());
  if (::renameat2(AT_FDCWD, files.path().c_str(), AT_FDCWD, to.c_str(),
                  RENAME_NOREPLACE) != 0) {
    return ErrnoError(errno, "rename {} to {}", files.path().string(),
                      to.string());
  }
  return io::FsyncDirectory(to.parent_path().string());
}

absl::StatusOr<std::shared_ptr<const ImageRecord>> HostCore::ImportImage(
    const SnapshotRecord& record, const std::filesystem::path& from,
    const agent::CallLimits& limits) {
  for (auto& known : images_->List()) {
    if (known->name == record.image_name &&
        known->disk_id == record.image_disk_id) {
      return std::move(known);
    }
  }
  CATNAP_ASSIGN_OR_RETURN(
      const std::string bytes,
      io::ReadFile((from / kImageRecordName).string(), kMaxImageRecordBytes));
  CATNAP_ASSIGN_OR_RETURN(
      ImageRecord image,
      DecodeImageRecord(
          {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}));
  if (image.name != record.image_name ||
      image.disk_id != record.image_disk_id) {
    return absl::DataLossError("the snapshot has the image of another one");
  }
  CATNAP_ASSIGN_OR_RETURN(auto draft, images_->NewDraft());
  CATNAP_RETURN_IF_ERROR(CopyDirectory(from, draft->directory(), limits));
  return images_->Publish(std::move(draft), std::move(image));
}

absl::StatusOr<Snapshot> HostCore::LoadSnapshot(
    const std::filesystem::path& dir, const CallOptions& call) {
  CATNAP_ASSIGN_OR_RETURN(const agent::CallLimits within, LimitsOf(call));
  // Close() stops this and waits for it.
  std::optional<RunningBuild> running;
  {
    const base::MutexLock lock(&mutex_);
    CATNAP_RETURN_IF_ERROR(CheckOpenLocked());
    running.emplace(&builds_);
  }
  std::stop_source stop;
  const std::stop_callback by_caller(within.stop,
                                     [&stop] { stop.request_stop(); });
  const std::stop_callback by_close(builds_.stop.get_token(),
                                    [&stop] { stop.request_stop(); });
  const agent::CallLimits limits(within.deadline, stop.get_token());
  CATNAP_ASSIGN_OR_RETURN(const std::string bytes,
                          io::ReadFile((dir / kSnapshotRecordName).string(),
                                       kMaxSnapshotRecordBytes));
  CATNAP_ASSIGN_OR_RETURN(
      SnapshotRecord record,
      DecodeSnapshotRecord(
          {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}));
  SnapshotData::Source source;
  CATNAP_ASSIGN_OR_RETURN(source.files, snapshots_->NewFiles());
  CATNAP_RETURN_IF_ERROR(
      CopyDirectory(dir / kSnapshotGuestName, source.files->guest(), limits));
  CATNAP_ASSIGN_OR_RETURN(
      auto image, ImportImage(record, dir / kSnapshotImageName, limits));
  // Here it is another one than there, with maybe another image version.
  CATNAP_ASSIGN_OR_RETURN(record.id, RandomName("snap-"));
  record.image_major = image->major;
  record.stored_bytes = OccupiedBytes(source.files->path());
  CATNAP_ASSIGN_OR_RETURN(source.image_use, images_->Use(*image));
  CATNAP_ASSIGN_OR_RETURN(
      auto data,
      snapshots_->Add(std::move(record), std::move(image), std::move(source)));
  return Snapshot(std::move(data));
}

}  // namespace catnap::runtime
