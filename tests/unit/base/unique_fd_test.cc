#include "base/unique_fd.h"

#include <fcntl.h>

#include <catch2/catch.hpp>

namespace catnap::base {
namespace {

TEST_CASE("UniqueFd closes what it owns, once") {
  int number = -1;
  {
    auto fd = CreateEventFd();
    REQUIRE(fd.ok());
    number = fd->get();
    const UniqueFd moved = *std::move(fd);
    CHECK(::fcntl(number, F_GETFD) == FD_CLOEXEC);
  }
  CHECK(::fcntl(number, F_GETFD) == -1);
}

TEST_CASE("An eventfd stays signalled until it is drained") {
  auto fd = CreateEventFd();
  REQUIRE(fd.ok());
  CHECK_FALSE(DrainEventFd(fd->get()));
  SignalEventFd(fd->get());
  SignalEventFd(fd->get());
  CHECK(DrainEventFd(fd->get()));
  CHECK_FALSE(DrainEventFd(fd->get()));
}

TEST_CASE("CreateMemFd makes a file of the size asked for, close-on-exec") {
  auto fd = CreateMemFd("test", 12345);
  REQUIRE(fd.ok());
  CHECK(::lseek(fd->get(), 0, SEEK_END) == 12345);
  CHECK(::fcntl(fd->get(), F_GETFD) == FD_CLOEXEC);
}

}  // namespace
}  // namespace catnap::base
