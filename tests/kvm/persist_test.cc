#include <algorithm>
#include <array>
#include <catch2/catch.hpp>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "arch/x86_64/layout.h"
#include "arch/x86_64/saved_vcpu.h"
#include "base/status.h"
#include "io/event_loop.h"
#include "state/decoder.h"
#include "support/memory_disk.h"
#include "support/saved_machine.h"
#include "virtio/block/block.h"
#include "virtio/rng/rng.h"
#include "virtio/vsock/vsock.h"
#include "vmm/persist.h"
#include "vmm/shell_pool.h"

namespace catnap::vmm {
namespace {

using state::SavedSection;
using state::SectionId;
using test::Assembler;
using test::RestoreGuest;
using test::SavedGuest;
using test::SaveGuest;
using virtio::MmioRegister;

constexpr uint64_t kResult = 0x20'0000;
constexpr uint32_t kRounds = 300'000;

uint32_t ResultOf(Machine& machine) {
  const auto value = machine.memory().Load<uint32_t>(memory::Gpa{kResult});
  REQUIRE(value.ok());
  return *value;
}

// Numbers, each made from the one before: one step too few or too many, or a
// register that changed, gives another last one.
Assembler Sequence() {
  Assembler code;
  code.Cli().MovRdi(kResult).MovEax(1).MovEcx(kRounds);
  const uint64_t loop = code.here();
  code.Bytes({0x69, 0xc0, 0x0d, 0x66, 0x19, 0x00})  // imul eax, eax, 1664525
      .Bytes({0x05, 0x5f, 0xf3, 0x6e, 0x3c})        // add eax, 1013904223
      .DecEcxJumpIfNotZero(loop)
      .Store32()
      .PowerOff();
  return code;
}

uint32_t LastOfSequence() {
  uint32_t value = 1;
  for (uint32_t i = 0; i < kRounds; ++i) value = value * 1664525 + 1013904223;
  return value;
}

void RunToPowerOff(Machine& machine) {
  REQUIRE(machine.Start().ok());
  REQUIRE(machine.WaitForEnd(test::Deadline()));
  INFO(machine.exit()->detail);
  CHECK(machine.exit()->reason == EndReason::kPowerOff);
}

TEST_CASE("A guest goes on exactly where it was saved, again and again") {
  auto machine = test::MakeMachine(Sequence());
  int moves = 0;
  while (moves < 20) {
    REQUIRE(machine->Start().ok());
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    REQUIRE(machine->Pause().ok());
    if (machine->state() == MachineState::kEnded) break;
    const SavedGuest saved = SaveGuest(*machine);
    machine = RestoreGuest(saved);
    ++moves;
  }
  CHECK(moves > 2);
  if (machine->state() != MachineState::kEnded) RunToPowerOff(*machine);
  CHECK(ResultOf(*machine) == LastOfSequence());
}

TEST_CASE("A machine that was saved goes on as if nothing had happened") {
  const auto machine = test::MakeMachine(Sequence());
  for (int i = 0; i < 5; ++i) {
    REQUIRE(machine->Start().ok());
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    REQUIRE(machine->Pause().ok());
    if (machine->state() == MachineState::kEnded) break;
    REQUIRE(machine->Save().ok());
    REQUIRE(machine->Save().ok());
  }
  if (machine->state() != MachineState::kEnded) RunToPowerOff(*machine);
  CHECK(ResultOf(*machine) == LastOfSequence());
}

TEST_CASE("A machine is saved before its first instruction") {
  SavedGuest saved;
  {
    const auto machine = test::MakeMachine(Sequence());
    saved = SaveGuest(*machine);
  }
  const auto machine = RestoreGuest(saved);
  RunToPowerOff(*machine);
  CHECK(ResultOf(*machine) == LastOfSequence());
}

TEST_CASE("A port access whose value came is not made twice") {
  // Reads the event register, which reading clears, until it is not 0.
  Assembler code;
  code.Cli().MovRdi(kResult).MovEdx(arch::kEventPort);
  const uint64_t loop = code.here();
  code.InEax().CompareEax(0).Bytes({0x0f, 0x84});  // je loop
  const auto back = static_cast<uint32_t>(loop - (code.here() + 4));
  code.Bytes({static_cast<uint8_t>(back), static_cast<uint8_t>(back >> 8),
              static_cast<uint8_t>(back >> 16),
              static_cast<uint8_t>(back >> 24)})
      .Store32()
      .PowerOff();
  auto machine = test::MakeMachine(code);
  for (int i = 0; i < 10; ++i) {
    REQUIRE(machine->Start().ok());
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    const SavedGuest saved = SaveGuest(*machine);
    machine = RestoreGuest(saved);
  }
  // An event that waits is part of what is saved.
  REQUIRE(machine->ChangeGenerationId().ok());
  const SavedGuest saved = SaveGuest(*machine);
  machine = RestoreGuest(saved);
  RunToPowerOff(*machine);
  CHECK(ResultOf(*machine) == arch::kEventVmGenId);
}

TEST_CASE("A timer that runs fires after the restore") {
  // The guest polls the LAPIC's request register, interrupts off.
  constexpr uint64_t kApic = arch::kLocalApic;
  constexpr uint32_t kVector = 0x40;
  const bool deadline = GENERATE(false, true);
  Assembler code;
  const auto put = [&code](uint64_t address, uint32_t value) {
    code.MovRdi(address).MovEax(value).Store32();
  };
  code.Cli();
  put(kApic + 0xf0, 0x1ff);  // On.
  put(kApic + 0x3e0, 0xb);   // Divided by 1.
  if (deadline) {
    put(kApic + 0x320, kVector | 2u << 17);
    code.Bytes({0x0f, 0x31})                    // rdtsc
        .Bytes({0x05, 0x00, 0x00, 0x00, 0x40})  // add eax, 2^30
        .Bytes({0x83, 0xd2, 0x00})              // adc edx, 0
        .MovEcx(0x6e0)
        .Bytes({0x0f, 0x30});  // wrmsr
  } else {
    put(kApic + 0x320, kVector);
    put(kApic + 0x380, 300'000'000);  // 0.3 s of KVM's APIC clock.
  }
  code.MovRsi(kResult).MovEax(1).StoreRsi32().MovRdi(kApic + 0x220);
  const uint64_t loop = code.here();
  code.Load32().CompareEax(0).Bytes({0x0f, 0x84});  // je loop
  const auto back = static_cast<uint32_t>(loop - (code.here() + 4));
  code.Bytes({static_cast<uint8_t>(back), static_cast<uint8_t>(back >> 8),
              static_cast<uint8_t>(back >> 16),
              static_cast<uint8_t>(back >> 24)})
      .StoreRsi32()
      .PowerOff();
  auto machine = test::MakeMachine(code);
  REQUIRE(machine->Start().ok());
  while (ResultOf(*machine) == 0) std::this_thread::yield();
  SavedGuest saved = SaveGuest(*machine);
  machine.reset();
  const auto vcpu = arch::DecodeVcpu(
      state::StateDecoder(saved.section(SectionId::kVcpu).bytes));
  REQUIRE(vcpu.ok());
  CHECK((vcpu->tsc_deadline != 0) == deadline);
  machine = RestoreGuest(saved);
  RunToPowerOff(*machine);
  CHECK(ResultOf(*machine) == 1);  // Vector 0x40 is bit 0 there.
}

// By hand: a paravirtual KVM has no TSC offset, and its guests see the host's.
// tests/linux/persist_test.cc asks the same where KVM has one.
TEST_CASE("The guest's TSC does not count the time between save and start",
          "[.tsc]") {
  // Stores the TSC divided by 2^20, for ever.
  Assembler code;
  code.Cli().MovRdi(kResult);
  const uint64_t loop = code.here();
  code.Bytes({0x0f, 0x31})              // rdtsc
      .Bytes({0x48, 0xc1, 0xe2, 0x20})  // shl rdx, 32
      .Bytes({0x48, 0x09, 0xd0})        // or rax, rdx
      .Bytes({0x48, 0xc1, 0xe8, 0x14})  // shr rax, 20
      .Store32()
      .Jump(loop);
  auto machine = test::MakeMachine(code);
  REQUIRE(machine->Start().ok());
  while (ResultOf(*machine) == 0) std::this_thread::yield();
  SavedGuest saved = SaveGuest(*machine);
  const uint32_t before = ResultOf(*machine);
  machine.reset();
  const auto identity = arch::DecodeIdentity(
      state::StateDecoder(saved.section(SectionId::kHostCpu).bytes));
  REQUIRE(identity.ok());
  const auto clock = arch::DecodeClock(
      state::StateDecoder(saved.section(SectionId::kClock).bytes));
  REQUIRE(clock.ok());
  std::this_thread::sleep_for(std::chrono::seconds(1));
  const auto start = std::chrono::steady_clock::now();
  machine = RestoreGuest(saved);
  REQUIRE(machine->Start().ok());
  while (ResultOf(*machine) == before) std::this_thread::yield();
  const uint32_t after = ResultOf(*machine);
  const std::chrono::duration<double, std::milli> ran =
      std::chrono::steady_clock::now() - start;
  const double most =
      (ran.count() + 500) * static_cast<double>(identity->tsc_khz);
  SavedGuest again = SaveGuest(*machine);
  const auto clock_again = arch::DecodeClock(
      state::StateDecoder(again.section(SectionId::kClock).bytes));
  REQUIRE(clock_again.ok());
  const uint64_t kvms = clock_again->tsc.front();
  CHECK(static_cast<double>(kvms - clock->tsc.front()) < most);
  // A paravirtual KVM lets the guest see the host's TSC as it is.
  if (uint64_t{after} << 20 > kvms) return;
  CHECK(after > before);
  CHECK((after - before) * 1048576.0 < most);
}

TEST_CASE("A processor that halts is saved halting") {
  Assembler code;
  code.Cli().MovRdi(kResult).MovEax(1).Store32().Halt();
  auto machine =
      test::MakeMachine(code, {.memory_bytes = test::kSmallMemory, .vcpus = 2});
  REQUIRE(machine->Start().ok());
  while (ResultOf(*machine) == 0) std::this_thread::yield();
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  SavedGuest saved = SaveGuest(*machine);
  machine = RestoreGuest(saved);
  REQUIRE(machine->Start().ok());
  SavedGuest again = SaveGuest(*machine);
  for (SavedGuest* guest : {&saved, &again}) {
    const auto first = arch::DecodeVcpu(
        state::StateDecoder(guest->section(SectionId::kVcpu, 0).bytes));
    const auto second = arch::DecodeVcpu(
        state::StateDecoder(guest->section(SectionId::kVcpu, 1).bytes));
    REQUIRE(first.ok());
    REQUIRE(second.ok());
    CHECK(first->mp_state == KVM_MP_STATE_HALTED);
    CHECK(second->mp_state == KVM_MP_STATE_UNINITIALIZED);
  }
}

// --- Devices -----------------------------------------------------------------

class Devices {
 public:
  Devices() {
    auto loop = io::EventLoop::Create({});
    REQUIRE(loop.ok());
    loop_ = *std::move(loop);
  }

