#include "io/timer_queue.h"

namespace catnap::io {

void TimerQueue::Add(Operation* timer) {
  timer->sequence = next_sequence_++;
  heap_.push_back(timer);
  timer->heap_index = heap_.size() - 1;
  SiftUp(timer->heap_index);
}

void TimerQueue::Remove(Operation* timer) {
  const size_t hole = timer->heap_index;
  Operation* const last = heap_.back();
  heap_.pop_back();
  if (last == timer) return;
  Place(hole, last);
  // The last one may come from another branch: it fits above or below.
  SiftUp(hole);
  SiftDown(last->heap_index);
}

Operation* TimerQueue::PopDue(TimePoint now) {
  if (heap_.empty() || heap_.front()->deadline > now) return nullptr;
  Operation* const timer = heap_.front();
  Remove(timer);
  return timer;
}

std::optional<TimerQueue::TimePoint> TimerQueue::NextDeadline() const {
  if (heap_.empty()) return std::nullopt;
  return heap_.front()->deadline;
}

bool TimerQueue::Before(const Operation* a, const Operation* b) {
  if (a->deadline != b->deadline) return a->deadline < b->deadline;
  return a->sequence < b->sequence;
}

void TimerQueue::Place(size_t index, Operation* timer) {
  heap_[index] = timer;
  timer->heap_index = index;
}

void TimerQueue::SiftUp(size_t index) {
  Operation* const timer = heap_[index];
  while (index > 0) {
    const size_t parent = (index - 1) / 2;
    if (!Before(timer, heap_[parent])) break;
    Place(index, heap_[parent]);
    index = parent;
  }
  Place(index, timer);
}

void TimerQueue::SiftDown(size_t index) {
  Operation* const timer = heap_[index];
  while (true) {
    size_t child = 2 * index + 1;
    if (child >= heap_.size()) break;
    if (child + 1 < heap_.size() && Before(heap_[child + 1], heap_[child])) {
      ++child;
    }
    if (!Before(heap_[child], timer)) break;
    Place(index, heap_[child]);
    index = child;
  }
  Place(index, timer);
}

}  // namespace catnap::io
