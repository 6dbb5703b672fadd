#include "arch/x86_64/saved_vcpu.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "base/status.h"

namespace catnap::arch {
namespace {

constexpr auto kDataLoss = absl::StatusCode::kDataLoss;

// Bounds for what is decoded; KVM's own are not larger.
constexpr size_t kMaxMsrs = 1024;
constexpr size_t kMaxXsaveBytes = 64 << 10;

// Field ids; FORMAT: state/FORMAT.md.
constexpr uint32_t kCpuidField = 1;     // A message, one for each leaf.
constexpr uint32_t kRegsField = 2;      // List: rax to r15, rip, rflags.
constexpr uint32_t kControlField = 3;   // List: cr0 cr2 cr3 cr4 cr8 efer apic.
constexpr uint32_t kBitmapField = 4;    // List: sregs' interrupt bitmap.
constexpr uint32_t kSegmentField = 5;   // Messages: cs ds es fs gs ss tr ldt.
constexpr uint32_t kTableField = 6;     // Messages: gdt idt.
constexpr uint32_t kLapicField = 7;     // Bytes: the register page.
constexpr uint32_t kDeadlineField = 8;  // IA32_TSC_DEADLINE.
constexpr uint32_t kMsrField = 9;       // A message, one for each.
constexpr uint32_t kXcrField = 10;      // A message, one for each.
constexpr uint32_t kXsaveField = 11;    // Bytes.
constexpr uint32_t kEventsField = 12;   // A message.
constexpr uint32_t kDebugField = 13;    // List: dr0-3, dr6, dr7.
constexpr uint32_t kMpStateField = 14;
static_assert(kCpuidField == 1 && kRegsField == 2 && kControlField == 3 &&
                  kBitmapField == 4 && kSegmentField == 5 && kTableField == 6 &&
                  kLapicField == 7 && kDeadlineField == 8 && kMsrField == 9 &&
                  kXcrField == 10 && kXsaveField == 11 && kEventsField == 12 &&
                  kDebugField == 13 && kMpStateField == 14,
              "field ids are on disk: read lib/state/FORMAT.md first");

// Of a CPUID leaf.
constexpr uint32_t kFunctionField = 1;
constexpr uint32_t kIndexField = 2;
constexpr uint32_t kFlagsField = 3;
constexpr uint32_t kEaxField = 4;
constexpr uint32_t kEbxField = 5;
constexpr uint32_t kEcxField = 6;
constexpr uint32_t kEdxField = 7;
// Of an MSR and of an XCR.
constexpr uint32_t kNumberField = 1;
constexpr uint32_t kValueField = 2;
// Of a segment and of a table.
constexpr uint32_t kBaseField = 1;
constexpr uint32_t kLimitField = 2;
constexpr uint32_t kSelectorField = 3;
// Type, s, dpl, present, avl, l, db, g as in a descriptor's second word, from
// bit 0; bit 16: unusable.
constexpr uint32_t kAttributesField = 4;
static_assert(kFunctionField == 1 && kIndexField == 2 && kFlagsField == 3 &&
                  kEaxField == 4 && kEbxField == 5 && kEcxField == 6 &&
                  kEdxField == 7 && kNumberField == 1 && kValueField == 2 &&
                  kBaseField == 1 && kLimitField == 2 && kSelectorField == 3 &&
                  kAttributesField == 4,
              "field ids are on disk: read lib/state/FORMAT.md first");
// Of the events: the position in EventBytes() plus 1, then these.
constexpr uint32_t kErrorCodeField = 32;
constexpr uint32_t kEventFlagsField = 33;
// Of the clock.
constexpr uint32_t kKvmClockField = 1;
constexpr uint32_t kTscField = 2;  // List: one for each vCPU.
// Of the interrupt controllers.
constexpr uint32_t kPicField = 1;  // Bytes, twice: master, slave.
constexpr uint32_t kIoApicBaseField = 2;
constexpr uint32_t kIoApicSelectField = 3;
constexpr uint32_t kIoApicIdField = 4;
constexpr uint32_t kIoApicIrrField = 5;
constexpr uint32_t kRedirectionField = 6;  // List: one for each pin.
static_assert(kErrorCodeField == 32 && kEventFlagsField == 33 &&
                  kKvmClockField == 1 && kTscField == 2 && kPicField == 1 &&
                  kIoApicBaseField == 2 && kIoApicSelectField == 3 &&
                  kIoApicIdField == 4 && kIoApicIrrField == 5 &&
                  kRedirectionField == 6,
              "field ids are on disk: read lib/state/FORMAT.md first");
static_assert(sizeof(kvm_pic_state) == 16 && sizeof(kvm_lapic_state) == 1024,
              "KVM's structures of bytes are stored as they are");

constexpr uint32_t kMsrTsc = 0x10;
constexpr uint32_t kMsrTscDeadline = 0x6e0;
constexpr uint32_t kMaxVcpusSaved = 32;

// What is no state of a guest of ours. Sources: Intel SDM vol. 4; AMD APM vol.
// 2, appendix A; kernel Documentation/virt/kvm/x86/msr.rst.
struct MsrRange {
  uint32_t first;
  uint32_t last;
};
constexpr MsrRange kNotGuests[] = {
    {kMsrTsc, kMsrTsc},                  // A clock; SavedClock has it.
    {kMsrTscDeadline, kMsrTscDeadline},  // Set after the others.
    {0xc000'0080, 0xc000'0080},          // EFER is with the control registers.
    // KVM's wall clock is a command: setting it writes to guest memory. Old
    // number of both clocks; asynchronous page faults, which are not shown, and
    // migration of encrypted guests.
    {0x11, 0x12},
    {0x4b56'4d00, 0x4b56'4d00},
    {0x4b56'4d02, 0x4b56'4d02},
    {0x4b56'4d06, 0x4b56'4d08},
    // What the host's CPU is: microcode, platform, capabilities.
    {0x8b, 0x8b},
    {0xce, 0xce},
    {0x10a, 0x10a},
    {0x345, 0x345},
    {0xc001'1029, 0xc001'1029},
    // Features that no guest gets: SGX, PMU and debug store, XFD of AMX, VMX,
    // processor trace, MPX, last branches, Hyper-V's, SVM.
    {0x8c, 0x8f},
    {0xc1, 0xc8},
    {0x186, 0x18d},
    {0x1c4, 0x1c5},
    {0x309, 0x30c},
    {0x38d, 0x391},
    {0x3f1, 0x3f2},
    {0x480, 0x493},
    {0x4c1, 0x4c8},
    {0x560, 0x561},
    {0x570, 0x572},
    {0x580, 0x587},
    {0x600, 0x600},
    {0xd90, 0xd90},
    {0x14ce, 0x14cf},
    {0x4000'0000, 0x4000'01ff},
    {0xc000'0104, 0xc000'0104},
    {0xc000'0300, 0xc000'0303},
    {0xc001'0000, 0xc001'0007},
    {0xc001'0114, 0xc001'0117},
    {0xc001'0200, 0xc001'020b},
};

// The values of a structure in the order in which they are stored.
template <typename Regs>
auto GeneralRegisters(Regs& r) {
  return std::array{&r.rax, &r.rbx, &r.rcx, &r.rdx, &r.rsi, &r.rdi,
                    &r.rsp, &r.rbp, &r.r8,  &r.r9,  &r.r10, &r.r11,
                    &r.r12, &r.r13, &r.r14, &r.r15, &r.rip, &r.rflags};
}

template <typename Sregs>
auto ControlRegisters(Sregs& s) {
  return std::array{&s.cr0, &s.cr2,  &s.cr3,      &s.cr4,
                    &s.cr8, &s.efer, &s.apic_base};
}

template <typename Sregs>
auto Segments(Sregs& s) {
  return std::array{&s.cs, &s.ds, &s.es, &s.fs, &s.gs, &s.ss, &s.tr, &s.ldt};
}

template <typename Sregs>
auto Tables(Sregs& s) {
  return std::array{&s.gdt, &s.idt};
}

template <typename Debug>
auto DebugRegisters(Debug& d) {
  return std::array{&d.db[0], &d.db[1], &d.db[2], &d.db[3], &d.dr6, &d.dr7};
}

template <typename Events>
auto EventBytes(Events& e) {
  return std::array{
      &e.exception.injected, &e.exception.nr,       &e.exception.has_error_code,
      &e.exception.pending,  &e.interrupt.injected, &e.interrupt.nr,
      &e.interrupt.soft,     &e.interrupt.shadow,   &e.nmi.injected,
      &e.nmi.pending,        &e.nmi.masked,         &e.smi.smm,
      &e.smi.pending,        &e.smi.smm_inside_nmi, &e.smi.latched_init};
}

// The others need capabilities that we do not enable, or are for setting only.
constexpr uint32_t kEventFlags = KVM_VCPUEVENT_VALID_NMI_PENDING |
                                 KVM_VCPUEVENT_VALID_SHADOW |
                                 KVM_VCPUEVENT_VALID_SMM;

uint32_t AttributesOf(const kvm_segment& s) {
  return (s.type & 0xfu) | (s.s & 1u) << 4 | (s.dpl & 3u) << 5 |
         (s.present & 1u) << 7 | (s.avl & 1u) << 12 | (s.l & 1u) << 13 |
         (s.db & 1u) << 14 | (s.g & 1u) << 15 | (s.unusable & 1u) << 16;
}

void SetAttributes(uint32_t attributes, kvm_segment* s) {
  const auto bit = [attributes](int n) {
    return static_cast<uint8_t>(attributes >> n & 1);
  };
  s->type = attributes & 0xf;
  s->s = bit(4);
  s->dpl = static_cast<uint8_t>(attributes >> 5 & 3);
  s->present = bit(7);
  s->avl = bit(12);
  s->l = bit(13);
  s->db = bit(14);
  s->g = bit(15);
  s->unusable = bit(16);
}

kvm_segment DecodeSegment(state::StateDecoder in, absl::Status* status) {
  kvm_segment segment{};
  while (in.Next()) {
    switch (in.id()) {
      case kBaseField:
        segment.base = in.U64();
        break;
      case kLimitField:
        segment.limit = in.U32();
        break;
      case kSelectorField:
        segment.selector = in.U16();
        break;
      case kAttributesField:
        SetAttributes(in.U32(), &segment);
        break;
      default:
        break;
    }
  }
  status->Update(in.status());
  return segment;
}

kvm_dtable DecodeTable(state::StateDecoder in, absl::Status* status) {
  kvm_dtable table{};
  while (in.Next()) {
    if (in.id() == kBaseField) table.base = in.U64();
    if (in.id() == kLimitField) table.limit = in.U16();
  }
  status->Update(in.status());
  return table;
}

struct Numbered {
  uint32_t number = 0;
  uint64_t value = 0;
};

void EncodeNumbered(uint32_t field, Numbered pair, state::StateEncoder& out) {
  const auto nested = out.Message(field);
  out.Unsigned(kNumberField, pair.number);
  out.Unsigned(kValueField, pair.value);
}

Numbered DecodeNumbered(state::StateDecoder in, absl::Status* status) {
  Numbered pair;
  while (in.Next()) {
    if (in.id() == kNumberField) pair.number = in.U32();
    if (in.id() == kValueField) pair.value = in.U64();
  }
  status->Update(in.status());
  return pair;
}

kvm_vcpu_events DecodeEvents(state::StateDecoder in, absl::Status* status) {
  kvm_vcpu_events events{};
  const auto bytes = EventBytes(events);
  while (in.Next()) {
    if (in.id() <= bytes.size()) {
      *bytes[in.id() - 1] = in.U8();
    } else if (in.id() == kErrorCodeField) {
      events.exception.error_code = in.U32();
    } else if (in.id() == kEventFlagsField) {
      events.flags = in.U32() & kEventFlags;
    }
  }
  status->Update(in.status());
  return events;
}

// Elements of a list that must have so many, as they come.
class Counted {
 public:
  Counted(const char* what, size_t wanted) : what_(what), wanted_(wanted) {}

