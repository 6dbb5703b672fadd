// How an interrupt gets from the VMM into a guest that has halted, by each way
// that KVM has (peers/irq_paths.c):
//
//   irq/line, irq/irqfd, irq/irqfd_msi, irq/signal_msi
//       from before the first call to the exit that the guest's handler makes
//   irq/.../calls
//       what the calling thread spends: all of it is time of the event loop
//
// The four take turns.
#include <array>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "base/status.h"
#include "harness.h"
#include "peers/irq_paths.h"

namespace {

constexpr int kDefaultSamples = 500;
constexpr int kWarmUp = 20;
constexpr std::array<const char*, IRQ_PATH_COUNT> kNames = {
    "irq/line", "irq/irqfd", "irq/irqfd_msi", "irq/signal_msi"};

void Check(const char* what, int error) {
  if (error == 0) return;
  std::fprintf(stderr, "bench_irq: %s: %s\n", what,
               catnap::ErrnoText(-error).c_str());
  std::_Exit(1);  // Threads run.
}

}  // namespace

int main(int argc, char** argv) {
  catnap::bench::Report report(
      catnap::bench::ParseOptions(argc, argv, kDefaultSamples));
  irq_guest* guest = nullptr;
  Check("guest", irq_guest_create(&guest));
  for (int i = 0; i < kWarmUp + report.options().samples; ++i) {
    for (size_t path = 0; path < kNames.size(); ++path) {
      irq_times times{};
      Check(kNames[path],
            irq_guest_measure(guest, static_cast<irq_path>(path), &times));
      if (i < kWarmUp) continue;
      const std::string name = kNames[path];
      report.Add(name, "us", times.to_handler);
      report.Add(name + "/calls", "us", times.calls);
    }
  }
  irq_guest_destroy(guest);
  return report.Finish();
}
