#include "vmm/persist.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "arch/x86_64/cpu_identity.h"
#include "arch/x86_64/layout.h"
#include "arch/x86_64/saved_vcpu.h"
#include "base/status.h"
#include "vmm/machine.h"

// The one list of what a saved machine is made of. Memory is not in it: it is
// saved apart, by pages, while the machine stands.
//
// Saved in this order, all of it while every vCPU stands with no access half
// done (Pause()):
//
//   devices    First: what is in flight ends, which writes to guest memory and
//              may interrupt, and the interrupt must be in what is saved of the
//              IOAPIC and the LAPICs. A notification that an ioeventfd holds
//              and nobody took is not lost: after Start() and after a load
//              every queue counts as notified.
//   serial, events, for the same reason.
//   vCPUs      The order within is arch::SaveVcpu()'s.
//   irqchip    After the vCPUs: a LAPIC's end of interrupt may reach it.
//   clock      kvm-clock and all TSCs at one instant, last: little time passes
//              between it and the end of the save.
//
// Loaded in this order, into a shell with its guest memory mapped and the same
// devices attached:
//
//   host CPU   Before anything: on a wrong host nothing else makes sense.
//   machine    The shell's shape and its devices must be the saved ones.
//   devices, serial, events: they stay quiet until Start().
//   CPUID and TSC rate of each vCPU: the registers that follow are checked
//              against what the CPU has.
//   TSCs       Of all vCPUs at once, so that they keep their distances; before
//              the vCPUs' timers, which are set against them.
//   vCPUs      The order within is arch::RestoreVcpu()'s.
//   irqchip    After the LAPICs: the IOAPIC sends them at once what is pending.
//   clock      kvm-clock: after all TSCs, as KVM counts it from them, and after
//              the MSR that tells KVM where the guest reads it.
namespace catnap::vmm {
namespace {

using state::SavedSection;
using state::SectionId;

constexpr uint32_t kPics[] = {KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE};

constexpr uint16_t kVersion = 1;  // Of every section so far.

// Field ids; FORMAT: state/FORMAT.md.
constexpr uint32_t kMemoryField = 1;
constexpr uint32_t kVcpusField = 2;
constexpr uint32_t kDevicePagesField = 3;
constexpr uint32_t kDeviceField = 4;  // A message, one for each.
constexpr uint32_t kPageField = 1;
constexpr uint32_t kDeviceIdField = 2;
static_assert(kMemoryField == 1 && kVcpusField == 2 && kDevicePagesField == 3 &&
                  kDeviceField == 4 && kPageField == 1 && kDeviceIdField == 2,
              "field ids are on disk: read lib/state/FORMAT.md first");

constexpr state::KnownSection kKnown[] = {
    {SectionId::kMachine, kVersion}, {SectionId::kIrqchip, kVersion},
    {SectionId::kClock, kVersion},   {SectionId::kVcpu, kVersion},
    {SectionId::kSerial, kVersion},  {SectionId::kHostCpu, kVersion},
    {SectionId::kDevice, kVersion},  {SectionId::kEventDevice, kVersion},
};

// Appends a section with what `encode` writes.
template <typename Encode>
absl::Status Add(SectionId id, size_t instance, Encode encode,
                 std::vector<SavedSection>* sections) {
  SavedSection section;
  section.id = id;
  section.instance = static_cast<uint32_t>(instance);
  section.version = kVersion;
  section.critical = true;
  state::StateEncoder out(&section.bytes);
  encode(out);
  CATNAP_RETURN_IF_ERROR(out.status());
  sections->push_back(std::move(section));
  return absl::OkStatus();
}

absl::StatusOr<state::StateDecoder> Find(std::span<const SavedSection> sections,
                                         SectionId id, size_t instance = 0) {
  for (const SavedSection& section : sections) {
    if (section.id == id && section.instance == instance) {
      return state::StateDecoder(section.bytes);
    }
  }
  return Error(absl::StatusCode::kDataLoss,
               "the saved machine lacks its section {}",
               state::SectionName(id, static_cast<uint32_t>(instance)));
}

// Says which part it was. What KVM or a device takes for invalid was not saved
// by a machine that ran.
absl::Status InPart(SectionId id, size_t instance, const absl::Status& status) {
  if (status.ok()) return status;
  absl::Status named = AddContext(
      status,
      "saved " + state::SectionName(id, static_cast<uint32_t>(instance)));
  if (named.code() != absl::StatusCode::kInvalidArgument) return named;
  return absl::DataLossError(named.message());
}

bool SameTable(const std::vector<kvm_cpuid_entry2>& a,
               const std::vector<kvm_cpuid_entry2>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const kvm_cpuid_entry2& x, const kvm_cpuid_entry2& y) {
                      return x.function == y.function && x.index == y.index &&
                             x.flags == y.flags && x.eax == y.eax &&
                             x.ebx == y.ebx && x.ecx == y.ecx && x.edx == y.edx;
                    });
}

