#ifndef CATNAP_BENCH_TICKER_H_
#define CATNAP_BENCH_TICKER_H_

#include <chrono>
#include <vector>

#include "base/mutex.h"

namespace catnap::bench {

// A program for any guest: writes a byte every 2 ms until it may read one. What
// is between two bytes here is how long the guest stood still, or how long it
// took to be heard, whatever is larger.
inline constexpr const char* kTickerProgram =
    "import os, select\n"
    "while not select.select([0], [], [], 0.002)[0]: os.write(1, b\".\")\n";

// When its bytes came. Thread-safe.
class Ticks {
 public:
  using Clock = std::chrono::steady_clock;

  void Add() {
    const base::MutexLock lock(&mutex_);
    ticks_.push_back(Clock::now());
    came_.NotifyAll();
  }
  // Blocks until `count` more have come.
  void WaitFor(size_t count);
  // The longest time between two ticks, of those that end after `from` and
  // begin before `to`.
  Clock::duration LongestGap(Clock::time_point from, Clock::time_point to);
  Clock::time_point last();

 private:
  base::Mutex mutex_;
  base::CondVar came_;
  std::vector<Clock::time_point> ticks_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace catnap::bench

#endif  // CATNAP_BENCH_TICKER_H_
