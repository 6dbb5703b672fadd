#include "base/thread.h"

#include <catch2/catch.hpp>
#include <csignal>

namespace catnap::base {
namespace {

TEST_CASE("A library thread starts with every blockable signal blocked") {
  sigset_t seen{};
  auto thread = Thread::Start(
      "mask", [&seen] { pthread_sigmask(SIG_SETMASK, nullptr, &seen); });
  REQUIRE(thread.ok());
  thread->Join();
  CHECK(sigismember(&seen, SIGINT) == 1);
  CHECK(sigismember(&seen, SIGTERM) == 1);
  CHECK(sigismember(&seen, SIGRTMIN) == 1);
}

TEST_CASE("Starting a thread leaves the caller's signal mask as it was") {
  sigset_t before{};
  sigset_t after{};
  pthread_sigmask(SIG_SETMASK, nullptr, &before);
  auto thread = Thread::Start("mask", [] {});
  REQUIRE(thread.ok());
  pthread_sigmask(SIG_SETMASK, nullptr, &after);
  CHECK(sigismember(&before, SIGTERM) == sigismember(&after, SIGTERM));
  CHECK(sigismember(&before, SIGUSR1) == sigismember(&after, SIGUSR1));
}

TEST_CASE("Join is idempotent") {
  int ran = 0;
  auto thread = Thread::Start("once", [&ran] { ++ran; });
  REQUIRE(thread.ok());
  thread->Join();
  thread->Join();
  CHECK(ran == 1);
  CHECK_FALSE(thread->joinable());
}

}  // namespace
}  // namespace catnap::base