  // Page 0 rng, page 1 block, page 2 vsock.
  void Attach(Machine& machine) {
    memory::GuestMemory* const memory = &machine.memory();
    const auto attach = [&](int page, auto device) {
      REQUIRE(machine
                  .AttachVirtio(page, std::move(device), loop_.get(),
                                base::Logger())
                  .ok());
    };
    attach(0, std::make_unique<virtio::Rng>(virtio::RngOptions{}, memory));
    disk_ = std::make_shared<test::MemoryDisk>(1 << 20);
    attach(1, std::make_unique<virtio::Block>(disk_, virtio::BlockOptions{},
                                              memory));
    attach(2, std::make_unique<virtio::Vsock>(virtio::VsockOptions{}, memory));
  }
  test::AttachDevices attach() {
    return [this](Machine& machine) { Attach(machine); };
  }

 private:
  std::unique_ptr<io::EventLoop> loop_;
  std::shared_ptr<test::MemoryDisk> disk_;
};

constexpr int kPages = 3;
constexpr ShellConfig kWithDevices{.memory_bytes = test::kSmallMemory,
                                   .device_pages = kPages};

uint64_t RegisterOf(int page, MmioRegister which) {
  return arch::kRegisterPages + static_cast<uint64_t>(page) * arch::kPageSize +
         static_cast<uint64_t>(which);
}

// Starts the rng device with a queue of two; asks it for random bytes twice,
// with a long way between, and counts what came at kResult.
Assembler UseRng() {
  constexpr uint32_t kDescriptors = 0x30'0000;
  constexpr uint32_t kAvailable = 0x30'1000;
  constexpr uint32_t kUsed = 0x30'2000;
  constexpr uint32_t kBuffer = 0x30'3000;
  constexpr uint32_t kWay = 200'000;
  Assembler code;
  const auto put = [&code](uint64_t address, uint32_t value) {
    code.MovRdi(address).MovEax(value).Store32();
  };
  const auto reg = [&put](MmioRegister which, uint32_t value) {
    put(RegisterOf(0, which), value);
  };
  code.Cli();
  reg(MmioRegister::kStatus, 3);
  reg(MmioRegister::kDriverFeaturesSelect, 1);
  reg(MmioRegister::kDriverFeatures, 1);  // VERSION_1
  reg(MmioRegister::kStatus, 11);
  reg(MmioRegister::kQueueSize, 2);
  reg(MmioRegister::kQueueDescriptorsLow, kDescriptors);
  reg(MmioRegister::kQueueDriverLow, kAvailable);
  reg(MmioRegister::kQueueDeviceLow, kUsed);
  reg(MmioRegister::kQueueReady, 1);
  reg(MmioRegister::kStatus, 15);
  put(kDescriptors, kBuffer);
  put(kDescriptors + 8, 16);
  put(kDescriptors + 12, 2);  // Writable.
  for (uint32_t round = 1; round <= 2; ++round) {
    put(kAvailable, round << 16);
    reg(MmioRegister::kQueueNotify, 0);
    code.MovRdi(kUsed);
    const uint64_t wait = code.here();
    code.Load32().Bytes({0xc1, 0xe8, 0x10});  // shr eax, 16
    code.CompareEax(round).JumpIfNotEqual(wait);
    put(kResult, round);
    code.MovEcx(kWay);
    const uint64_t way = code.here();
    code.DecEcxJumpIfNotZero(way);
  }
  return code.PowerOff();
}

std::unique_ptr<Machine> MakeWithDevices(Devices& devices,
                                         const Assembler& code) {
  auto machine = test::MakeShell(kWithDevices);
  devices.Attach(*machine);
  const auto guest = test::MakeGuest(code);
  REQUIRE(
      machine
          ->Launch({.template_memfd = guest.memfd.get(), .state = guest.state})
          .ok());
  return machine;
}

TEST_CASE("A device goes on in the middle of its life") {
  Devices devices;
  auto machine = MakeWithDevices(devices, UseRng());
  REQUIRE(machine->Start().ok());
  while (ResultOf(*machine) == 0) std::this_thread::yield();
  const bool move = GENERATE(true, false);
  const SavedGuest saved = SaveGuest(*machine);
  CHECK(ResultOf(*machine) == 1);
  if (move) machine = RestoreGuest(saved, devices.attach());
  RunToPowerOff(*machine);
  CHECK(ResultOf(*machine) == 2);
}

TEST_CASE("No notification is lost, wherever the guest is saved") {
  Devices devices;
  auto machine = MakeWithDevices(devices, UseRng());
  for (int i = 0; i < 20; ++i) {
    REQUIRE(machine->Start().ok());
    std::this_thread::sleep_for(std::chrono::microseconds(500));
    REQUIRE(machine->Pause().ok());
    if (machine->state() == MachineState::kEnded) break;
    const SavedGuest saved = SaveGuest(*machine);
    machine = RestoreGuest(saved, devices.attach());
  }
  if (machine->state() != MachineState::kEnded) RunToPowerOff(*machine);
  CHECK(ResultOf(*machine) == 2);
}

// What does not change with time.
std::vector<SavedSection> Timeless(std::vector<SavedSection> sections) {
  std::erase_if(sections,
                [](const auto& s) { return s.id == SectionId::kClock; });
  return sections;
}

TEST_CASE("What is loaded is saved again as the same bytes") {
  Devices devices;
  auto machine = MakeWithDevices(devices, UseRng());
  REQUIRE(machine->Start().ok());
  while (ResultOf(*machine) == 0) std::this_thread::yield();
  const SavedGuest saved = SaveGuest(*machine);
  machine = RestoreGuest(saved, devices.attach());
  const SavedGuest again = SaveGuest(*machine);
  const auto first = Timeless(saved.sections);
  const auto second = Timeless(again.sections);
  REQUIRE(first.size() == second.size());
  for (size_t i = 0; i < first.size(); ++i) {
    INFO(state::SectionName(first[i].id, first[i].instance));
    CHECK(first[i] == second[i]);
  }
}

TEST_CASE("A saved machine goes into a shell of the pool") {
  SavedGuest saved;
  {
    const auto machine = test::MakeMachine(Sequence());
    REQUIRE(machine->Start().ok());
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    saved = SaveGuest(*machine);
  }
  auto pool = ShellPool::Create(test::OpenKvm(), {});
  REQUIRE(pool.ok());
  REQUIRE((*pool)->Prewarm(saved.config, 2).ok());
  for (int i = 0; i < 3; ++i) {
    auto shell = (*pool)->Take(saved.config);
    REQUIRE(shell.ok());
    REQUIRE(test::LaunchSaved(**shell, saved).ok());
    RunToPowerOff(**shell);
    CHECK(ResultOf(**shell) == LastOfSequence());
    (*pool)->Retire(*std::move(shell));
  }
}

// --- What is refused
// ----------------------------------------------------------

class Refusals {
 public:
  Refusals() {
    auto machine = MakeWithDevices(devices_, UseRng());
    REQUIRE(machine->Start().ok());
    while (ResultOf(*machine) == 0) std::this_thread::yield();
    saved_ = SaveGuest(*machine);
  }

