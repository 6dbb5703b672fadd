#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include "base/status.h"
#include "runtime/host_core.h"
#include "runtime/vm_store.h"

namespace catnap::runtime {

absl::Status HostCore::Recover() {
  std::error_code error;
  std::vector<std::filesystem::path> directories;
  for (std::filesystem::directory_iterator at(state_dir_ / kVmsName, error),
       end;
       !error && at != end; at.increment(error)) {
    directories.push_back(at->path());
  }
  if (error) {
    return ErrnoError(error.value(), "read {}",
                      (state_dir_ / kVmsName).string());
  }
  for (const auto& directory : directories) RecoverOne(directory);
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const ImageRecord>> HostCore::FindImage(
    const std::string& name, uint32_t major, const disk::DiskId& disk_id) {
  CATNAP_ASSIGN_OR_RETURN(auto image,
                          images_->Get(name, fmt::format("{}.0", major)));
  if (image->disk_id != disk_id) {
    return Error(absl::StatusCode::kFailedPrecondition,
                 "image {} {} is another one than it was", name,
                 image->version);
  }
  return image;
}

void HostCore::RecoverOne(const std::filesystem::path& directory) {
  const std::string id = directory.filename().string();
  auto stored = VmStore::Read(directory);
  if (!stored.ok()) {
    log_.LogIfError(stored.status(), "{} is left alone", directory.string());
    return;
  }
  if (!stored->has_value()) {
    // Of one that was ephemeral, did not start or was about to go.
    std::error_code error;
    std::filesystem::remove_all(directory, error);
    if (error) {
      log_.LogIfError(ErrnoError(error.value(), "remove"), "{}",
                      directory.string());
    }
    return;
  }
  StoredVm found = **std::move(stored);
  auto image = FindImage(found.record.image_name, found.record.image_major,
                         found.record.image_disk_id);
  if (!image.ok()) {
    log_.LogIfError(image.status(), "MicroVM {} is left alone", id);
    return;
  }
  auto use = images_->Use(**image);
  if (!use.ok()) {
    log_.LogIfError(use.status(), "MicroVM {} is left alone", id);
    return;
  }
  const bool ends =
      found.ran && found.record.options.after_crash == AfterCrash::kTerminate;
  auto vm = std::make_shared<Vm>(*std::move(image), std::move(found),
                                 EnvironmentOf(id));
  vm->KeepImage(*std::move(use));
  if (const absl::Status ready = vm->Prepare(); !ready.ok()) {
    log_.LogIfError(ready, "MicroVM {} is left alone", id);
    return;
  }
  if (ends) {
    vm->End(TerminationReason::kHostProcessDied,
            "the process of its Host ended while it ran "
            "(AfterCrash::kTerminate)");
  }
  const base::MutexLock lock(&mutex_);
  vms_[id].vm = std::move(vm);
}

}  // namespace catnap::runtime
