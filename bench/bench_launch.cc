// Create-to-first-exit of a tiny guest, whose first instructions write a port,
// in a machine with six register pages, for three sizes of guest:
//
//   launch/unpooled/<size>      CreateShell, Launch, Start, first exit
//   launch/pooled/<size>        Launch, Start, first exit in a waiting shell
//   launch/floor/<size>         the same kernel calls as unpooled, by raw
//   launch/pooled_floor/<size>  ioctls (peers/launch_floor.c); as pooled
//
// and each split by step. The first exit is seen on the vCPU's thread. Not in
// any of these: opening /dev/kvm, making the template, destruction (reported
// apart). The four variants take turns, so that noise meets all of them.
#include <algorithm>
#include <iterator>
#include <string>

#include "harness.h"
#include "peers/floor_run.h"
#include "support/tiny_guest.h"
#include "vmm/machine.h"

namespace {

using Clock = std::chrono::steady_clock;
using catnap::bench::Check;
using catnap::bench::Report;
using catnap::vmm::Machine;

constexpr int kDevicePages = 6;
constexpr int kDefaultSamples = 100;

struct Size {
  const char* name;
  uint64_t bytes;
};
constexpr Size kSizes[] = {
    {"64MiB", 64ull << 20}, {"512MiB", 512ull << 20}, {"4GiB", 4ull << 30}};

// Whether the filter names another size, which spares this one's time.
bool IsLeftOut(const Size& size, const std::string& filter) {
  const auto named = [&filter](const Size& one) {
    return filter.find(one.name) != std::string::npos;
  };
  return !named(size) &&
         std::any_of(std::begin(kSizes), std::end(kSizes), named);
}

struct Setup {
  std::shared_ptr<const catnap::kvm::System> system;
  Size size;
  const catnap::test::TinyGuest* guest;
};

std::unique_ptr<Machine> CreateShell(const Setup& setup) {
  auto shell = Machine::CreateShell(
      setup.system,
      {.memory_bytes = setup.size.bytes, .device_pages = kDevicePages});
  Check("CreateShell", shell.status());
  return *std::move(shell);
}

// Launches, waits for the first exit and destroys; returns when it exited.
Clock::time_point LaunchAndEnd(const Setup& setup,
                               std::unique_ptr<Machine> machine,
                               const std::string& name, Report& report) {
  Clock::time_point exit_at{};  // Written before WaitForEnd() returns.
  catnap::vmm::LaunchConfig config;
  config.template_memfd = setup.guest->memfd.get();
  config.state = setup.guest->state;
  config.on_end = [&exit_at](const catnap::vmm::MachineExit&) {
    exit_at = Clock::now();
  };
  const auto begin = Clock::now();
  Check("Launch", machine->Launch(std::move(config)));
  const auto launched = Clock::now();
  Check("Start", machine->Start());
  machine->WaitForEnd(Clock::now() + std::chrono::seconds(10));
  machine->Stop();
  if (machine->exit()->reason != catnap::vmm::EndReason::kPowerOff) {
    Check("guest", absl::InternalError(machine->exit()->detail));
  }
  const auto ended = Clock::now();
  machine.reset();
  report.AddMicros(name + "/launch", launched - begin);
  report.AddMicros(name + "/first_exit", exit_at - launched);
  report.AddMicros(name + "/destroy", Clock::now() - ended);
  return exit_at;
}

void MeasureUnpooled(const Setup& setup, Report& report) {
  const std::string name = std::string("launch/unpooled/") + setup.size.name;
  const auto begin = Clock::now();
  auto shell = CreateShell(setup);
  const auto created = Clock::now();
  const auto exit_at = LaunchAndEnd(setup, std::move(shell), name, report);
  report.AddMicros(name, exit_at - begin);
  report.AddMicros(name + "/shell", created - begin);
}

void MeasurePooled(const Setup& setup, Report& report) {
  const std::string name = std::string("launch/pooled/") + setup.size.name;
  auto shell = CreateShell(setup);
  const auto begin = Clock::now();
  const auto exit_at = LaunchAndEnd(setup, std::move(shell), name, report);
  report.AddMicros(name, exit_at - begin);
}

void MeasureFloor(const Setup& setup, bool pooled, Report& report) {
  const auto run =
      catnap::bench::RunFloor(*setup.guest, setup.size.bytes, kDevicePages);
  const auto& [made, launched, destroyed] = run;
  if (pooled) {
    const std::string name =
        std::string("launch/pooled_floor/") + setup.size.name;
    report.Add(name, "us", run.launch());
    report.Add(name + "/map", "us", launched.map);
    report.Add(name + "/state", "us", launched.state);
    report.Add(name + "/first_exit", "us", launched.first_exit);
    return;
  }
  const std::string name = std::string("launch/floor/") + setup.size.name;
  report.Add(name, "us", run.shell() + run.launch());
  report.Add(name + "/shell", "us", run.shell());
  report.Add(name + "/shell/vm", "us", made.vm);
  report.Add(name + "/shell/irqchip", "us", made.irqchip);
  report.Add(name + "/shell/memory", "us", made.memory);
  report.Add(name + "/shell/registers", "us", made.registers);
  report.Add(name + "/shell/vcpu", "us", made.vcpu);
  report.Add(name + "/shell/thread", "us", made.thread);
  report.Add(name + "/launch", "us", launched.map + launched.state);
  report.Add(name + "/first_exit", "us", launched.first_exit);
  report.Add(name + "/destroy", "us", destroyed);
}

}  // namespace

int main(int argc, char** argv) {
  Report report(catnap::bench::ParseOptions(argc, argv, kDefaultSamples));
  auto system = catnap::kvm::System::Open();
  Check("open KVM", system.status());
  constexpr int kWarmUp = 3;
  for (const Size& size : kSizes) {
    if (IsLeftOut(size, report.options().filter)) continue;
    const auto guest = catnap::test::MakeTinyGuest(
        catnap::test::Assembler().PowerOff(), size.bytes);
    Check("make the guest", guest.status());
    const Setup setup{*system, size, &*guest};
    Report discarded({});
    for (int i = 0; i < report.options().samples + kWarmUp; ++i) {
      Report& into = i < kWarmUp ? discarded : report;
      MeasureFloor(setup, /*pooled=*/false, into);
      MeasureUnpooled(setup, into);
      MeasureFloor(setup, /*pooled=*/true, into);
      MeasurePooled(setup, into);
    }
    const std::string name = size.name;
    report.Add("launch/unpooled_to_floor/" + name, "ratio",
               report.Median("launch/unpooled/" + name) /
                   report.Median("launch/floor/" + name));
    report.Add("launch/pooled_to_floor/" + name, "ratio",
               report.Median("launch/pooled/" + name) /
                   report.Median("launch/pooled_floor/" + name));
  }
  return report.Finish();
}