  // Where the next one goes; nullopt, and a status, when there are too many.
  std::optional<size_t> Next(absl::Status* status) {
    if (seen_ < wanted_) return seen_++;
    status->Update(
        Error(kDataLoss, "there are more than {} saved {}", wanted_, what_));
    return std::nullopt;
  }
  absl::Status Check() const {
    if (seen_ == wanted_) return absl::OkStatus();
    return Error(kDataLoss, "there are {} saved {}, must be {}", seen_, what_,
                 wanted_);
  }

 private:
  const char* const what_;
  const size_t wanted_;
  size_t seen_ = 0;
};

}  // namespace

std::vector<uint32_t> GuestMsrs(const std::vector<uint32_t>& listed) {
  std::vector<uint32_t> msrs;
  msrs.reserve(listed.size());
  for (const uint32_t msr : listed) {
    const bool denied = std::any_of(
        std::begin(kNotGuests), std::end(kNotGuests),
        [msr](MsrRange r) { return msr >= r.first && msr <= r.last; });
    if (!denied && msrs.size() < kMaxMsrs) msrs.push_back(msr);
  }
  return msrs;
}

absl::StatusOr<SavedVcpu> SaveVcpu(kvm::VcpuFd& vcpu,
                                   const std::vector<uint32_t>& msrs,
                                   std::vector<kvm_cpuid_entry2> cpuid) {
  SavedVcpu saved;
  saved.cpuid = std::move(cpuid);
  CATNAP_RETURN_IF_ERROR(vcpu.FlushRegisters());
  // First: it takes in an INIT or a SIPI, which changes registers and LAPIC.
  CATNAP_ASSIGN_OR_RETURN(saved.mp_state, vcpu.GetMpState());
  CATNAP_ASSIGN_OR_RETURN(saved.regs, vcpu.GetRegs());
  CATNAP_ASSIGN_OR_RETURN(saved.xsave, vcpu.GetXsave());
  if (!saved.xsave.empty()) {
    CATNAP_ASSIGN_OR_RETURN(saved.xcrs, vcpu.GetXcrs());
  }
  CATNAP_ASSIGN_OR_RETURN(saved.debug, vcpu.GetDebugRegs());
  // It brings posted interrupts into the registers that it returns.
  CATNAP_ASSIGN_OR_RETURN(saved.lapic, vcpu.GetLapic());
  CATNAP_ASSIGN_OR_RETURN(saved.sregs, vcpu.GetSregs());
  CATNAP_ASSIGN_OR_RETURN(saved.msrs, vcpu.GetKnownMsrs(msrs));
  // A deadline that has passed and whose interrupt is not in the LAPIC yet is
  // still there, and fires at once when it is set again.
  CATNAP_ASSIGN_OR_RETURN(const auto deadline,
                          vcpu.GetKnownMsrs({kMsrTscDeadline}));
  if (!deadline.empty()) saved.tsc_deadline = deadline.front().data;
  // Last: the others may turn what is pending into what is injected.
  CATNAP_ASSIGN_OR_RETURN(saved.events, vcpu.GetEvents());
  saved.events.flags &= kEventFlags;
  return saved;
}

absl::Status RestoreVcpu(kvm::VcpuFd& vcpu, const SavedVcpu& saved) {
  // The APIC base and the mode of the LAPIC, then the LAPIC itself: in the
  // other order the base would reset it.
  CATNAP_RETURN_IF_ERROR(vcpu.SetSregs(saved.sregs));
  CATNAP_RETURN_IF_ERROR(vcpu.SetLapic(saved.lapic));
  CATNAP_RETURN_IF_ERROR(vcpu.SetMsrs(saved.msrs));
  // After TSC and LAPIC: it is dropped unless the timer is in this mode, and is
  // compared with the TSC.
  if (saved.tsc_deadline != 0) {
    CATNAP_RETURN_IF_ERROR(vcpu.SetMsrs({{.index = kMsrTscDeadline,
                                          .reserved = 0,
                                          .data = saved.tsc_deadline}}));
  }
  // XCR0 says which parts of the area are taken.
  if (saved.xcrs.nr_xcrs > 0) {
    CATNAP_RETURN_IF_ERROR(vcpu.SetXcrs(saved.xcrs));
  }
  if (!saved.xsave.empty()) {
    CATNAP_RETURN_IF_ERROR(vcpu.SetXsave(saved.xsave));
  }
  // Clears exceptions that are pending, so the events come after it.
  CATNAP_RETURN_IF_ERROR(vcpu.SetRegs(saved.regs));
  CATNAP_RETURN_IF_ERROR(vcpu.SetEvents(saved.events));
  CATNAP_RETURN_IF_ERROR(vcpu.SetDebugRegs(saved.debug));
  // Last: whether it halts or waits for INIT says how all this is taken.
  return vcpu.SetMpState(saved.mp_state);
}

void EncodeCpuid(uint32_t field, const std::vector<kvm_cpuid_entry2>& table,
                 state::StateEncoder& out) {
  for (const kvm_cpuid_entry2& entry : table) {
    const auto nested = out.Message(field);
    out.Unsigned(kFunctionField, entry.function);
    out.Unsigned(kIndexField, entry.index);
    out.Unsigned(kFlagsField, entry.flags);
    out.Fixed32(kEaxField, entry.eax);
    out.Fixed32(kEbxField, entry.ebx);
    out.Fixed32(kEcxField, entry.ecx);
    out.Fixed32(kEdxField, entry.edx);
  }
}

kvm_cpuid_entry2 DecodeCpuidEntry(state::StateDecoder in,
                                  absl::Status* status) {
  kvm_cpuid_entry2 entry{};
  while (in.Next()) {
    switch (in.id()) {
      case kFunctionField:
        entry.function = in.U32();
        break;
      case kIndexField:
        entry.index = in.U32();
        break;
      case kFlagsField:
        entry.flags = in.U32();
        break;
      case kEaxField:
        entry.eax = in.U32();
        break;
      case kEbxField:
        entry.ebx = in.U32();
        break;
      case kEcxField:
        entry.ecx = in.U32();
        break;
      case kEdxField:
        entry.edx = in.U32();
        break;
      default:
        break;
    }
  }
  status->Update(in.status());
  return entry;
}

void EncodeVcpu(const SavedVcpu& vcpu, state::StateEncoder& out) {
  EncodeCpuid(kCpuidField, vcpu.cpuid, out);
  for (const auto* value : GeneralRegisters(vcpu.regs)) {
    out.Unsigned(kRegsField, *value);
  }
  for (const auto* value : ControlRegisters(vcpu.sregs)) {
    out.Unsigned(kControlField, *value);
  }
  for (const auto& word : vcpu.sregs.interrupt_bitmap) {
    out.Unsigned(kBitmapField, word);
  }
  for (const auto* segment : Segments(vcpu.sregs)) {
    const auto nested = out.Message(kSegmentField);
    out.Unsigned(kBaseField, segment->base);
    out.Unsigned(kLimitField, segment->limit);
    out.Unsigned(kSelectorField, segment->selector);
    out.Unsigned(kAttributesField, AttributesOf(*segment));
  }
  for (const auto* table : Tables(vcpu.sregs)) {
    const auto nested = out.Message(kTableField);
    out.Unsigned(kBaseField, table->base);
    out.Unsigned(kLimitField, table->limit);
  }
  out.Bytes(kLapicField, {reinterpret_cast<const uint8_t*>(vcpu.lapic.regs),
                          sizeof(vcpu.lapic.regs)});
  out.Unsigned(kDeadlineField, vcpu.tsc_deadline);
  for (const kvm_msr_entry& msr : vcpu.msrs) {
    EncodeNumbered(kMsrField, {msr.index, msr.data}, out);
  }
  for (uint32_t i = 0; i < std::min<uint32_t>(vcpu.xcrs.nr_xcrs, KVM_MAX_XCRS);
       ++i) {
    EncodeNumbered(kXcrField, {vcpu.xcrs.xcrs[i].xcr, vcpu.xcrs.xcrs[i].value},
                   out);
  }
  if (!vcpu.xsave.empty()) out.Bytes(kXsaveField, vcpu.xsave);
  {
    const auto nested = out.Message(kEventsField);
    uint32_t id = 1;
    for (const auto* value : EventBytes(vcpu.events)) {
      if (*value != 0) out.Unsigned(id, *value);
      ++id;
    }
    out.Unsigned(kErrorCodeField, vcpu.events.exception.error_code);
    out.Unsigned(kEventFlagsField, vcpu.events.flags);
  }
  for (const auto* value : DebugRegisters(vcpu.debug)) {
    out.Unsigned(kDebugField, *value);
  }
  out.Unsigned(kMpStateField, vcpu.mp_state);
}

absl::StatusOr<SavedVcpu> DecodeVcpu(state::StateDecoder in) {
  SavedVcpu vcpu;
  absl::Status status;
  const auto general = GeneralRegisters(vcpu.regs);
  const auto control = ControlRegisters(vcpu.sregs);
  const auto segments = Segments(vcpu.sregs);
  const auto tables = Tables(vcpu.sregs);
  const auto debug = DebugRegisters(vcpu.debug);
  std::array counts = {
      Counted("registers", general.size()),
      Counted("control registers", control.size()),
      Counted("words of pending interrupts",
              std::size(vcpu.sregs.interrupt_bitmap)),
      Counted("segments", segments.size()),
      Counted("descriptor tables", tables.size()),
      Counted("LAPICs", 1),
      Counted("sets of events", 1),
      Counted("debug registers", debug.size()),
      Counted("MP states", 1),
  };
  while (status.ok() && in.Next()) {
    switch (in.id()) {
      case kCpuidField:
        if (vcpu.cpuid.size() == kMaxSavedCpuid) {
          return Error(kDataLoss, "there are more than {} saved CPUID leaves",
                       kMaxSavedCpuid);
        }
        vcpu.cpuid.push_back(DecodeCpuidEntry(in.Message(), &status));
        break;
      case kRegsField:
        if (const auto at = counts[0].Next(&status)) *general[*at] = in.U64();
        break;
      case kControlField:
        if (const auto at = counts[1].Next(&status)) *control[*at] = in.U64();
        break;
      case kBitmapField:
        if (const auto at = counts[2].Next(&status)) {
          vcpu.sregs.interrupt_bitmap[*at] = in.U64();
        }
        break;
      case kSegmentField:
        if (const auto at = counts[3].Next(&status)) {
          *segments[*at] = DecodeSegment(in.Message(), &status);
        }
        break;
      case kTableField:
        if (const auto at = counts[4].Next(&status)) {
          *tables[*at] = DecodeTable(in.Message(), &status);
        }
        break;
      case kLapicField:
        if (counts[5].Next(&status)) {
          in.CopyBytes({reinterpret_cast<uint8_t*>(vcpu.lapic.regs),
                        sizeof(vcpu.lapic.regs)});
        }
        break;
      case kDeadlineField:
        vcpu.tsc_deadline = in.U64();
        break;
      case kMsrField: {
        if (vcpu.msrs.size() == kMaxMsrs) {
          return Error(kDataLoss, "there are more than {} saved MSRs",
                       kMaxMsrs);
        }
        const Numbered msr = DecodeNumbered(in.Message(), &status);
        vcpu.msrs.push_back(
            {.index = msr.number, .reserved = 0, .data = msr.value});
        break;
      }
      case kXcrField: {
        if (vcpu.xcrs.nr_xcrs == KVM_MAX_XCRS) {
          return Error(kDataLoss, "there are more than {} saved XCRs",
                       KVM_MAX_XCRS);
        }
        const Numbered xcr = DecodeNumbered(in.Message(), &status);
        vcpu.xcrs.xcrs[vcpu.xcrs.nr_xcrs++] = {
            .xcr = xcr.number, .reserved = 0, .value = xcr.value};
        break;
      }
      case kXsaveField: {
        const auto bytes = in.Bytes(kMaxXsaveBytes);
        vcpu.xsave.assign(bytes.begin(), bytes.end());
        break;
      }
      case kEventsField:
        if (counts[6].Next(&status)) {
          vcpu.events = DecodeEvents(in.Message(), &status);
        }
        break;
      case kDebugField:
        if (const auto at = counts[7].Next(&status)) *debug[*at] = in.U64();
        break;
      case kMpStateField:
        if (counts[8].Next(&status)) vcpu.mp_state = in.U32();
        break;
      default:
        break;
    }
  }
  status.Update(in.status());
  for (const Counted& count : counts) status.Update(count.Check());
  if (!status.ok()) return status;
  // A list from which one is missing would be taken for a CPU without it.
  if (vcpu.cpuid.empty() || (vcpu.xsave.empty() != (vcpu.xcrs.nr_xcrs == 0))) {
    return Error(kDataLoss,
                 "a saved vCPU has {} CPUID leaves, {} XCRs and {} bytes of "
                 "XSAVE area, which cannot be",
                 vcpu.cpuid.size(), uint32_t{vcpu.xcrs.nr_xcrs},
                 vcpu.xsave.size());
  }
  return vcpu;
}

absl::StatusOr<std::vector<uint64_t>> SaveTscs(
    const std::vector<kvm::VcpuFd*>& vcpus) {
  const auto read = [](const kvm::VcpuFd* vcpu) -> absl::StatusOr<uint64_t> {
    CATNAP_ASSIGN_OR_RETURN(const auto msr, vcpu->GetMsrs({kMsrTsc}));
    return uint64_t{msr.front().data};
  };
  std::vector<uint64_t> tscs;
  tscs.reserve(vcpus.size());
  CATNAP_ASSIGN_OR_RETURN(const uint64_t base, read(vcpus.front()));
  const auto base_offset = vcpus.front()->GetTscOffset();
  for (const kvm::VcpuFd* vcpu : vcpus) {
    const auto offset = vcpu->GetTscOffset();
    if (base_offset.ok() && offset.ok()) {
      // One reading and the offsets: exact, however long it takes.
      tscs.push_back(base + (*offset - *base_offset));
      continue;
    }
    // Without the attribute: one that lies between two readings of the first is
    // taken for equal to it, as KVM makes them.
    CATNAP_ASSIGN_OR_RETURN(const uint64_t before, read(vcpus.front()));
    CATNAP_ASSIGN_OR_RETURN(const uint64_t tsc, read(vcpu));
    CATNAP_ASSIGN_OR_RETURN(const uint64_t after, read(vcpus.front()));
    const bool equal = tsc - before <= after - before;
    tscs.push_back(equal ? base : base + (tsc - before));
  }
  return tscs;
}

absl::Status RestoreTscs(const std::vector<kvm::VcpuFd*>& vcpus,
                         const std::vector<uint64_t>& tscs) {
  const auto offset = vcpus.front()->GetTscOffset();
  uint64_t host = 0;  // The host's TSC at the guest's rate, about now.
  if (offset.ok()) {
    CATNAP_ASSIGN_OR_RETURN(const auto now, vcpus.front()->GetMsrs({kMsrTsc}));
    host = now.front().data - *offset;
  }
  for (size_t i = 0; i < vcpus.size() && i < tscs.size(); ++i) {
    if (offset.ok()) {
      // All against the same reading of the host's, so that they keep their
      // distances to the cycle.
      CATNAP_RETURN_IF_ERROR(vcpus[i]->SetTscOffset(tscs[i] - host));
    } else {
      // KVM takes writes within a second of each other for meant to be equal.
      CATNAP_RETURN_IF_ERROR(vcpus[i]->SetMsrs(
          {{.index = kMsrTsc, .reserved = 0, .data = tscs[i]}}));
    }
  }
  return absl::OkStatus();
}

void EncodeClock(const SavedClock& clock, state::StateEncoder& out) {
  out.Unsigned(kKvmClockField, clock.kvm_clock);
  for (const uint64_t tsc : clock.tsc) out.Unsigned(kTscField, tsc);
}

absl::StatusOr<SavedClock> DecodeClock(state::StateDecoder in) {
  SavedClock clock;
  Counted clocks("clocks", 1);
  absl::Status status;
  while (status.ok() && in.Next()) {
    if (in.id() == kKvmClockField && clocks.Next(&status)) {
      clock.kvm_clock = in.U64();
    } else if (in.id() == kTscField) {
      if (clock.tsc.size() == kMaxVcpusSaved) {
        return Error(kDataLoss, "there are more than {} saved TSCs",
                     kMaxVcpusSaved);
      }
      clock.tsc.push_back(in.U64());
    }
  }
  status.Update(in.status());
  status.Update(clocks.Check());
  if (!status.ok()) return status;
  // The kernel adds it to what it has; no guest was up for a century.
  if (clock.kvm_clock > uint64_t{INT64_MAX} / 2) {
    return Error(kDataLoss, "the saved clock says {} ns", clock.kvm_clock);
  }
  return clock;
}

void EncodeIrqchip(const SavedIrqchip& chip, state::StateEncoder& out) {
  for (const kvm_pic_state& pic : chip.pics) {
    out.Bytes(kPicField, {reinterpret_cast<const uint8_t*>(&pic), sizeof(pic)});
  }
  out.Unsigned(kIoApicBaseField, chip.ioapic.base_address);
  out.Unsigned(kIoApicSelectField, chip.ioapic.ioregsel);
  out.Unsigned(kIoApicIdField, chip.ioapic.id);
  out.Unsigned(kIoApicIrrField, chip.ioapic.irr);
  for (const auto& pin : chip.ioapic.redirtbl) {
    out.Unsigned(kRedirectionField, pin.bits);
  }
}

absl::StatusOr<SavedIrqchip> DecodeIrqchip(state::StateDecoder in) {
  SavedIrqchip chip;
  Counted pics("PICs", 2);
  Counted pins("IOAPIC pins", KVM_IOAPIC_NUM_PINS);
  absl::Status status;
  while (status.ok() && in.Next()) {
    switch (in.id()) {
      case kPicField:
        if (const auto at = pics.Next(&status)) {
          in.CopyBytes({reinterpret_cast<uint8_t*>(&chip.pics[*at]),
                        sizeof(chip.pics[*at])});
        }
        break;
      case kIoApicBaseField:
        chip.ioapic.base_address = in.U64();
        break;
      case kIoApicSelectField:
        chip.ioapic.ioregsel = in.U32();
        break;
      case kIoApicIdField:
        chip.ioapic.id = in.U32();
        break;
      case kIoApicIrrField:
        chip.ioapic.irr = in.U32();
        break;
      case kRedirectionField:
        if (const auto at = pins.Next(&status)) {
          chip.ioapic.redirtbl[*at].bits = in.U64();
        }
        break;
      default:
        break;
    }
  }
  status.Update(in.status());
  status.Update(pics.Check());
  status.Update(pins.Check());
  if (!status.ok()) return status;
  return chip;
}

}  // namespace catnap::arch