  SavedGuest& saved() { return saved_; }
  absl::Status Launch() {
    const auto shell = test::MakeShell(saved_.config);
    devices_.Attach(*shell);
    return test::LaunchSaved(*shell, saved_);
  }
  Devices& devices() { return devices_; }

 private:
  Devices devices_;
  SavedGuest saved_;
};

TEST_CASE("A section that is needed and not known is refused") {
  Refusals refusals;
  auto& sections = refusals.saved().sections;
  SavedSection strange;
  strange.id = static_cast<SectionId>(4711);
  sections.push_back(strange);
  CHECK(refusals.Launch().ok());  // Nobody needs it.
  sections.back().critical = true;
  const absl::Status refused = refusals.Launch();
  CHECK(refused.code() == absl::StatusCode::kUnimplemented);
  CHECK_THAT(refused.ToString(), Catch::Contains("4711"));
  sections.pop_back();
  refusals.saved().section(SectionId::kVcpu).version = 2;
  CHECK(refusals.Launch().code() == absl::StatusCode::kUnimplemented);
}

TEST_CASE("A section that is missing or comes twice is data loss") {
  Refusals refusals;
  auto& sections = refusals.saved().sections;
  const auto good = sections;
  for (size_t i = 0; i < good.size(); ++i) {
    INFO(state::SectionName(good[i].id, good[i].instance));
    sections.erase(sections.begin() + static_cast<ptrdiff_t>(i));
    CHECK(refusals.Launch().code() == absl::StatusCode::kDataLoss);
    sections = good;
    sections.push_back(good[i]);
    CHECK(refusals.Launch().code() == absl::StatusCode::kDataLoss);
    sections = good;
  }
}

TEST_CASE("Another shell or other devices are refused") {
  Refusals refusals;
  const auto saved_config = refusals.saved().config;
  for (const int change : {0, 1, 2}) {
    ShellConfig config = saved_config;
    if (change == 0) config.memory_bytes += 1 << 20;
    if (change == 1) config.vcpus = 2;
    if (change == 2) config.device_pages = kPages + 1;
    const auto shell = test::MakeShell(config);
    refusals.devices().Attach(*shell);
    const absl::Status refused = test::LaunchSaved(*shell, refusals.saved());
    // The memory of a larger shell does not even map.
    CHECK(refused.code() == (change == 0
                                 ? absl::StatusCode::kInvalidArgument
                                 : absl::StatusCode::kFailedPrecondition));
  }
  const auto without = test::MakeShell(saved_config);
  const absl::Status refused = test::LaunchSaved(*without, refusals.saved());
  CHECK(refused.code() == absl::StatusCode::kFailedPrecondition);
  CHECK_THAT(refused.ToString(), Catch::Contains("not attached"));
  const auto no_memory = test::MakeShell(saved_config);
  LaunchConfig launch;
  launch.saved = &refusals.saved().sections;
  const absl::Status launched = no_memory->Launch(std::move(launch));
  CHECK(launched.code() == absl::StatusCode::kInvalidArgument);
}

TEST_CASE("Another CPU is refused, by name") {
  Refusals refusals;
  SavedSection& section = refusals.saved().section(SectionId::kHostCpu);
  const auto good = arch::DecodeIdentity(state::StateDecoder(section.bytes));
  REQUIRE(good.ok());
  const auto with = [&](const arch::CpuIdentity& identity) {
    section.bytes.clear();
    state::StateEncoder out(&section.bytes);
    arch::EncodeIdentity(identity, out);
    const absl::Status refused = refusals.Launch();
    CHECK(refused.code() == absl::StatusCode::kFailedPrecondition);
    CHECK(ReasonOf(refused) == ErrorReason::kCpuMismatch);
    return refused.ToString();
  };
  auto other = *good;
  for (auto& leaf : other.cpuid) {
    if (leaf.function == 0) leaf.ebx ^= 0x20;
  }
  CHECK_THAT(with(other), Catch::Contains("CPU of"));
  other = *good;
  for (auto& leaf : other.cpuid) {
    if (leaf.function == 1) leaf.ecx |= 1u << 5;  // VMX
  }
  CHECK_THAT(with(other), Catch::Contains("CPUID leaf 0x1.0 ECX bit 5"));
}

TEST_CASE("Nothing is saved but a guest that stands") {
  const auto shell = test::MakeShell();
  CHECK(shell->Save().status().code() == absl::StatusCode::kFailedPrecondition);
  const auto machine = test::MakeMachine(test::BusyLoop());
  REQUIRE(machine->Start().ok());
  CHECK(machine->Save().status().code() ==
        absl::StatusCode::kFailedPrecondition);
  machine->Stop();
  CHECK(machine->Save().status().code() ==
        absl::StatusCode::kFailedPrecondition);
}

TEST_CASE("No damage to a saved machine is more than an error") {
  Refusals refusals;
  const auto good = refusals.saved().sections;
  int refused = 0;
  for (size_t s = 0; s < good.size(); ++s) {
    const size_t size = good[s].bytes.size();
    const size_t step = size / 24 + 1;
    for (size_t at = 0; at < size; at += step) {
      auto& bytes = refusals.saved().sections[s].bytes;
      bytes.resize(at);
      if (!refusals.Launch().ok()) ++refused;
      bytes = good[s].bytes;
      bytes[at] ^= static_cast<uint8_t>(at * 37 + 1);
      if (!refusals.Launch().ok()) ++refused;
      bytes = good[s].bytes;
    }
  }
  CHECK(refused > 20);
  CHECK(refusals.Launch().ok());
}

// --- Measured by hand
// ---------------------------------------------------------

using Micros = std::chrono::duration<double, std::micro>;

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

TEST_CASE("Save, and a launch from what was saved against a cold one",
          "[.measure]") {
  constexpr uint64_t kGo = kResult + 0x1000;
  constexpr int kTimes = 100;
  const ShellConfig config{.memory_bytes = 512 << 20, .device_pages = kPages};
  // Waits until kGo is not 0, then switches off.
  Assembler code;
  code.Cli().MovRdi(kResult).MovEax(1).Store32().MovRdi(kGo);
  const uint64_t loop = code.here();
  code.Load32().CompareEax(1).JumpIfNotEqual(loop).PowerOff();
  Devices devices;
  auto machine = test::MakeShell(config);
  devices.Attach(*machine);
  const auto cold = test::MakeGuest(code, config.memory_bytes);
  REQUIRE(
      machine->Launch({.template_memfd = cold.memfd.get(), .state = cold.state})
          .ok());
  REQUIRE(machine->Start().ok());
  while (ResultOf(*machine) == 0) std::this_thread::yield();
  REQUIRE(machine->Pause().ok());
  std::vector<double> saves;
  for (int i = 0; i < kTimes; ++i) {
    const auto start = std::chrono::steady_clock::now();
    REQUIRE(machine->Save().ok());
    saves.push_back(Micros(std::chrono::steady_clock::now() - start).count());
  }
  REQUIRE(machine->memory().Store<uint32_t>(memory::Gpa{kGo}, 1).ok());
  const SavedGuest saved = SaveGuest(*machine);
  machine.reset();
  Assembler at_once;
  at_once.PowerOff();
  const auto fresh = test::MakeGuest(at_once, config.memory_bytes);

  std::array<std::vector<double>, 2> launches;
  std::vector<double> loads;
  for (int i = 0; i < 2 * kTimes; ++i) {
    const bool from_saved = i % 2 == 0;
    const auto shell = test::MakeShell(config);
    devices.Attach(*shell);
    const auto start = std::chrono::steady_clock::now();
    if (from_saved) {
      REQUIRE(test::LaunchSaved(*shell, saved).ok());
      loads.push_back(Micros(std::chrono::steady_clock::now() - start).count());
    } else {
      REQUIRE(shell
                  ->Launch({.template_memfd = fresh.memfd.get(),
                            .state = fresh.state})
                  .ok());
    }
    REQUIRE(shell->Start().ok());
    REQUIRE(shell->WaitForEnd(test::Deadline()));
    launches[from_saved ? 0 : 1].push_back(
        Micros(std::chrono::steady_clock::now() - start).count());
  }
  WARN("p50 of " << kTimes << " in us: save " << Median(saves)
                 << ", load of state and memory " << Median(loads)
                 << ", to first exit from saved " << Median(launches[0])
                 << ", cold " << Median(launches[1]));
}

}  // namespace
}  // namespace catnap::vmm
