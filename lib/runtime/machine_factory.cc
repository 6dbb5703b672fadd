#include <cstdlib>
#include <system_error>
#include <utility>
#include <vector>

#include "base/status.h"
#include "disk/layer_chain.h"
#include "runtime/machine_guest.h"
#include "runtime/running_machine.h"
#include "runtime/sleeping_guest.h"
#include "snapshot/format.h"
#include "vmm/host_check.h"

namespace catnap::runtime {
namespace {

constexpr char kKernelName[] = "vmlinux";
constexpr char kInitramfsName[] = "agent.initramfs";
// Templates of images that stay in memory though no guest runs from them.
constexpr size_t kMaxTemplates = 8;

bool IsFile(const std::filesystem::path& path) {
  std::error_code error;
  return std::filesystem::is_regular_file(path, error);
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

bool HasStoredGuest(const std::filesystem::path& directory) {
  return IsFile(directory / snapshot::kMemoryFileName);
}

MachineFactory::MachineFactory(Options options)
    : options_(std::move(options)),
      outstanding_(std::make_shared<Outstanding>()) {}

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
  means.kick_signal = options_.kick_signal;
  means.compression_level = options_.compression_level;
  const base::MutexLock lock(&mutex_);
  if (shells_ == nullptr) {
    CATNAP_ASSIGN_OR_RETURN(auto system, kvm::System::Open());
    CATNAP_RETURN_IF_ERROR(vmm::CheckRunsLinux(system));
    CATNAP_ASSIGN_OR_RETURN(shells_,
                            vmm::ShellPool::Create(std::move(system), {}));
  }
  if (workers_ == nullptr) {
    CATNAP_ASSIGN_OR_RETURN(workers_,
                            snapshot::WorkerPool::Create(/*threads=*/0));
  }
  means.shells = shells_.get();
  means.workers = workers_.get();
  return means;
}

absl::StatusOr<std::shared_ptr<const vmm::GuestTemplate>>
MachineFactory::TemplateOf(const ImageRecord& image,
                           const MachineMeans& means) {
  if (!HasStoredGuest(image.directory)) return nullptr;
  // Held while it is loaded: who wants the same one waits for it.
  const base::MutexLock lock(&templates_mutex_);
  for (auto at = templates_.begin(); at != templates_.end(); ++at) {
    if (at->first != image.directory) continue;
    templates_.splice(templates_.begin(), templates_, at);
    return templates_.front().second;
  }
  CATNAP_ASSIGN_OR_RETURN(
      auto loaded, vmm::GuestTemplate::Load(image.directory.string(),
                                            vmm::GuestTemplate::Role::kImage,
                                            nullptr, {.pool = means.workers}));
  templates_.emplace_front(image.directory, loaded);
  if (templates_.size() > kMaxTemplates) templates_.pop_back();
  return loaded;
}

absl::StatusOr<std::unique_ptr<Guest>> MachineFactory::Start(
    GuestConfig config) {
  CATNAP_ASSIGN_OR_RETURN(const MachineMeans means, Means());
  CATNAP_ASSIGN_OR_RETURN(auto image, TemplateOf(*config.image, means));
  std::shared_ptr<const vmm::GuestTemplate> origin;
  if (config.origin.has_value()) {
    const GuestOrigin& from = *config.origin;
    std::filesystem::path disk = from.directory;
    if (from.captured != nullptr) {
      // All captured guests are ours: who made this one had it from here.
      const auto& captured =
          static_cast<const CapturedMachine&>(*from.captured);
      origin = captured.guest_template();
      disk = captured.disk_directory();
    } else if (from.directory == config.image->directory) {
      origin = image;
    } else {
      CATNAP_ASSIGN_OR_RETURN(
          origin, vmm::GuestTemplate::Load(from.directory.string(),
                                           vmm::GuestTemplate::Role::kGuest,
                                           image, {.pool = means.workers}));
    }
    if (origin == nullptr) {
      return Error(absl::StatusCode::kNotFound, "no guest is stored in {}",
                   from.directory.string());
    }
    CATNAP_RETURN_IF_ERROR(TakeDisk(disk, config));
  }
  return MachineGuest::Start(means, std::move(config), std::move(image),
                             std::move(origin));
}

absl::Status MachineFactory::Prewarm(const ImageRecord& image, int count) {
  CATNAP_ASSIGN_OR_RETURN(const MachineMeans means, Means());
  CATNAP_RETURN_IF_ERROR(TemplateOf(image, means).status());
  return means.shells->Prewarm(RunningMachine::ShellOf(image, means, 1),
                               static_cast<uint64_t>(count));
}

}  // namespace catnap::runtime
