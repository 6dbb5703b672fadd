#include "catnap/snapshot.h"

#include <utility>

#include "base/status.h"
#include "catnap/host.h"
#include "runtime/host_core.h"
#include "runtime/snapshot_store.h"

namespace catnap {
namespace {

const std::string& Empty() {
  static const std::string empty;
  return empty;
}

}  // namespace

Snapshot::Snapshot() = default;
Snapshot::~Snapshot() = default;
Snapshot::Snapshot(const Snapshot& other) = default;
Snapshot& Snapshot::operator=(const Snapshot& other) = default;
Snapshot::Snapshot(Snapshot&& other) noexcept = default;
Snapshot& Snapshot::operator=(Snapshot&& other) noexcept = default;
Snapshot::Snapshot(std::shared_ptr<runtime::SnapshotData> data)
    : data_(std::move(data)) {}

const std::string& Snapshot::id() const {
  return data_ == nullptr ? Empty() : data_->record().id;
}
const std::string& Snapshot::name() const {
  return data_ == nullptr ? Empty() : data_->record().name;
}
uint64_t Snapshot::memory_bytes() const {
  return data_ == nullptr ? 0 : data_->record().memory_bytes;
}
uint64_t Snapshot::own_bytes() const {
  return data_ == nullptr ? 0 : data_->record().own_bytes;
}
uint64_t Snapshot::stored_bytes() const {
  return data_ == nullptr ? 0 : data_->record().stored_bytes;
}
CpuBaseline Snapshot::cpu_baseline() const {
  return data_ == nullptr ? CpuBaseline::kX86_64V2
                          : data_->record().cpu_baseline;
}

absl::Status Snapshot::Save(const std::filesystem::path& dir,
                            CallOptions call) const {
  CATNAP_ASSIGN_OR_RETURN(const auto core,
                          runtime::HostCore::OfSnapshot(*this));
  return core->SaveSnapshot(data_, dir, call);
}

absl::StatusOr<Snapshot> Snapshot::Load(Host& host,
                                        const std::filesystem::path& dir,
                                        CallOptions call) {
  return runtime::HostCore::Of(host).LoadSnapshot(dir, call);
}

absl::Status Snapshot::Verify(CallOptions call) const {
  CATNAP_ASSIGN_OR_RETURN(const auto core,
                          runtime::HostCore::OfSnapshot(*this));
  return core->VerifySnapshot(data_, call);
}

absl::Status Snapshot::Delete() const {
  CATNAP_ASSIGN_OR_RETURN(const auto core,
                          runtime::HostCore::OfSnapshot(*this));
  return core->DeleteSnapshot(data_);
}

}  // namespace catnap