// What a guest can get here. REQUIRES: the vCPU's rate is still the host's.
arch::CpuOffer OfferOf(const kvm::System& system, const ShellConfig& config,
                       uint32_t tsc_khz) {
  arch::CpuidConfig most;
  most.baseline = arch::CpuBaseline::kHost;
  most.vcpus = config.vcpus;
  most.tsc_deadline = system.has_tsc_deadline();
  arch::CpuOffer offer;
  offer.cpuid = BuildCpuid(system.supported_cpuid(), most, 0);
  offer.tsc_khz = tsc_khz;
  offer.tsc_scaling = system.has_tsc_scaling();
  offer.xsave_bytes = system.xsave_bytes();
  return offer;
}

}  // namespace

void EncodeMachine(const SavedMachine& machine, state::StateEncoder& out) {
  out.Unsigned(kMemoryField, machine.memory_bytes);
  out.Unsigned(kVcpusField, machine.vcpus);
  out.Unsigned(kDevicePagesField, machine.device_pages);
  for (const SavedDevice& device : machine.devices) {
    const auto nested = out.Message(kDeviceField);
    out.Unsigned(kPageField, device.page);
    out.Unsigned(kDeviceIdField, device.device_id);
  }
}

absl::StatusOr<SavedMachine> DecodeMachine(state::StateDecoder in) {
  SavedMachine machine;
  while (in.Next()) {
    switch (in.id()) {
      case kMemoryField:
        machine.memory_bytes = in.U64();
        break;
      case kVcpusField:
        machine.vcpus = in.U32();
        break;
      case kDevicePagesField:
        machine.device_pages = in.U32();
        break;
      case kDeviceField: {
        SavedDevice device;
        state::StateDecoder fields = in.Message();
        while (fields.Next()) {
          if (fields.id() == kPageField) device.page = fields.U32();
          if (fields.id() == kDeviceIdField) device.device_id = fields.U32();
        }
        CATNAP_RETURN_IF_ERROR(fields.status());
        if (machine.devices.size() == static_cast<size_t>(arch::kMaxDevices)) {
          return Error(absl::StatusCode::kDataLoss,
                       "a saved machine has more than {} devices",
                       arch::kMaxDevices);
        }
        machine.devices.push_back(device);
        break;
      }
      default:
        break;
    }
  }
  CATNAP_RETURN_IF_ERROR(in.status());
  if (machine.vcpus < static_cast<uint32_t>(arch::kMinVcpus) ||
      machine.vcpus > static_cast<uint32_t>(arch::kMaxVcpus) ||
      machine.device_pages > static_cast<uint32_t>(arch::kMaxDevices) ||
      machine.memory_bytes < arch::kMinMemoryBytes ||
      machine.memory_bytes > arch::kMaxMemoryBytes) {
    return Error(absl::StatusCode::kDataLoss,
                 "a saved machine has {} vCPUs, {} device pages and {} bytes "
                 "of memory, which cannot be",
                 machine.vcpus, machine.device_pages, machine.memory_bytes);
  }
  return machine;
}

absl::Status CheckSections(std::span<const SavedSection> sections) {
  std::vector<std::pair<SectionId, uint32_t>> keys;
  keys.reserve(sections.size());
  for (const SavedSection& section : sections) {
    state::SectionHeader header;
    header.id = section.id;
    header.instance = section.instance;
    header.version = section.version;
    header.critical = section.critical;
    CATNAP_RETURN_IF_ERROR(state::ShouldReadSection(header, kKnown).status());
    keys.emplace_back(section.id, section.instance);
  }
  std::sort(keys.begin(), keys.end());
  const auto twice = std::adjacent_find(keys.begin(), keys.end());
  if (twice == keys.end()) return absl::OkStatus();
  return Error(absl::StatusCode::kDataLoss,
               "the saved machine has its section {} twice",
               state::SectionName(twice->first, twice->second));
}

