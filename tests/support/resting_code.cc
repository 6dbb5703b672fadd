#include "support/resting_code.h"

#include "arch/x86_64/initial_state.h"
#include "arch/x86_64/layout.h"

namespace catnap::test {
namespace {

constexpr uint32_t kVector = 0x40;
constexpr uint32_t kLapicEoi = 0xb0;
constexpr uint32_t kLapicSpurious = 0xf0;
constexpr uint32_t kLapicEnabled = 0x1ff;
// Of the IOAPIC.
constexpr uint32_t kWindow = 0x10;
constexpr uint32_t kFirstRedirection = 0x10;
// Of flat segments, and of an interrupt gate.
constexpr uint32_t kCodeHigh = 0x00af'9b00;
constexpr uint32_t kDataHigh = 0x00cf'9300;
constexpr uint32_t kFlatLow = 0x0000'ffff;
constexpr uint32_t kGate = 0x8e00;
constexpr uint32_t kGateBytes = 16;
// In `tables`.
constexpr uint32_t kGdt = 0;
constexpr uint32_t kPointer = 0x100;
constexpr uint32_t kIdt = 0x1000;
constexpr uint32_t kStackEnd = 0x4000;

void Put(Assembler* code, uint64_t address, uint32_t value) {
  code->MovRdi(address).MovEax(value).Store32();
}

// Where lgdt and lidt find what they load.
void PutPointer(Assembler* code, uint32_t at, uint32_t base, uint32_t limit) {
  Put(code, at, limit | base << 16);
  Put(code, at + 4, base >> 16);
  Put(code, at + 8, 0);
  code->MovRdi(at);
}

}  // namespace

void AppendInterruptHandler(Assembler* code, uint64_t counter) {
  code->MovRdi(counter).Load32().IncEax().Store32();
  Put(code, arch::kLocalApic + kLapicEoi, 0);
  code->Bytes({0x48, 0xcf});  // iretq
}

void AppendRest(Assembler* code, uint64_t handler, uint64_t counter,
                uint32_t tables) {
  const arch::InitialState selectors;
  const auto segment = [&](uint16_t selector, uint32_t high) {
    Put(code, tables + kGdt + selector, kFlatLow);
    Put(code, tables + kGdt + selector + 4, high);
  };
  segment(selectors.code_selector, kCodeHigh);
  segment(selectors.data_selector, kDataHigh);
  PutPointer(code, tables + kPointer, tables + kGdt,
             selectors.data_selector + 7);
  code->Bytes({0x0f, 0x01, 0x17});  // lgdt [rdi]
  const uint32_t gate = tables + kIdt + kVector * kGateBytes;
  const auto to = static_cast<uint32_t>(handler);
  Put(code, gate, (to & 0xffff) | uint32_t{selectors.code_selector} << 16);
  Put(code, gate + 4, (to & 0xffff'0000) | kGate);
  Put(code, gate + 8, static_cast<uint32_t>(handler >> 32));
  PutPointer(code, tables + kPointer, tables + kIdt,
             (kVector + 1) * kGateBytes - 1);
  code->Bytes({0x0f, 0x01, 0x1f});                             // lidt [rdi]
  code->MovRdi(tables + kStackEnd).Bytes({0x48, 0x89, 0xfc});  // mov rsp, rdi
  Put(code, arch::kLocalApic + kLapicSpurious, kLapicEnabled);
  const uint32_t redirection = kFirstRedirection + 2 * arch::kFirstDeviceGsi;
  Put(code, arch::kIoApic, redirection + 1);
  Put(code, arch::kIoApic + kWindow, 0);  // To CPU 0.
  Put(code, arch::kIoApic, redirection);
  Put(code, arch::kIoApic + kWindow, kVector);
  Put(code, counter, 1);
  const uint64_t rest = code->here();
  code->Bytes({0xfb}).Halt().Jump(rest);  // sti
}

}  // namespace catnap::test
