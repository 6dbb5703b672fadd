#include "runtime/machine_factory.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <system_error>
#include <utility>
#include <vector>

#include "agent/process.h"
#include "base/sha256.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "io/file.h"
#include "runtime/completion.h"
#include "runtime/machine_guest.h"
#include "runtime/running_machine.h"
#include "runtime/stored_disk.h"
#include "snapshot/reader.h"
#include "vmm/host_check.h"

namespace catnap::runtime {
namespace {

constexpr char kKernelName[] = "vmlinux";
constexpr char kInitramfsName[] = "agent.initramfs";
constexpr char kTrainingSleepName[] = "asleep";
// Templates of images that stay in memory though no guest runs from them.
constexpr size_t kMaxTemplates = 8;
// For the exec of a training.
constexpr std::chrono::seconds kLongestTraining{30};
constexpr size_t kPieceBytes = size_t{1} << 20;

bool IsFile(const std::filesystem::path& path) {
  std::error_code error;
  return std::filesystem::is_regular_file(path, error);
}

// As they were touched, but for neighbours that were touched one soon after the
// other: those are one piece to put in place, and compress better.
std::vector<base::PageRange> Gathered(std::vector<base::PageRange> touched) {
  constexpr size_t kAtOnce = 256;  // Mostly pages.
  for (size_t at = 0; at < touched.size(); at += kAtOnce) {
    const size_t end = std::min(at + kAtOnce, touched.size());
    std::sort(touched.begin() + static_cast<ptrdiff_t>(at),
              touched.begin() + static_cast<ptrdiff_t>(end),
              [](const base::PageRange& a, const base::PageRange& b) {
                return a.offset < b.offset;
              });
  }
  return touched;
}

// The way of an exec through the guest, whether the program is there or not.
absl::Status ExecAnything(Guest& guest, const agent::CallLimits& limits) {
  agent::CallLimits within = limits;
  const auto latest = std::chrono::steady_clock::now() + kLongestTraining;
  if (!within.deadline.has_value() || *within.deadline > latest) {
    within.deadline = latest;
  }
  CATNAP_ASSIGN_OR_RETURN(const auto client,
                          guest.WaitForClient(*within.deadline, [&within] {
                            return within.stop.stop_requested();
                          }));
  agent::ExecRequest request;
  request.argv = {"/bin/true"};
  const Completion<absl::Status> executed;
  CATNAP_RETURN_IF_ERROR(
      agent::Exec(
          client.get(), std::move(request), /*max_output_bytes=*/0, within,
          [executed](const absl::StatusOr<agent::ExecOutcome>& outcome) {
            executed.Set(outcome.status());
          })
          .status());
  return executed.Wait();
}

}  // namespace

absl::StatusOr<GuestFiles> FindGuestFiles(const std::filesystem::path& kernel) {
  std::vector<std::filesystem::path> directories;
  // NOLINTNEXTLINE(concurrency-mt-unsafe): the host program's own affair.
  if (const char* named = std::getenv("CATNAP_GUEST_DIR"); named != nullptr) {
    directories.emplace_back(named);
  }
  directories.emplace_back(CATNAP_INSTALLED_GUEST_DIR);
  directories.emplace_back(CATNAP_BUILT_GUEST_DIR);
  if (!kernel.empty() && !IsFile(kernel)) {
    return Error(absl::StatusCode::kNotFound,
                 "HostOptions::kernel is {}, which is no file",
                 kernel.string());
  }
  for (const auto& directory : directories) {
    GuestFiles files{kernel.empty() ? directory / kKernelName : kernel,
                     directory / kInitramfsName};
    if (IsFile(files.kernel) && IsFile(files.initramfs)) return files;
  }
  return Error(absl::StatusCode::kFailedPrecondition,
               "no guest kernel: {} and {} are not in {}; install the "
               "component guest_kernel, or name their directory by the "
               "environment variable CATNAP_GUEST_DIR",
               kKernelName, kInitramfsName, directories.front().string());
}

MachineFactory::MachineFactory(Options options)
    : options_(std::move(options)),
      outstanding_(std::make_shared<Outstanding>()),
      layers_(std::make_shared<disk::LayerCache>()) {}

MachineFactory::~MachineFactory() {
  const base::MutexLock lock(&outstanding_->mutex);
  while (outstanding_->holders > 0) {
    outstanding_->none.Wait(&outstanding_->mutex);
  }
}

absl::StatusOr<MachineMeans> MachineFactory::Means() {
  MachineMeans means;
  CATNAP_ASSIGN_OR_RETURN(means.files, FindGuestFiles(options_.kernel));
  means.clock = options_.clock;
  means.outstanding = outstanding_;
  means.layers = layers_;
  means.kick_signal = options_.kick_signal;
  means.compression_level = options_.compression_level;
  CATNAP_ASSIGN_OR_RETURN(means.workers, Workers());
  const base::MutexLock lock(&mutex_);
  if (shells_ == nullptr) {
    CATNAP_ASSIGN_OR_RETURN(auto system, kvm::System::Open());
    CATNAP_RETURN_IF_ERROR(
        vmm::CheckRunsLinuxOnce(system, options_.kvm_record.string()));
    CATNAP_ASSIGN_OR_RETURN(shells_,
                            vmm::ShellPool::Create(std::move(system), {}));
  }
  means.shells = shells_.get();
  return means;
}

absl::StatusOr<snapshot::WorkerPool*> MachineFactory::Workers() {
  const base::MutexLock lock(&mutex_);
  if (workers_ == nullptr) {
    CATNAP_ASSIGN_OR_RETURN(workers_,
                            snapshot::WorkerPool::Create(/*threads=*/0));
  }
  return workers_.get();
}

absl::StatusOr<std::shared_ptr<const vmm::GuestTemplate>>
MachineFactory::LoadedTemplate(const ImageRecord& image,
                               const vmm::StorageOptions& options) {
  const std::filesystem::path directory = image.directory / kImageGuestName;
  // Held while it is loaded: who wants the same one waits for it.
  const base::MutexLock lock(&templates_mutex_);
  for (auto at = templates_.begin(); at != templates_.end(); ++at) {
    if (at->first != directory) continue;
    if (!at->second->memory_status().ok()) {
      // Those who run from it end. Somebody may have repaired the disk.
      templates_.erase(at);
      break;
    }
    templates_.splice(templates_.begin(), templates_, at);
    return templates_.front().second;
  }
  CATNAP_ASSIGN_OR_RETURN(
      auto loaded, vmm::GuestTemplate::Load(directory.string(),
                                            vmm::GuestTemplate::Role::kImage,
                                            nullptr, options));
  templates_.emplace_front(directory, loaded);
  if (templates_.size() > kMaxTemplates) templates_.pop_back();
  return loaded;
}

absl::StatusOr<std::shared_ptr<const vmm::GuestTemplate>>
MachineFactory::TemplateOf(const ImageRecord& image, const MachineMeans& means,
                           Prefetch prefetch) {
  if (!image.has_guest) return nullptr;
  const vmm::StorageOptions options{.pool = means.workers,
                                    .prefetch = PrefetchOf(prefetch)};
  CATNAP_ASSIGN_OR_RETURN(auto loaded, LoadedTemplate(image, options));
  CATNAP_RETURN_IF_ERROR(loaded->Fetch(options));
  return loaded;
}

absl::StatusOr<std::unique_ptr<Guest>> MachineFactory::Start(
    GuestConfig config) {
  CATNAP_ASSIGN_OR_RETURN(const MachineMeans means, Means());
  CATNAP_ASSIGN_OR_RETURN(auto image,
                          TemplateOf(*config.image, means, config.prefetch));
  std::shared_ptr<const vmm::GuestTemplate> origin;
  if (config.origin.has_value()) {
    const GuestOrigin& from = *config.origin;
    if (from.captured != nullptr) {
      // All captured guests are ours: who made this one had it from here.
      const auto& captured =
          static_cast<const CapturedMachine&>(*from.captured);
      origin = captured.guest_template();
      CATNAP_RETURN_IF_ERROR(TakeLayers(captured.layers(), config));
    } else if (from.directory == config.image->directory / kImageGuestName) {
      origin = image;
    } else {
      CATNAP_ASSIGN_OR_RETURN(
          origin,
          vmm::GuestTemplate::Load(from.directory.string(),
                                   vmm::GuestTemplate::Role::kGuest, image,
                                   {.pool = means.workers,
                                    .prefetch = PrefetchOf(config.prefetch)}));
    }
    if (origin == nullptr) {
      return Error(absl::StatusCode::kNotFound, "no guest is stored in {}",
                   from.directory.string());
    }
    if (from.captured == nullptr) {
      CATNAP_RETURN_IF_ERROR(TakeDisk(from.directory, *origin, config));
    }
  }
  return MachineGuest::Start(means, std::move(config), std::move(image),
                             std::move(origin));
}

absl::StatusOr<std::vector<base::PageRange>> MachineFactory::Train(
    GuestConfig config, const std::shared_ptr<CapturedGuest>& captured,
    const agent::CallLimits& limits) {
  CATNAP_ASSIGN_OR_RETURN(const MachineMeans means, Means());
  const std::filesystem::path stored = config.directory / kImageGuestName;
  std::error_code error;
  std::filesystem::create_directories(stored, error);
  if (error) return ErrnoError(error.value(), "make {}", stored.string());
  StoreOptions store;
  store.durable = false;
  store.stop = limits.stop;
  store.deadline = limits.deadline;
  CATNAP_RETURN_IF_ERROR(captured->Store(stored, store).status());
  CATNAP_ASSIGN_OR_RETURN(
      const Template copy,
      vmm::GuestTemplate::Load(stored.string(),
                               vmm::GuestTemplate::Role::kImage, nullptr,
                               {.pool = means.workers,
                                .prefetch = vmm::Prefetch::kRecord,
                                .stop = limits.stop,
                                .deadline = limits.deadline}));
  if (!copy->no_paging().ok()) return std::vector<base::PageRange>();
  CATNAP_RETURN_IF_ERROR(TakeDisk(stored, *copy, config));
  config.origin =
      GuestOrigin{.directory = stored, .captured = {}, .is_copy = true};
  GuestConfig awake = config;
  CATNAP_ASSIGN_OR_RETURN(
      auto guest, MachineGuest::Start(means, std::move(config), nullptr, copy));
  CATNAP_RETURN_IF_ERROR(ExecAnything(*guest, limits));

  // And what one touches that slept, which other parts of the kernel wake.
  const std::filesystem::path asleep = awake.directory / kTrainingSleepName;
  std::filesystem::create_directory(asleep, error);
  if (error) return ErrnoError(error.value(), "make {}", asleep.string());
  CATNAP_RETURN_IF_ERROR(guest->Suspend(asleep, store).status());
  guest->Stop();
  guest.reset();
  CATNAP_ASSIGN_OR_RETURN(
      const Template slept,
      vmm::GuestTemplate::Load(asleep.string(),
                               vmm::GuestTemplate::Role::kGuest, copy,
                               {.pool = means.workers,
                                .prefetch = PrefetchOf(awake.prefetch),
                                .stop = limits.stop,
                                .deadline = limits.deadline}));
  CATNAP_RETURN_IF_ERROR(TakeDisk(asleep, *slept, awake));
  awake.origin =
      GuestOrigin{.directory = asleep, .captured = {}, .is_copy = false};
  CATNAP_ASSIGN_OR_RETURN(
      guest, MachineGuest::Start(means, std::move(awake), copy, slept));
  CATNAP_RETURN_IF_ERROR(ExecAnything(*guest, limits));
  guest->Stop();
  return Gathered(copy->Touched());
}

absl::StatusOr<std::string> MachineFactory::Identity() {
  CATNAP_ASSIGN_OR_RETURN(const GuestFiles files,
                          FindGuestFiles(options_.kernel));
  base::Sha256 digest;
  for (const auto& path : {files.kernel, files.initramfs}) {
    CATNAP_ASSIGN_OR_RETURN(const base::UniqueFd file,
                            io::OpenFile(path.string(), O_RDONLY));
    std::vector<uint8_t> piece(kPieceBytes);
    ssize_t got = 0;
    while ((got = ::read(file.get(), piece.data(), piece.size())) > 0) {
      digest.Update({piece.data(), static_cast<size_t>(got)});
    }
    if (got < 0) return ErrnoError(errno, "read {}", path.string());
  }
  return base::HexText(digest.Finish());
}

absl::Status MachineFactory::Verify(const ImageRecord& image,
                                    const std::filesystem::path& directory,
                                    const agent::CallLimits& limits) {
  CATNAP_ASSIGN_OR_RETURN(snapshot::WorkerPool* const workers, Workers());
  CATNAP_ASSIGN_OR_RETURN(const auto reader,
                          snapshot::SnapshotReader::Open(directory.string()));
  if (reader->ram_bytes() != image.memory_bytes) {
    return Error(absl::StatusCode::kDataLoss,
                 "{} has {} bytes of memory, its image {}", directory.string(),
                 reader->ram_bytes(), image.memory_bytes);
  }
  // Only its id is asked for.
  CATNAP_ASSIGN_OR_RETURN(const auto base, OpenBaseDisk(image, nullptr));
  CATNAP_ASSIGN_OR_RETURN(
      const disk::LayerChain chain,
      ReadStoredDisk(directory, base.get(), reader->sections()));
  CATNAP_RETURN_IF_ERROR(VerifyStoredDisk(chain));
  return reader->Verify(
      {.pool = workers, .stop = limits.stop, .deadline = limits.deadline});
}

absl::Status MachineFactory::Prewarm(const ImageRecord& image, int count) {
  CATNAP_ASSIGN_OR_RETURN(const MachineMeans means, Means());
  CATNAP_RETURN_IF_ERROR(TemplateOf(image, means, Prefetch::kAll).status());
  return means.shells->Prewarm(RunningMachine::ShellOf(image, means, 1),
                               static_cast<uint64_t>(count));
}

}  // namespace catnap::runtime
