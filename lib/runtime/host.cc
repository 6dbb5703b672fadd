#include "catnap/host.h"

#include <utility>

#include "base/status.h"
#include "runtime/host_core.h"

namespace catnap {

Host::Host(std::shared_ptr<runtime::HostCore> core) : core_(std::move(core)) {}

Host::~Host() {
  // Nobody is left to be told; what was not suspended is logged.
  if (const absl::Status closed = Close({}); !closed.ok()) return;
}

absl::StatusOr<std::shared_ptr<Host>> Host::Open(HostOptions options) {
  CATNAP_ASSIGN_OR_RETURN(auto core,
                          runtime::HostCore::Open(std::move(options)));
  return runtime::HostCore::MakeHost(std::move(core));
}

std::vector<Image> Host::ListImages() const { return core_->ListImages(); }

absl::StatusOr<Image> Host::GetImage(std::string_view name,
                                     std::string_view version) const {
  return core_->GetImage(name, version);
}

std::vector<MicroVM> Host::ListMicroVMs(const Filter& filter) const {
  return core_->ListMicroVMs(filter);
}

absl::StatusOr<MicroVM> Host::GetMicroVM(std::string_view id) const {
  return core_->GetMicroVM(id);
}

std::vector<Snapshot> Host::ListSnapshots(const Filter& filter) const {
  return core_->ListSnapshots(filter);
}

absl::StatusOr<Snapshot> Host::GetSnapshot(std::string_view id_or_name) const {
  return core_->GetSnapshot(id_or_name);
}

absl::Status Host::Prewarm(const Image& image, int count) {
  return core_->Prewarm(image, count);
}

absl::Status Host::Close(CloseOptions options) { return core_->Close(options); }

}  // namespace catnap
