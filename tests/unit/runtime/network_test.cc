#include "catnap/network.h"

#include <fcntl.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <type_traits>
#include <utility>

namespace catnap {
namespace {

bool IsOpen(int fd) { return ::fcntl(fd, F_GETFD) >= 0; }

TEST_CASE("NetworkPolicy says what it was made as") {
  CHECK(NetworkPolicy().mode() == NetworkPolicy::Mode::kDenyAll);
  CHECK(NetworkPolicy() == NetworkPolicy::DenyAll());
  CHECK(NetworkPolicy::PublicInternet().mode() ==
        NetworkPolicy::Mode::kPublicInternet);
  const NetworkPolicy all = Unrestricted();
  CHECK(all.mode() == NetworkPolicy::Mode::kUnrestricted);
  const NetworkPolicy some =
      NetworkPolicy::Allow({{.to = "example.org", .ports = {{443, 443}}},
                            {.to = "10.0.0.0/8", .protocol = Protocol::kAny}});
  CHECK(some.mode() == NetworkPolicy::Mode::kAllow);
  REQUIRE(some.rules().size() == 2);
  CHECK(some.rules()[0].protocol == Protocol::kTcp);
  CHECK(some.rules()[0].ports == std::vector<PortRange>{{443, 443}});
  CHECK(some != all);
}

TEST_CASE("Everything cannot be given without its tag") {
  STATIC_REQUIRE(std::is_convertible_v<Unrestricted, NetworkPolicy>);
  struct Taker {
    NetworkPolicy policy;
  };
  // {} is no Unrestricted: its constructor is explicit.
  STATIC_REQUIRE_FALSE(std::is_convertible_v<int, NetworkPolicy>);
  CHECK(Taker{.policy = {}}.policy == NetworkPolicy::DenyAll());
}

TEST_CASE("UniqueFd closes what it owns, once") {
  const int first = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  const int second = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  REQUIRE(first >= 0);
  REQUIRE(second >= 0);
  {
    UniqueFd fd(first);
    CHECK(fd.get() == first);
    fd = UniqueFd(second);
    CHECK_FALSE(IsOpen(first));
    CHECK(fd.get() == second);
    UniqueFd& self = fd;
    fd = std::move(self);
    CHECK(IsOpen(second));
    UniqueFd taken(std::move(fd));
    CHECK(taken.get() == second);
    CHECK(taken.Release() == second);
    CHECK_FALSE(taken.valid());
  }
  CHECK(IsOpen(second));
  ::close(second);
}

}  // namespace
}  // namespace catnap
