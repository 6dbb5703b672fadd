#include <cstdlib>
#include <functional>
#include <utility>

#include "arch/x86_64/cpu_identity.h"
#include "arch/x86_64/saved_vcpu.h"
#include "fuzz/seeds.h"
#include "state/encoder.h"
#include "vmm/persist.h"

// Sections of a saved machine; see machine_state_fuzz.cc. Those of devices are
// written by hand: what a driver that set up one queue leaves.

namespace catnap::fuzz {
namespace {

Seed Make(std::string name, uint8_t which,
          const std::function<void(state::StateEncoder&)>& write) {
  Seed seed{.name = std::move(name), .bytes = {which}};
  state::StateEncoder out(&seed.bytes);
  write(out);
  if (!out.status().ok()) std::abort();
  return seed;
}

arch::SavedVcpu SampleVcpu() {
  arch::SavedVcpu vcpu;
  vcpu.cpuid.resize(2);
  vcpu.cpuid[1].function = 1;
  vcpu.cpuid[1].ecx = 0x8000'0000;
  vcpu.regs.rip = 0x10'0000;
  vcpu.sregs.cr0 = 0x8005'0033;
  vcpu.sregs.cs.limit = 0xffff'ffff;
  vcpu.sregs.cs.type = 0xb;
  vcpu.tsc_deadline = 1000;
  vcpu.msrs = {{.index = 0x174, .reserved = 0, .data = 0x10}};
  vcpu.xcrs.nr_xcrs = 1;
  vcpu.xcrs.xcrs[0].value = 1;
  vcpu.xsave.resize(576);
  vcpu.events.exception.pending = 1;
  return vcpu;
}

void WriteDevice(state::StateEncoder& out, int queues) {
  out.Unsigned(1, 15);  // Status: runs.
  out.Unsigned(6, 1);
  out.Unsigned(7, 2);
  out.Fixed64(2, uint64_t{1} << 32);
  for (int i = 0; i < queues; ++i) {
    const auto queue = out.Message(8);
    out.Unsigned(1, 8);
    out.Bool(2, i == 0);
    out.Fixed64(3, 0x10000);
    out.Fixed64(4, 0x11000);
    out.Fixed64(5, 0x12000);
  }
  const auto device = out.Message(9);
  for (int i = 0; i < queues; ++i) {
    const auto queue = out.Message(1);
    out.Unsigned(1, 3);
    out.Unsigned(2, 3);
  }
  const auto own = out.Message(2);
}

}  // namespace

std::vector<Seed> MachineStateSeeds() {
  const auto vcpu = SampleVcpu();
  arch::SavedIrqchip chip;
  chip.ioapic.base_address = 0xfec0'0000;
  const arch::SavedClock clock{.kvm_clock = 5'000'000'000, .tsc = {1, 2}};
  arch::CpuIdentity identity;
  identity.cpuid = vcpu.cpuid;
  identity.tsc_khz = 2'000'000;
  identity.xsave_bytes = 4096;
  vmm::SavedMachine machine;
  machine.memory_bytes = 512 << 20;
  machine.vcpus = 2;
  machine.device_pages = 2;
  machine.devices = {{.page = 0, .device_id = 2}, {.page = 1, .device_id = 19}};
  std::vector<Seed> seeds = {
      Make("vcpu", 0, [&](auto& out) { EncodeVcpu(vcpu, out); }),
      Make("irqchip", 1, [&](auto& out) { EncodeIrqchip(chip, out); }),
      Make("clock", 2, [&](auto& out) { EncodeClock(clock, out); }),
      Make("identity", 3, [&](auto& out) { EncodeIdentity(identity, out); }),
      Make("machine", 4, [&](auto& out) { EncodeMachine(machine, out); }),
      Make("serial", 5,
           [](auto& out) {
             out.Unsigned(1, 5);
             out.Unsigned(2, 0xc1);
             out.Unsigned(7, 12);
             out.Text(10, "waiting");
           }),
  };
  const std::vector<std::pair<std::string, int>> devices = {
      {"rng", 1}, {"balloon", 5}, {"block", 1}, {"vsock", 3}, {"net", 2}};
  for (size_t i = 0; i < devices.size(); ++i) {
    const int queues = devices[i].second;
    seeds.push_back(Make(devices[i].first, static_cast<uint8_t>(10 + i),
                         [queues](auto& out) { WriteDevice(out, queues); }));
  }
  return seeds;
}

}  // namespace catnap::fuzz
