#ifndef CATNAP_LIB_RUNTIME_TRAFFIC_H_
#define CATNAP_LIB_RUNTIME_TRAFFIC_H_

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <utility>

#include "base/clock.h"

namespace catnap::runtime {

// What the connections of one guest carried, and when something last moved,
// which idle detection asks. Thread-safe; no lock.
class Traffic {
 public:
  using Time = std::chrono::steady_clock::time_point;

  // Before anything moves, the last activity is now. `clock` must outlive this.
  // `on_use` is called for what wants the guest while it sleeps or falls
  // asleep, on the thread that brought it: it must not block.
  explicit Traffic(base::Clock* clock, std::function<void()> on_use = nullptr)
      : clock_(clock), on_use_(std::move(on_use)) {
    OnActivity();
  }
  Traffic(const Traffic&) = delete;
  Traffic& operator=(const Traffic&) = delete;

  void OnBytesToGuest(uint64_t bytes) {
    to_guest_bytes_.fetch_add(bytes, std::memory_order_relaxed);
    OnActivity();
  }
  void OnBytesFromGuest(uint64_t bytes) {
    from_guest_bytes_.fetch_add(bytes, std::memory_order_relaxed);
    // What a guest sent before it fell asleep does not wake it.
    last_.store(clock_->Now().time_since_epoch());
  }
  // A connection began, or asks for the guest.
  void OnActivity() {
    last_.store(clock_->Now().time_since_epoch());
    // Either this sees the flag, or who set it sees the time.
    if (asleep_.load() && on_use_ != nullptr) on_use_();
  }

  // Whether uses are to be told.
  void SetAsleep(bool asleep) { asleep_.store(asleep); }

  uint64_t to_guest_bytes() const {
    return to_guest_bytes_.load(std::memory_order_relaxed);
  }
  uint64_t from_guest_bytes() const {
    return from_guest_bytes_.load(std::memory_order_relaxed);
  }
  Time last_activity() const { return Time(last_.load()); }

 private:
  base::Clock* const clock_;  // Not owned.
  const std::function<void()> on_use_;
  std::atomic<uint64_t> to_guest_bytes_{0};
  std::atomic<uint64_t> from_guest_bytes_{0};
  std::atomic<bool> asleep_{false};
  std::atomic<Time::duration> last_{};
};

}  // namespace catnap::runtime

#endif  // CATNAP_LIB_RUNTIME_TRAFFIC_H_