absl::StatusOr<SavedMachine> ReadSavedMachine(
    std::span<const SavedSection> sections) {
  CATNAP_RETURN_IF_ERROR(CheckSections(sections));
  CATNAP_ASSIGN_OR_RETURN(const auto in, Find(sections, SectionId::kMachine));
  auto machine = DecodeMachine(in);
  CATNAP_RETURN_IF_ERROR(InPart(SectionId::kMachine, 0, machine.status()));
  return machine;
}

SavedMachine Machine::ShapeLocked() const {
  SavedMachine shape;
  shape.memory_bytes = config_.memory_bytes;
  shape.vcpus = static_cast<uint32_t>(config_.vcpus);
  shape.device_pages = static_cast<uint32_t>(config_.device_pages);
  for (const auto& [page, slot] : virtio_slots_) {
    SavedDevice device;
    device.page = static_cast<uint32_t>(page);
    device.device_id = static_cast<uint32_t>(slot->device().traits().id);
    shape.devices.push_back(device);
  }
  return shape;
}

std::vector<kvm::VcpuFd*> Machine::VcpuFds() {
  std::vector<kvm::VcpuFd*> fds;
  fds.reserve(vcpus_.size());
  for (const auto& vcpu : vcpus_) fds.push_back(&vcpu->vcpu());
  return fds;
}

absl::StatusOr<std::vector<SavedSection>> Machine::Save() {
  const base::MutexLock control(&control_mutex_);
  if (state() != MachineState::kPaused) {
    return absl::FailedPreconditionError(
        "a machine is saved while its guest is paused");
  }
  std::vector<SavedSection> sections;
  const SavedMachine shape = ShapeLocked();
  CATNAP_RETURN_IF_ERROR(Add(
      SectionId::kMachine, 0,
      [&shape](state::StateEncoder& out) { EncodeMachine(shape, out); },
      &sections));
  arch::CpuIdentity identity;
  identity.cpuid = cpuids_.front();
  identity.tsc_khz = vcpus_.front()->vcpu().TscKhz();
  identity.xsave_bytes = system_->xsave_bytes();
  CATNAP_RETURN_IF_ERROR(Add(
      SectionId::kHostCpu, 0,
      [&identity](state::StateEncoder& out) { EncodeIdentity(identity, out); },
      &sections));

  quiet_ = true;
  for (const auto& [page, slot] : virtio_slots_) slot->device().Quiesce();
  for (const auto& [page, slot] : virtio_slots_) {
    if (slot->device().holds_requests()) {
      return absl::ResourceExhaustedError(
          "requests of the guest's disk wait for room on the host's disk; make "
          "room there, then save the guest");
    }
  }
  for (const auto& [page, slot] : virtio_slots_) {
    absl::Status saved;
    CATNAP_RETURN_IF_ERROR(Add(
        SectionId::kDevice, static_cast<size_t>(page),
        [&saved, transport = &slot->transport()](state::StateEncoder& out) {
          saved = transport->SaveState(out);
        },
        &sections));
    CATNAP_RETURN_IF_ERROR(saved);
  }
  CATNAP_RETURN_IF_ERROR(Add(
      SectionId::kSerial, 0,
      [this](state::StateEncoder& out) { serial_.SaveState(out); }, &sections));
  CATNAP_RETURN_IF_ERROR(Add(
      SectionId::kEventDevice, 0,
      [this](state::StateEncoder& out) { events_.SaveState(out); }, &sections));

  const std::vector<uint32_t> msrs = arch::GuestMsrs(system_->msr_indices());
  for (size_t i = 0; i < vcpus_.size(); ++i) {
    const auto vcpu = arch::SaveVcpu(vcpus_[i]->vcpu(), msrs, cpuids_[i]);
    CATNAP_RETURN_IF_ERROR(InPart(SectionId::kVcpu, i, vcpu.status()));
    CATNAP_RETURN_IF_ERROR(Add(
        SectionId::kVcpu, i,
        [&vcpu](state::StateEncoder& out) { EncodeVcpu(*vcpu, out); },
        &sections));
  }

  arch::SavedIrqchip chip;
  CATNAP_ASSIGN_OR_RETURN(const kvm_irqchip ioapic,
                          vm_.GetIrqchip(KVM_IRQCHIP_IOAPIC));
  chip.ioapic = ioapic.chip.ioapic;
  for (const uint32_t pic : kPics) {
    CATNAP_ASSIGN_OR_RETURN(const kvm_irqchip part, vm_.GetIrqchip(pic));
    chip.pics[pic] = part.chip.pic;
  }
  CATNAP_RETURN_IF_ERROR(Add(
      SectionId::kIrqchip, 0,
      [&chip](state::StateEncoder& out) { EncodeIrqchip(chip, out); },
      &sections));

  arch::SavedClock clock;
  CATNAP_ASSIGN_OR_RETURN(clock.tsc, arch::SaveTscs(VcpuFds()));
  CATNAP_ASSIGN_OR_RETURN(clock.kvm_clock, vm_.GetClock());
  CATNAP_RETURN_IF_ERROR(Add(
      SectionId::kClock, 0,
      [&clock](state::StateEncoder& out) { EncodeClock(clock, out); },
      &sections));
  return sections;
}

