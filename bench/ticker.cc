#include "ticker.h"

#include <algorithm>

#include "guest.h"

namespace catnap::bench {

void Ticks::WaitFor(size_t count) {
  const base::MutexLock lock(&mutex_);
  const size_t wanted = ticks_.size() + count;
  const auto deadline = Soon();
  while (ticks_.size() < wanted) {
    if (Clock::now() >= deadline) {
      Check("ticker", absl::DeadlineExceededError("the guest is silent"));
    }
    came_.WaitUntil(&mutex_, deadline);
  }
}

Ticks::Clock::duration Ticks::LongestGap(Clock::time_point from,
                                         Clock::time_point to) {
  const base::MutexLock lock(&mutex_);
  Clock::duration longest{};
  for (size_t i = 1; i < ticks_.size(); ++i) {
    if (ticks_[i] < from || ticks_[i - 1] > to) continue;
    longest = std::max(longest, ticks_[i] - ticks_[i - 1]);
  }
  return longest;
}

Ticks::Clock::time_point Ticks::last() {
  const base::MutexLock lock(&mutex_);
  return ticks_.empty() ? Clock::time_point() : ticks_.back();
}

}  // namespace catnap::bench
