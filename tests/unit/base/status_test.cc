#include "base/status.h"

#include <catch2/catch.hpp>

namespace catnap {
namespace {

TEST_CASE("ReasonOf returns what WithReason put in") {
  const absl::Status status = WithReason(
      absl::FailedPreconditionError("no device"), ErrorReason::kNoKvmDevice);
  CHECK(ReasonOf(status) == ErrorReason::kNoKvmDevice);
  CHECK(ReasonOf(absl::OkStatus()) == ErrorReason::kNone);
  CHECK(ReasonOf(absl::InternalError("x")) == ErrorReason::kNone);
}

TEST_CASE("ReasonOf does not trust a payload that is not a reason") {
  const char* text = GENERATE("", "x", "-1", "1000", "99999999999999999999");
  absl::Status status = absl::InternalError("x");
  status.SetPayload("catnap.dev/error-reason", absl::Cord(text));
  CHECK(ReasonOf(status) == ErrorReason::kNone);
}

TEST_CASE("AddContext keeps code and reason") {
  const absl::Status status =
      AddContext(WithReason(absl::UnavailableError("gone"),
                            ErrorReason::kAgentUnresponsive),
                 "exec in vm7");
  CHECK(status.code() == absl::StatusCode::kUnavailable);
  CHECK(status.message() == "exec in vm7: gone");
  CHECK(ReasonOf(status) == ErrorReason::kAgentUnresponsive);
}

TEST_CASE("ErrnoError names the limit that was hit") {
  const auto [error, limit] = GENERATE(table<int, const char*>({
      {EMFILE, "RLIMIT_NOFILE"},
      {ENFILE, "fs.file-max"},
      {ENOMEM, "vm.max_map_count"},
      {EAGAIN, "RLIMIT_NPROC"},
      {EFBIG, "RLIMIT_FSIZE"},
      {ENOSPC, "file system is full"},
      {EDQUOT, "quota"},
  }));
  const absl::Status status = ErrnoError(error, "open {}", "thing");
  CHECK(status.code() == absl::StatusCode::kResourceExhausted);
  CHECK_THAT(status.ToString(), Catch::Contains("open thing"));
  CHECK_THAT(status.ToString(), Catch::Contains(limit));
}

TEST_CASE("ErrnoError maps other errors by their meaning") {
  CHECK(ErrnoError(EACCES, "open").code() ==
        absl::StatusCode::kPermissionDenied);
  CHECK(ErrnoError(ENOENT, "open").code() == absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace catnap