absl::Status Machine::CheckShape(const SavedMachine& saved) const {
  const SavedMachine shape = ShapeLocked();
  constexpr auto kWrong = absl::StatusCode::kFailedPrecondition;
  if (saved.memory_bytes != shape.memory_bytes || saved.vcpus != shape.vcpus ||
      saved.device_pages != shape.device_pages) {
    return Error(kWrong,
                 "the saved machine has {} bytes of memory, {} vCPUs and {} "
                 "device pages, this shell has {}, {} and {}",
                 saved.memory_bytes, saved.vcpus, saved.device_pages,
                 shape.memory_bytes, shape.vcpus, shape.device_pages);
  }
  const size_t count = std::max(saved.devices.size(), shape.devices.size());
  for (size_t i = 0; i < count; ++i) {
    if (i >= shape.devices.size()) {
      return Error(kWrong,
                   "the saved machine has device {} on page {}, which is not "
                   "attached here",
                   saved.devices[i].device_id, saved.devices[i].page);
    }
    if (i >= saved.devices.size() || saved.devices[i] != shape.devices[i]) {
      return Error(kWrong,
                   "device {} is attached to page {}, the saved machine has "
                   "another one or none there",
                   shape.devices[i].device_id, shape.devices[i].page);
    }
  }
  return absl::OkStatus();
}

absl::Status Machine::LoadVcpus(std::span<const SavedSection> sections,
                                const arch::CpuIdentity& identity,
                                const arch::SavedClock& clock) {
  if (clock.tsc.size() != vcpus_.size()) {
    return Error(absl::StatusCode::kDataLoss,
                 "the saved clock has {} TSCs for {} vCPUs", clock.tsc.size(),
                 vcpus_.size());
  }
  const arch::CpuOffer offer =
      OfferOf(*system_, config_, vcpus_.front()->vcpu().TscKhz());
  std::vector<arch::SavedVcpu> saved;
  for (size_t i = 0; i < vcpus_.size(); ++i) {
    CATNAP_ASSIGN_OR_RETURN(const auto in, Find(sections, SectionId::kVcpu, i));
    auto vcpu = arch::DecodeVcpu(in);
    CATNAP_RETURN_IF_ERROR(InPart(SectionId::kVcpu, i, vcpu.status()));
    kvm::VcpuFd& fd = vcpus_[i]->vcpu();
    if (!SameTable(vcpu->cpuid, cpuids_[i])) {
      arch::CpuIdentity own = identity;
      own.cpuid = vcpu->cpuid;
      CATNAP_RETURN_IF_ERROR(arch::CheckCpu(own, offer));
      CATNAP_RETURN_IF_ERROR(
          InPart(SectionId::kVcpu, i, fd.SetCpuid(vcpu->cpuid)));
      cpuids_[i] = vcpu->cpuid;
    }
    if (identity.tsc_khz != offer.tsc_khz && system_->has_tsc_scaling()) {
      CATNAP_RETURN_IF_ERROR(
          InPart(SectionId::kVcpu, i, fd.SetTscKhz(identity.tsc_khz)));
    }
    saved.push_back(*std::move(vcpu));
  }
  CATNAP_RETURN_IF_ERROR(
      InPart(SectionId::kClock, 0, arch::RestoreTscs(VcpuFds(), clock.tsc)));
  for (size_t i = 0; i < vcpus_.size(); ++i) {
    CATNAP_RETURN_IF_ERROR(InPart(
        SectionId::kVcpu, i, arch::RestoreVcpu(vcpus_[i]->vcpu(), saved[i])));
  }
  return absl::OkStatus();
}

