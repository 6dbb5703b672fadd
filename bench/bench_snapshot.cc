#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "guest.h"
#include "harness.h"
#include "room.h"
#include "snapshot_guest.h"
#include "snapshot_native.h"
#include "snapshot_peers.h"
#include "snapshot_sleep.h"

// What it costs to store a guest and to bring it back, in two parts: the writer
// and the reader over the memory of a real guest, beside zstd and fio, which
// needs no KVM; and whole guests, beside QEMU's microvm, which needs one that
// runs Linux. README.md says what the clocks cover.

namespace catnap::bench {
namespace {

constexpr int kDefaultSamples = 5;

void MeasureGuests(Report& report) {
  const Room room;
  Sleeper sleeper(room / "state");
  for (int i = 0; i < report.options().samples; ++i) {
    sleeper.WakeElsewhere(report);
    sleeper.SleepHere(report);
    MeasureQemu(sleeper.root_disk(), report);
  }
  const auto ratio = [&report](const char* name, const char* of,
                               const char* to) {
    report.Add(name, "ratio", report.Median(of) / report.Median(to));
  };
  ratio("resume/qemu_to_cold_first_exec", "resume/first_exec/qemu",
        "resume/cold_first_exec");
  ratio("live/qemu_stop_save_to_pause", "live/pause/qemu_stop_save",
        "live/pause");
  ratio("live/pause_to_qemu_background", "live/pause",
        "live/pause/qemu_background");
}

int Main(int argc, char** argv) {
  if (argc == 3 && std::string_view(argv[1]) == "--wake") {
    Sleeper::Wake(argv[2]);
    return 0;
  }
  if (argc == 3 && std::string_view(argv[1]) == "--save-guest") {
    SaveGuest(argv[2]);
    return 0;
  }
  Report report(ParseOptions(argc, argv, kDefaultSamples));
  if (!IsEmulated()) {
    MeasureStoredMemory(FindSavedGuest(), report);
  }
  if (IsEmulated() || Host::Probe().kvm_runs_linux) {
    MeasureGuests(report);
  }
  return report.Finish();
}

}  // namespace
}  // namespace catnap::bench

int main(int argc, char** argv) { return catnap::bench::Main(argc, argv); }
