#ifndef CATNAP_TESTS_SUPPORT_LOWERED_LIMIT_H_
#define CATNAP_TESTS_SUPPORT_LOWERED_LIMIT_H_

#include <sys/resource.h>

#include <catch2/catch.hpp>

namespace catnap::test {

// Lowers a limit of this process while it lives.
class LoweredLimit {
 public:
  LoweredLimit(decltype(RLIMIT_NOFILE) resource, rlim_t value)
      : resource_(resource) {
    REQUIRE(::getrlimit(resource_, &before_) == 0);
    rlimit lowered = before_;
    lowered.rlim_cur = value;
    REQUIRE(::setrlimit(resource_, &lowered) == 0);
  }
  ~LoweredLimit() { ::setrlimit(resource_, &before_); }
  LoweredLimit(const LoweredLimit&) = delete;
  LoweredLimit& operator=(const LoweredLimit&) = delete;

 private:
  const decltype(RLIMIT_NOFILE) resource_;
  rlimit before_{};
};

}  // namespace catnap::test

#endif  // CATNAP_TESTS_SUPPORT_LOWERED_LIMIT_H_
