#include "io/ring.h"

#include <fcntl.h>

#include <catch2/catch.hpp>
#include <set>

namespace catnap::io {
namespace {

// These need a kernel that offers io_uring; the tag lets a run under
// refuse_io_uring leave them out.

TEST_CASE("A ring is close-on-exec and names its mode", "[io_uring]") {
  const auto ring = Ring::Create(8);
  REQUIRE(ring.ok());
  CHECK(::fcntl((*ring)->fd(), F_GETFD) == FD_CLOEXEC);
  CHECK_THAT((*ring)->Description(), Catch::Contains("io_uring"));
}

TEST_CASE("A ring completes more operations than its queue holds",
          "[io_uring]") {
  const auto ring = Ring::Create(4);
  REQUIRE(ring.ok());
  static constexpr uint64_t kOperations = 1000;
  std::multiset<uint64_t> completed;
  uint64_t prepared = 0;
  while (completed.size() < kOperations) {
    while (prepared < kOperations) {
      io_uring_sqe* sqe = (*ring)->GetSqe();
      if (sqe == nullptr) break;
      io_uring_prep_nop(sqe);
      sqe->user_data = prepared++;
    }
    (*ring)->Wait(std::nullopt);
    (*ring)->Reap([&completed](uint64_t user_data, int32_t result, uint32_t) {
      CHECK(result == 0);
      completed.insert(user_data);
    });
  }
  const std::set<uint64_t> distinct(completed.begin(), completed.end());
  CHECK(completed.size() == kOperations);
  CHECK(distinct.size() == kOperations);
}

TEST_CASE("Waiting with a timeout returns without a completion", "[io_uring]") {
  const auto ring = Ring::Create(4);
  REQUIRE(ring.ok());
  int completions = 0;
  const auto count = [&completions](uint64_t, int32_t, uint32_t) {
    ++completions;
  };
  (*ring)->Wait(std::chrono::nanoseconds(0));
  (*ring)->Reap(count);
  (*ring)->Wait(std::chrono::microseconds(1));
  (*ring)->Reap(count);
  CHECK(completions == 0);
}

TEST_CASE("A ring of no entries or too many is refused by name") {
  const unsigned entries = GENERATE(0u, Ring::kMaxEntries + 1);
  const auto ring = Ring::Create(entries);
  CHECK(ring.status().code() == absl::StatusCode::kInvalidArgument);
  CHECK_THAT(
      ring.status().ToString(),
      Catch::Contains(std::to_string(entries)) && Catch::Contains("4096"));
}

}  // namespace
}  // namespace catnap::io
