#ifndef CATNAP_BENCH_SNAPSHOT_SLEEP_H_
#define CATNAP_BENCH_SNAPSHOT_SLEEP_H_

#include <string>

#include "harness.h"

namespace catnap::bench {

// A MicroVM that sleeps, wakes and is copied, by the public API, in one state
// directory. Needs a KVM that runs Linux.
class Sleeper {
 public:
  // Builds the image, starts the MicroVM and lets it fall asleep.
  explicit Sleeper(std::string state_dir);

  // The root disk that the image was built with.
  std::string root_disk() const;

  // resume/cold_..., resume/warm_...: this program wakes it in a new process.
  void WakeElsewhere(Report& report);
  // live/..., suspend/... and resume/hot_...
  void SleepHere(Report& report);

  // What WakeElsewhere() runs: wakes it, says on standard output when the first
  // exec has ended and what the steps took, and lets it sleep again.
  static void Wake(const std::string& state_dir);

 private:
  const std::string state_dir_;
};

}  // namespace catnap::bench

#endif  // CATNAP_BENCH_SNAPSHOT_SLEEP_H_
