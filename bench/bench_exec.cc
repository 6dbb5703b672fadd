#include <chrono>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>

#include "guest.h"
#include "harness.h"
#include "io/event_loop.h"
#include "kvm/system.h"
#include "syscall_counter.h"

// Round trips into a running guest; README.md says what the clocks cover.

namespace catnap::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kDefaultSamples = 200;
constexpr int kWarmUp = 20;
constexpr uint64_t kGuestBytes = 256ull << 20;
constexpr const char* kProgram = "/tmp/spawn_floor";

// What the kernel counts while calls are made.
struct Counts {
  double user_exits = 0;
  std::optional<double> exits{};
  std::optional<double> system_calls{};
};

Counts Count(vmm::Machine& machine, const SyscallCounter& syscalls) {
  Counts counts{.user_exits = static_cast<double>(machine.user_exits())};
  Check("pause", machine.Pause());
  if (const auto exits = machine.ReadKvmStat("exits"); exits.ok()) {
    counts.exits = static_cast<double>(*exits);
  }
  Check("go on", machine.Start());
  if (const auto calls = syscalls.count(); calls.has_value()) {
    counts.system_calls = static_cast<double>(*calls);
  }
  return counts;
}

int Run(Report& report) {
  const SyscallCounter syscalls;  // Before the first thread.
  auto system = kvm::System::Open();
  Check("open KVM", system.status());
  auto loop = io::EventLoop::Create({});
  Check("event loop", loop.status());
  Guest guest(*system, loop->get(), kGuestBytes, {});
  guest.CopyIn(CATNAP_SPAWN_FLOOR, kProgram);

  for (int i = 0; i < kWarmUp; ++i) {
    guest.Ping();
    guest.Exec({kProgram});
  }
  const auto measure = [&](const std::string& name, const auto& call) {
    const double calls = report.options().samples;
    const Counts before = Count(guest.machine(), syscalls);
    for (int i = 0; i < report.options().samples; ++i) {
      const auto start = Clock::now();
      call();
      report.AddMicros(name, Clock::now() - start);
    }
    const Counts after = Count(guest.machine(), syscalls);
    report.Add(name + "_user_exits", "count",
               after.user_exits - before.user_exits);
    if (before.exits.has_value() && after.exits.has_value()) {
      report.Add(name + "_exits_each", "count",
                 (*after.exits - *before.exits) / calls);
    }
    if (before.system_calls.has_value() && after.system_calls.has_value()) {
      report.Add(name + "_host_syscalls_each", "count",
                 (*after.system_calls - *before.system_calls) / calls);
    }
  };
  measure("exec/ping", [&guest] { guest.Ping(); });
  measure("exec/true", [&guest] { guest.Exec({kProgram}); });
  for (int i = 0; i < 5; ++i) {
    const std::string median = guest.Exec({kProgram, kProgram, "200"});
    report.Add("exec/in_guest_posix_spawn", "us",
               std::strtod(median.c_str(), nullptr) / 1000);
  }
  report.Add("exec/true_to_floor", "ratio",
             report.Median("exec/true") /
                 (1.5 * report.Median("exec/in_guest_posix_spawn") +
                  2 * report.Median("exec/ping")));
  return report.Finish();
}

}  // namespace
}  // namespace catnap::bench

int main(int argc, char** argv) {
  catnap::bench::Report report(
      catnap::bench::ParseOptions(argc, argv, catnap::bench::kDefaultSamples));
  return catnap::bench::Run(report);
}
