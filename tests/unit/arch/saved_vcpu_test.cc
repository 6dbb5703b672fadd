#include "arch/x86_64/saved_vcpu.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstring>
#include <functional>
#include <vector>

namespace catnap::arch {
namespace {

std::vector<uint8_t> Encoded(
    const std::function<void(state::StateEncoder&)>& encode) {
  std::vector<uint8_t> bytes;
  state::StateEncoder out(&bytes);
  encode(out);
  REQUIRE(out.status().ok());
  return bytes;
}

std::vector<uint8_t> Encoded(const SavedVcpu& vcpu) {
  return Encoded([&vcpu](auto& out) { EncodeVcpu(vcpu, out); });
}

// Every value is another one.
SavedVcpu Sample() {
  SavedVcpu vcpu;
  auto fill = [next = uint8_t{1}](void* at, size_t size) mutable {
    for (size_t i = 0; i < size; ++i) static_cast<uint8_t*>(at)[i] = next++;
  };
  vcpu.cpuid.resize(3);
  for (auto& entry : vcpu.cpuid) fill(&entry, 28);  // Not the padding.
  fill(&vcpu.regs, sizeof(vcpu.regs));
  fill(&vcpu.sregs, sizeof(vcpu.sregs));
  for (auto* segment :
       {&vcpu.sregs.cs, &vcpu.sregs.ds, &vcpu.sregs.es, &vcpu.sregs.fs,
        &vcpu.sregs.gs, &vcpu.sregs.ss, &vcpu.sregs.tr, &vcpu.sregs.ldt}) {
    segment->type = 0xb;
    segment->dpl = 3;
    segment->present = segment->s = segment->g = 1;
    segment->db = segment->l = segment->avl = segment->unusable = 0;
    segment->padding = 0;
  }
  vcpu.sregs.tr.unusable = 1;
  for (auto* table : {&vcpu.sregs.gdt, &vcpu.sregs.idt}) {
    std::memset(table->padding, 0, sizeof(table->padding));
  }
  fill(&vcpu.lapic, sizeof(vcpu.lapic));
  vcpu.tsc_deadline = 77;
  vcpu.msrs = {{.index = 0xc000'0102, .reserved = 0, .data = 1ull << 63},
               {.index = 0x277, .reserved = 0, .data = 6}};
  vcpu.xcrs.nr_xcrs = 1;
  vcpu.xcrs.xcrs[0].value = 7;
  vcpu.xsave.assign(4096, 0xa5);
  vcpu.events.exception.pending = 1;
  vcpu.events.exception.nr = 13;
  vcpu.events.exception.error_code = 0x1234;
  vcpu.events.interrupt.shadow = 1;
  vcpu.events.nmi.masked = 1;
  vcpu.events.smi.latched_init = 1;
  vcpu.events.flags = KVM_VCPUEVENT_VALID_SHADOW;
  fill(vcpu.debug.db, sizeof(vcpu.debug.db));
  vcpu.debug.dr7 = 0x400;
  vcpu.mp_state = 3;
  return vcpu;
}

template <typename T>
bool SameBytes(const T& a, const T& b) {
  return std::memcmp(&a, &b, sizeof(T)) == 0;
}

TEST_CASE("A vCPU is decoded as it was") {
  const SavedVcpu vcpu = Sample();
  const auto again = DecodeVcpu(state::StateDecoder(Encoded(vcpu)));
  INFO(again.status().ToString());
  REQUIRE(again.ok());
  CHECK(SameBytes(again->regs, vcpu.regs));
  CHECK(SameBytes(again->sregs, vcpu.sregs));
  CHECK(SameBytes(again->lapic, vcpu.lapic));
  CHECK(SameBytes(again->xcrs, vcpu.xcrs));
  CHECK(SameBytes(again->events, vcpu.events));
  CHECK(SameBytes(again->debug, vcpu.debug));
  CHECK(again->tsc_deadline == 77);
  CHECK(again->xsave == vcpu.xsave);
  CHECK(again->mp_state == 3);
  REQUIRE(again->msrs.size() == 2);
  CHECK(SameBytes(again->msrs[0], vcpu.msrs[0]));
  CHECK(Encoded(*again) == Encoded(vcpu));
}

TEST_CASE("A vCPU of which a part is missing is data loss") {
  const auto bytes = Encoded(Sample());
  for (size_t size = 0; size < bytes.size(); ++size) {
    const auto cut =
        DecodeVcpu(state::StateDecoder(std::span(bytes).first(size)));
    REQUIRE(cut.status().code() == absl::StatusCode::kDataLoss);
  }
  SavedVcpu vcpu = Sample();
  vcpu.cpuid.clear();
  CHECK_FALSE(DecodeVcpu(state::StateDecoder(Encoded(vcpu))).ok());
  vcpu = Sample();
  vcpu.xsave.clear();
  CHECK_FALSE(DecodeVcpu(state::StateDecoder(Encoded(vcpu))).ok());
}

TEST_CASE("Lists that are too long are data loss, and take no memory") {
  SavedVcpu vcpu = Sample();
  vcpu.cpuid.resize(257);
  CHECK_FALSE(DecodeVcpu(state::StateDecoder(Encoded(vcpu))).ok());
  vcpu = Sample();
  vcpu.msrs.resize(1025);
  CHECK_FALSE(DecodeVcpu(state::StateDecoder(Encoded(vcpu))).ok());
  vcpu = Sample();
  vcpu.xsave.resize(65537);
  CHECK_FALSE(DecodeVcpu(state::StateDecoder(Encoded(vcpu))).ok());
  // The same fields twice.
  auto bytes = Encoded(Sample());
  const auto once = bytes;
  bytes.insert(bytes.end(), once.begin(), once.end());
  CHECK(DecodeVcpu(state::StateDecoder(bytes)).status().code() ==
        absl::StatusCode::kDataLoss);
}

TEST_CASE("No damage to a saved vCPU is more than an error") {
  const auto good = Encoded(Sample());
  for (size_t i = 0; i < good.size(); ++i) {
    auto bad = good;
    bad[i] ^= 0xff;
    DecodeVcpu(state::StateDecoder(bad)).IgnoreError();
  }
}

TEST_CASE("Clocks and interrupt controllers are decoded as they were") {
  const SavedClock clock{.kvm_clock = 123'456'789, .tsc = {5, 1ull << 60}};
  const auto clock_bytes =
      Encoded([&clock](auto& out) { EncodeClock(clock, out); });
  const auto clock_again = DecodeClock(state::StateDecoder(clock_bytes));
  REQUIRE(clock_again.ok());
  CHECK(*clock_again == clock);
  CHECK_FALSE(DecodeClock(state::StateDecoder({})).ok());

  SavedIrqchip chip;
  chip.ioapic.base_address = 0xfec0'0000;
  chip.ioapic.irr = 0x80;
  for (size_t pin = 0; pin < 24; ++pin) chip.ioapic.redirtbl[pin].bits = pin;
  chip.pics[1].irq_base = 0x28;
  const auto bytes = Encoded([&chip](auto& out) { EncodeIrqchip(chip, out); });
  const auto again = DecodeIrqchip(state::StateDecoder(bytes));
  REQUIRE(again.ok());
  CHECK(SameBytes(again->ioapic, chip.ioapic));
  CHECK(SameBytes(again->pics[1], chip.pics[1]));
  for (size_t size = 0; size < bytes.size(); ++size) {
    CHECK_FALSE(
        DecodeIrqchip(state::StateDecoder(std::span(bytes).first(size))).ok());
  }
}

TEST_CASE("Clocks that cannot be are data loss") {
  SavedClock clock;
  clock.tsc.resize(33);
  const auto encode = [&clock](auto& out) { EncodeClock(clock, out); };
  CHECK_FALSE(DecodeClock(state::StateDecoder(Encoded(encode))).ok());
  clock = {.kvm_clock = UINT64_MAX, .tsc = {1}};
  CHECK_FALSE(DecodeClock(state::StateDecoder(Encoded(encode))).ok());
}

TEST_CASE("MSRs of the host and of what no guest gets are not saved") {
  const auto msrs = GuestMsrs({0x10, 0x11, 0x174, 0x10a, 0x6e0, 0x480, 0xc1,
                               0x4b56'4d00, 0x4b56'4d01, 0x4b56'4d02,
                               0x4b56'4d04, 0x4000'0000, 0xc000'0102});
  CHECK(msrs ==
        std::vector<uint32_t>{0x174, 0x4b56'4d01, 0x4b56'4d04, 0xc000'0102});
}

}  // namespace
}  // namespace catnap::arch
