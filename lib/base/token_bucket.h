#ifndef CATNAP_LIB_BASE_TOKEN_BUCKET_H_
#define CATNAP_LIB_BASE_TOKEN_BUCKET_H_

#include <algorithm>
#include <chrono>

namespace catnap::base {

// Bounds a rate: `burst` at once, `per_second` in the long run. Starts full.
// Thread-compatible.
class TokenBucket {
 public:
  TokenBucket(double per_second, double burst)
      : per_second_(per_second), burst_(burst), tokens_(burst) {}

  // Whether `count` tokens are there at `now`. A `now` before the last one
  // counts as the last one.
  bool Has(double count, std::chrono::steady_clock::time_point now) {
    if (now > last_) {
      const std::chrono::duration<double> passed = now - last_;
      tokens_ = std::min(burst_, tokens_ + passed.count() * per_second_);
      last_ = now;
    }
    return tokens_ >= count;
  }

  // What is taken beyond what is there is owed: Has() is false until it came
  // back.
  void Take(double count) { tokens_ -= count; }

 private:
  double per_second_;
  double burst_;
  double tokens_;
  std::chrono::steady_clock::time_point last_{};
};

}  // namespace catnap::base

#endif  // CATNAP_LIB_BASE_TOKEN_BUCKET_H_