absl::Status Machine::LoadIrqchip(state::StateDecoder in) {
  CATNAP_ASSIGN_OR_RETURN(const arch::SavedIrqchip saved,
                          arch::DecodeIrqchip(in));
  for (const uint32_t pic : kPics) {
    kvm_irqchip chip{};
    chip.chip_id = pic;
    chip.chip.pic = saved.pics[pic];
    CATNAP_RETURN_IF_ERROR(vm_.SetIrqchip(chip));
  }
  kvm_irqchip chip{};
  chip.chip_id = KVM_IRQCHIP_IOAPIC;
  chip.chip.ioapic = saved.ioapic;
  return vm_.SetIrqchip(chip);
}

absl::Status Machine::LoadSaved(std::span<const SavedSection> sections) {
  CATNAP_ASSIGN_OR_RETURN(const SavedMachine saved, ReadSavedMachine(sections));
  CATNAP_ASSIGN_OR_RETURN(auto in, Find(sections, SectionId::kHostCpu));
  const auto identity = arch::DecodeIdentity(in);
  CATNAP_RETURN_IF_ERROR(InPart(SectionId::kHostCpu, 0, identity.status()));
  CATNAP_RETURN_IF_ERROR(arch::CheckCpu(
      *identity, OfferOf(*system_, config_, vcpus_.front()->vcpu().TscKhz())));
  CATNAP_RETURN_IF_ERROR(CheckShape(saved));
  CATNAP_ASSIGN_OR_RETURN(in, Find(sections, SectionId::kClock));
  const auto clock = arch::DecodeClock(in);
  CATNAP_RETURN_IF_ERROR(InPart(SectionId::kClock, 0, clock.status()));

  quiet_ = true;
  loaded_ = true;
  for (const auto& [page, slot] : virtio_slots_) {
    const auto instance = static_cast<size_t>(page);
    CATNAP_ASSIGN_OR_RETURN(in, Find(sections, SectionId::kDevice, instance));
    CATNAP_RETURN_IF_ERROR(
        InPart(SectionId::kDevice, instance, slot->transport().LoadState(in)));
  }
  CATNAP_ASSIGN_OR_RETURN(in, Find(sections, SectionId::kSerial));
  CATNAP_RETURN_IF_ERROR(InPart(SectionId::kSerial, 0, serial_.LoadState(in)));
  CATNAP_ASSIGN_OR_RETURN(in, Find(sections, SectionId::kEventDevice));
  CATNAP_RETURN_IF_ERROR(
      InPart(SectionId::kEventDevice, 0, events_.LoadState(in)));

  CATNAP_RETURN_IF_ERROR(LoadVcpus(sections, *identity, *clock));
  CATNAP_ASSIGN_OR_RETURN(in, Find(sections, SectionId::kIrqchip));
  CATNAP_RETURN_IF_ERROR(InPart(SectionId::kIrqchip, 0, LoadIrqchip(in)));
  return InPart(SectionId::kClock, 0, vm_.SetClock(clock->kvm_clock));
}

void Machine::WakeDevices() {
  if (!quiet_) return;
  quiet_ = false;
  // What the guest was to hear of may be in no saved interrupt controller: all
  // of it comes again, which every driver takes.
  for (const auto& [page, slot] : virtio_slots_) slot->device().Resume();
  serial_.RaiseAgain();
  events_.RaiseAgain();
}

}  // namespace catnap::vmm
