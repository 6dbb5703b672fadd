#ifndef CATNAP_LIB_RUNTIME_TRAFFIC_H_
#define CATNAP_LIB_RUNTIME_TRAFFIC_H_

#include <atomic>
#include <chrono>
#include <cstdint>

#include "base/clock.h"

namespace catnap::runtime {

// What the connections of one guest carried, and when something last moved,
// which idle detection asks. Thread-safe; no lock.
class Traffic {
 public:
  using Time = std::chrono::steady_clock::time_point;

  // Before anything moves, the last activity is now. `clock` must outlive this.
  explicit Traffic(base::Clock* clock) : clock_(clock) { OnActivity(); }
  Traffic(const Traffic&) = delete;
  Traffic& operator=(const Traffic&) = delete;

  // The counters say nothing about other memory, so none of this needs order.
  void OnBytesToGuest(uint64_t bytes) {
    to_guest_bytes_.fetch_add(bytes, std::memory_order_relaxed);
    OnActivity();
  }
  void OnBytesFromGuest(uint64_t bytes) {
    from_guest_bytes_.fetch_add(bytes, std::memory_order_relaxed);
    OnActivity();
  }
  // A connection began, or asks for the guest.
  void OnActivity() {
    last_.store(clock_->Now().time_since_epoch(), std::memory_order_relaxed);
  }

  uint64_t to_guest_bytes() const {
    return to_guest_bytes_.load(std::memory_order_relaxed);
  }
  uint64_t from_guest_bytes() const {
    return from_guest_bytes_.load(std::memory_order_relaxed);
  }
  Time last_activity() const {
    return Time(last_.load(std::memory_order_relaxed));
  }

 private:
  base::Clock* const clock_;  // Not owned.
  std::atomic<uint64_t> to_guest_bytes_{0};
  std::atomic<uint64_t> from_guest_bytes_{0};
  std::atomic<Time::duration> last_{};
};

}  // namespace catnap::runtime

#endif  // CATNAP_LIB_RUNTIME_TRAFFIC_H_
