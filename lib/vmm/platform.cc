#include "vmm/platform.h"

#include <algorithm>
#include <cstring>

#include "arch/x86_64/layout.h"
#include "base/status.h"

namespace catnap::vmm {
namespace {

constexpr uint64_t kSleepControl = 0;
constexpr uint64_t kReset = arch::kResetPort - arch::kSleepControlPort;
constexpr uint8_t kPowerOffValue =
    arch::kSleepEnable | (arch::kSleepTypeS5 << 2);
// Field id of the saved event register; FORMAT: state/FORMAT.md.
constexpr uint32_t kPendingField = 1;
static_assert(kPendingField == 1,
              "field ids are on disk: read lib/state/FORMAT.md first");

}  // namespace

void KvmIrqLine::Set(bool asserted) {
  // Fails only for a line that does not exist or in a forked child; neither
  // has somebody to tell.
  vm_->SetIrqLine(gsi_, asserted).IgnoreError();
}

void PowerRegisters::Read(uint64_t, std::span<uint8_t> data) {
  std::fill(data.begin(), data.end(), uint8_t{0});
}

void PowerRegisters::Write(uint64_t offset, std::span<const uint8_t> data) {
  if (offset == kSleepControl && data[0] == kPowerOffValue) {
    end_->OnEnd({EndReason::kPowerOff, "the guest switched itself off"});
  } else if (offset == kReset && data[0] == arch::kResetValue) {
    end_->OnEnd({EndReason::kReset, "the guest asked for a reset"});
  }
}

void EventRegister::Raise(uint32_t events) {
  pending_.fetch_or(events);
  irq_->Set(true);
  irq_->Set(false);
}

void EventRegister::RaiseAgain() {
  if (pending_.load() != 0) Raise(0);
}

void EventRegister::SaveState(state::StateEncoder& out) const {
  out.Unsigned(kPendingField, pending_.load());
}

absl::Status EventRegister::LoadState(state::StateDecoder in) {
  uint32_t pending = 0;
  while (in.Next()) {
    if (in.id() == kPendingField) pending = in.U32();
  }
  CATNAP_RETURN_IF_ERROR(in.status());
  pending_.store(pending);
  return absl::OkStatus();
}

void EventRegister::Read(uint64_t offset, std::span<uint8_t> data) {
  std::fill(data.begin(), data.end(), uint8_t{0});
  if (offset != 0 || data.size() != sizeof(uint32_t)) return;
  const uint32_t events = pending_.exchange(0);
  std::memcpy(data.data(), &events, sizeof(events));
}

void EventRegister::Write(uint64_t, std::span<const uint8_t>) {}

}  // namespace catnap::vmm
