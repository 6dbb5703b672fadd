#ifndef CATNAP_LIB_BASE_CLOCK_H_
#define CATNAP_LIB_BASE_CLOCK_H_

#include <chrono>

namespace catnap::base {

// Time as the library sees it; tests bring their own. Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual std::chrono::steady_clock::time_point Now() = 0;
  virtual std::chrono::system_clock::time_point WallNow() = 0;
};

class SystemClock final : public Clock {
 public:
  std::chrono::steady_clock::time_point Now() override {
    return std::chrono::steady_clock::now();
  }
  std::chrono::system_clock::time_point WallNow() override {
    return std::chrono::system_clock::now();
  }
};

}  // namespace catnap::base

#endif  // CATNAP_LIB_BASE_CLOCK_H_
