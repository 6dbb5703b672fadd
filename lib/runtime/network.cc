#include "catnap/network.h"

#include <unistd.h>

#include <utility>

namespace catnap {

NetworkPolicy NetworkPolicy::Allow(std::vector<NetworkRule> rules) {
  NetworkPolicy policy;
  policy.mode_ = Mode::kAllow;
  policy.rules_ = std::move(rules);
  return policy;
}

NetworkPolicy NetworkPolicy::PublicInternet() {
  NetworkPolicy policy;
  policy.mode_ = Mode::kPublicInternet;
  return policy;
}

UniqueFd& UniqueFd::operator=(UniqueFd&& other) noexcept {
  // The old descriptor is closed by what the temporary leaves behind.
  UniqueFd taken(std::move(other));
  std::swap(fd_, taken.fd_);
  return *this;
}

UniqueFd::~UniqueFd() {
  // No second try after an error: on Linux the number is free in any case.
  if (fd_ >= 0) ::close(fd_);
}

}  // namespace catnap
