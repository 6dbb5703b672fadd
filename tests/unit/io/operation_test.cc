#include "io/operation.h"

#include <array>
#include <catch2/catch.hpp>
#include <cerrno>
#include <cstdint>
#include <vector>

#include "io/operation_pool.h"

namespace catnap::io {
namespace {

// A read of 4 + 4 + 4 bytes into one array, at offset 100.
struct ThreeSegments {
  ThreeSegments() {
    operation.kind = OperationKind::kRead;
    operation.offset = 100;
    operation.length = bytes.size();
    for (size_t i = 0; i < 3; ++i) {
      operation.many.push_back({bytes.data() + 4 * i, 4});
    }
  }
  std::array<uint8_t, 12> bytes{};
  Operation operation;
};

TEST_CASE("A short transfer goes on where it stopped, inside a segment") {
  ThreeSegments read;
  CHECK_FALSE(read.operation.Progress(6).has_value());
  CHECK(read.operation.next_offset() == 106);
  const auto left = read.operation.segments();
  REQUIRE(left.size() == 2);
  CHECK(left[0].iov_base == &read.bytes[6]);
  CHECK(left[0].iov_len == 2);
  CHECK(left[1].iov_base == &read.bytes[8]);
  CHECK(left[1].iov_len == 4);
  CHECK(read.operation.Progress(6) == 12);
}

TEST_CASE("A short transfer goes on where it stopped, between segments") {
  ThreeSegments read;
  CHECK_FALSE(read.operation.Progress(8).has_value());
  REQUIRE(read.operation.segments().size() == 1);
  CHECK(read.operation.segments()[0].iov_base == &read.bytes[8]);
  CHECK(read.operation.segments()[0].iov_len == 4);
}

TEST_CASE("No more bytes end a read, and are an error of a write") {
  ThreeSegments transfer;
  CHECK_FALSE(transfer.operation.Progress(5).has_value());
  CHECK(transfer.operation.Progress(0) == 5);
  transfer.operation.kind = OperationKind::kWrite;
  CHECK(transfer.operation.Progress(0) == -EIO);
}

TEST_CASE("An interrupted call is repeated unless it was cancelled") {
  ThreeSegments read;
  CHECK_FALSE(read.operation.Progress(-EINTR).has_value());
  read.operation.cancel_requested = true;
  CHECK(read.operation.Progress(-EINTR) == -ECANCELED);
  CHECK(read.operation.Progress(6) == -ECANCELED);  // The rest stays undone.
  CHECK(read.operation.Progress(6) == 12);          // All done is a success.
}

TEST_CASE("An errno value gets the meaning that it has for the operation") {
  Operation operation;
  operation.kind = OperationKind::kWatch;
  operation.fd = 7;
  CHECK(operation.ErrorFor(ECANCELED).code() == absl::StatusCode::kCancelled);
  CHECK_THAT(operation.ErrorFor(ENOSPC).ToString(),
             Catch::Contains("fs.epoll.max_user_watches"));
  operation.kind = OperationKind::kFallocate;
  CHECK_THAT(operation.ErrorFor(ENOSPC).ToString(),
             Catch::Contains("descriptor 7") &&
                 Catch::Contains("file system is full"));
  CHECK(operation.ErrorFor(EAGAIN).code() == absl::StatusCode::kUnavailable);
}

TEST_CASE("The pool finds operations by id until they are re-used") {
  OperationPool pool;
  std::vector<Operation*> all;
  all.reserve(200);
  for (int i = 0; i < 200; ++i) all.push_back(pool.Acquire());
  for (Operation* const operation : all) {
    CHECK(pool.Find({operation->slot, operation->generation}) == operation);
  }
  const OperationId old{all[70]->slot, all[70]->generation};
  ++all[70]->generation;
  CHECK(pool.Find(old) == nullptr);
  pool.Release(all[70]);
  CHECK(pool.Acquire() == all[70]);
  CHECK(pool.Find(old) == nullptr);
  CHECK(pool.Find({.slot = 1u << 31, .generation = 1}) == nullptr);
  CHECK(pool.Find({}) == nullptr);
}

}  // namespace
}  // namespace catnap::io
