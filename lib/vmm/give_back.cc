#include <vector>

#include "base/page_range.h"
#include "base/status.h"
#include "memory/page_map.h"
#include "memory/page_ranges.h"
#include "vmm/machine.h"

namespace catnap::vmm {

absl::StatusOr<uint64_t> Machine::GiveBackStanding(
    const std::vector<base::PageRange>& written) {
  CATNAP_ASSIGN_OR_RETURN(
      const std::vector<base::PageRange> changed,
      memory::DropUnchanged(*memory_, written, {.equal = true}));
  const std::vector<base::PageRange> same =
      memory::SubtractRanges(written, changed);
  CATNAP_RETURN_IF_ERROR(memory_->Discard(same));
  return memory::TotalBytes(same);
}

absl::StatusOr<uint64_t> Machine::GiveBackUnchanged(uint64_t most) {
  const base::MutexLock control(&control_mutex_);
  if (state() != MachineState::kRunning || memory_->image() == nullptr) {
    return uint64_t{0};
  }
  // What the guest writes from here on is left for it: it is to stand still for
  // the comparison alone.
  CATNAP_ASSIGN_OR_RETURN(const std::vector<base::PageRange> written,
                          memory::OwnPages(*memory_, {.running = true}));
  if (memory::TotalBytes(written) > most) return uint64_t{0};
  // Devices first: what is in flight ends while the guest still runs.
  for (const auto& [page, slot] : virtio_slots_) slot->device().Quiesce();
  ParkAll();
  for (const auto& vcpu : vcpus_) vcpu->WaitParked();
  auto given = GiveBackStanding(written);
  for (const auto& [page, slot] : virtio_slots_) slot->device().Continue();
  for (const auto& vcpu : vcpus_) vcpu->Resume();
  // A vCPU, or a pager's thread, may have ended the machine meanwhile.
  if (state() == MachineState::kEnded) ParkAll();
  return given;
}

}  // namespace catnap::vmm
