#ifndef CATNAP_LIB_IO_TIMER_QUEUE_H_
#define CATNAP_LIB_IO_TIMER_QUEUE_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "io/operation.h"

namespace catnap::io {

// Timers by deadline, those of one deadline in the order they were added.
// Adding and removing take logarithmic time. Thread-compatible; owns nothing.
class TimerQueue {
 public:
  using TimePoint = std::chrono::steady_clock::time_point;

  void Add(Operation* timer);
  // REQUIRES: `timer` is in this queue.
  void Remove(Operation* timer);
  // Takes out the first timer whose deadline is not after `now`; nullptr when
  // there is none.
  Operation* PopDue(TimePoint now);
  // The deadline of the first timer, if there is one.
  std::optional<TimePoint> NextDeadline() const;

 private:
  static bool Before(const Operation* a, const Operation* b);
  void Place(size_t index, Operation* timer);
  void SiftUp(size_t index);
  void SiftDown(size_t index);

  std::vector<Operation*> heap_;  // Binary; each timer knows its index.
  uint64_t next_sequence_ = 0;
};

}  // namespace catnap::io

#endif  // CATNAP_LIB_IO_TIMER_QUEUE_H_
