#ifndef CATNAP_LIB_DISK_IN_FLIGHT_H_
#define CATNAP_LIB_DISK_IN_FLIGHT_H_

#include <cstdint>
#include <deque>
#include <set>
#include <utility>
#include <vector>

#include "disk/block_io.h"

namespace catnap::disk {

// Counts requests in flight, so that those who wait for the ones before them
// are told. Thread-compatible.
class InFlight {
 public:
  // Returns the request's number, for End().
  uint64_t Begin() {
    const uint64_t number = next_++;
    open_.insert(number);
    return number;
  }
  // Returns what to call now, without a lock: those who waited for the last
  // request of their time.
  [[nodiscard]] std::vector<DrainCompletion> End(uint64_t number) {
    open_.erase(number);
    return TakeReady();
  }
  [[nodiscard]] std::vector<DrainCompletion> Wait(DrainCompletion done) {
    waiters_.emplace_back(next_, std::move(done));
    return TakeReady();
  }

 private:
  std::vector<DrainCompletion> TakeReady() {
    std::vector<DrainCompletion> ready;
    const uint64_t oldest = open_.empty() ? next_ : *open_.begin();
    while (!waiters_.empty() && waiters_.front().first <= oldest) {
      ready.push_back(std::move(waiters_.front().second));
      waiters_.pop_front();
    }
    return ready;
  }

  uint64_t next_ = 0;
  std::set<uint64_t> open_;
  // Who waits for all requests below a number.
  std::deque<std::pair<uint64_t, DrainCompletion>> waiters_;
};

}  // namespace catnap::disk

#endif  // CATNAP_LIB_DISK_IN_FLIGHT_H_
