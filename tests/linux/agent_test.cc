#include <catch2/catch.hpp>
#include <chrono>
#include <future>
#include <string>
#include <vector>

#include "agent/process.h"
#include "linux/agent_guest.h"

namespace catnap::runtime {
namespace {

using test::AgentGuest;

TEST_CASE("The agent of a Linux guest runs programs over vsock") {
  AgentGuest guest;
  CHECK(guest.Ping().ok());
  guest.CopyBusyboxIn();

  auto outcome = guest.Exec({"/tmp/busybox", "echo", "hello from the guest"});
  INFO(outcome.status().ToString());
  REQUIRE(outcome.ok());
  CHECK(outcome->report.kind == agent::ExitKind::kExited);
  CHECK(outcome->report.exit_code == 0);
  CHECK(outcome->stdout_data == "hello from the guest\n");

  outcome = guest.Exec({"/tmp/busybox", "sh", "-c", "cat; exit 3"}, "in");
  REQUIRE(outcome.ok());
  CHECK(outcome->report.exit_code == 3);
  CHECK(outcome->stdout_data == "in");

  outcome = guest.Exec({"/no/such/program"});
  REQUIRE(outcome.ok());
  CHECK(outcome->report.kind == agent::ExitKind::kNotStarted);
  CHECK(outcome->report.exit_code == 127);

  // More output than any window holds.
  outcome = guest.Exec({"/tmp/busybox", "sh", "-c",
                        "/tmp/busybox yes 0123456789 | /tmp/busybox head -c "
                        "5000000"});
  REQUIRE(outcome.ok());
  CHECK(outcome->stdout_data.size() == 5'000'000);

  // What the library's deadline ends is killed.
  outcome = guest.Exec(
      {"/tmp/busybox", "sleep", "1000"}, "",
      std::chrono::steady_clock::now() + std::chrono::milliseconds(300));
  CHECK(outcome.status().code() == absl::StatusCode::kDeadlineExceeded);
  outcome = guest.Exec({"/tmp/busybox", "pidof", "busybox"});
  REQUIRE(outcome.ok());
  CHECK_THAT(outcome->stdout_data, !Catch::Contains(" "));  // Itself only.
  CHECK(guest.Ping().ok());
}

TEST_CASE("Many programs run in a guest at once") {
  AgentGuest guest(/*vcpus=*/2);
  guest.CopyBusyboxIn();
  constexpr int kPrograms = 50;
  std::vector<std::promise<absl::StatusOr<agent::ExecOutcome>>> done(kPrograms);
  for (int i = 0; i < kPrograms; ++i) {
    agent::ExecRequest request;
    request.argv = {"/tmp/busybox", "echo", std::to_string(i)};
    const auto at = static_cast<size_t>(i);
    const auto stream =
        agent::Exec(guest.client(), std::move(request), 4096, test::Deadline(),
                    [&done, at](absl::StatusOr<agent::ExecOutcome> result) {
                      done[at].set_value(std::move(result));
                    });
    REQUIRE(stream.ok());
  }
  int right = 0;
  for (int i = 0; i < kPrograms; ++i) {
    const auto outcome = done[static_cast<size_t>(i)].get_future().get();
    if (outcome.ok() && outcome->stdout_data == std::to_string(i) + "\n") {
      ++right;
    }
  }
  CHECK(right == kPrograms);
}

TEST_CASE("Streams to a guest that ends, end") {
  AgentGuest guest;
  guest.CopyBusyboxIn();
  std::promise<absl::StatusOr<agent::ExecOutcome>> done;
  agent::ExecRequest request;
  request.argv = {"/tmp/busybox", "sleep", "1000"};
  const auto stream =
      agent::Exec(guest.client(), std::move(request), 4096, std::nullopt,
                  [&done](absl::StatusOr<agent::ExecOutcome> result) {
                    done.set_value(std::move(result));
                  });
  REQUIRE(stream.ok());
  CHECK(guest.Ping().ok());
  guest.machine().Stop();
  // Nobody answers any more; the caller's deadline says so.
  std::promise<absl::Status> pinged;
  guest.client()->Ping(
      std::chrono::steady_clock::now() + std::chrono::milliseconds(200),
      [&pinged](absl::Status status) { pinged.set_value(std::move(status)); });
  CHECK(pinged.get_future().get().code() == absl::StatusCode::kUnavailable);
  guest.client()->Close(absl::CancelledError("over"));
  CHECK_FALSE(done.get_future().get().ok());
}

}  // namespace
}  // namespace catnap::runtime
