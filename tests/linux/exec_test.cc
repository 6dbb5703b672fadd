#include <catch2/catch.hpp>
#include <future>
#include <memory>
#include <string>
#include <utility>

#include "agent/process.h"
#include "linux/agent_guest.h"

namespace catnap::runtime {
namespace {

using agent::ExecRequest;
using agent::ExitKind;
using test::AgentGuest;

TEST_CASE("A program over its memory limit ends alone") {
  AgentGuest guest;
  guest.CopyBusyboxIn();
  ExecRequest request;
  // A buffer of 100 MiB, filled; a child of the shell, so that all of the tree
  // has to go.
  request.argv = {"/tmp/busybox", "sh", "-c",
                  "/tmp/busybox dd if=/dev/zero of=/dev/null bs=100M count=1; "
                  "echo survived"};
  request.memory_limit_bytes = 32 << 20;
  auto outcome = guest.Exec(request);
  INFO(test::ConsoleOf(guest.machine()));
  INFO(outcome.status().ToString());
  REQUIRE(outcome.ok());
  CHECK(outcome->report.text.empty());
  CHECK(outcome->report.kind == ExitKind::kMemoryLimit);
  CHECK(outcome->stdout_data.empty());

  // One that stays below is not concerned, nor is the next one without a limit.
  request.memory_limit_bytes = 200 << 20;
  outcome = guest.Exec(request);
  REQUIRE(outcome.ok());
  CHECK(outcome->report.kind == ExitKind::kExited);
  CHECK(outcome->stdout_data == "survived\n");
  CHECK(guest.Shell("dd if=/dev/zero of=/dev/null bs=100M count=1 2>/dev/null;"
                    "echo survived") == "survived\n");
  CHECK(guest.Ping().ok());
}

TEST_CASE("A timeout ends the whole tree, daemons too") {
  AgentGuest guest;
  guest.CopyBusyboxIn();
  ExecRequest request;
  request.argv = {"/tmp/busybox", "sh", "-c",
                  "setsid sleep 1001 & (sleep 1002 &) ; sleep 1003"};
  request.env = {"PATH=/tmp/bin"};
  request.timeout_ms = 500;
  const auto outcome = guest.Exec(request);
  REQUIRE(outcome.ok());
  CHECK(outcome->report.kind == ExitKind::kTimeout);
  // The others end at their own pace, which is soon.
  CHECK(guest.Shell("for i in 1 2 3 4 5 6 7 8 9 10; do "
                    "ps | grep -q '[s]leep 100' || { echo gone; exit; }; "
                    "sleep 0.1; done; ps") == "gone\n");
}

TEST_CASE("A program gets the user, environment and folder that were asked") {
  AgentGuest guest;
  guest.CopyBusyboxIn();
  CHECK(guest
            .Shell("mkdir -p /etc /tmp/work && "
                   "echo 'app:x:1000:1001::/home/app:/bin/sh' >/etc/passwd && "
                   "printf 'app:x:1001:\\nextra:x:77:app\\n' >/etc/group")
            .empty());
  const std::string show = "id -u; id -g; id -G; echo $HOME; pwd; echo $MORE";
  CHECK(guest.Shell(show, {.env = {"MORE=a b"}, .cwd = "/tmp/work"}) ==
        "0\n0\n0\n/root\n/tmp/work\na b\n");
  CHECK(guest.Shell(show, {.user = "app"}) ==
        "1000\n1001\n1001 77\n/home/app\n/\n\n");
  CHECK(guest.Shell(show, {.env = {"HOME=/h"}, .user = "5:extra"}) ==
        "5\n77\n77\n/h\n/\n\n");
  CHECK(guest.Shell(show, {.user = "nobody"}) == "user nobody is not known");
  // No rights stay with a user who has none.
  CHECK(guest.Shell("grep CapEff /proc/self/status; cat /etc/shadow",
                    {.user = "app"}) ==
        "CapEff:\t0000000000000000\n"
        "cat: can't open '/etc/shadow': No such file or directory\n");
  CHECK_THAT(guest.Shell("echo x", {.cwd = "/no/such/folder"}),
             Catch::Contains("working directory"));
}

TEST_CASE("The application has a container's rights, an exec the guest's") {
  AgentGuest guest;
  guest.CopyBusyboxIn();
  const std::string show = "grep CapBnd /proc/self/status";
  CHECK(guest.Shell(show, {.application = true}) ==
        "CapBnd:\t00000000a80425fb\n");
  // All that this kernel has, but what could end or take over the agent.
  CHECK(guest.Shell(show) == "CapBnd:\t000001ffffb4ffff\n");
  CHECK(guest.Shell(show, {.capabilities = ~uint64_t{0}}) ==
        "CapBnd:\t000001ffffb4ffff\n");
  // Its group is its own.
  CHECK(guest.Shell("cat /proc/self/cgroup", {.application = true}) !=
        guest.Shell("cat /proc/$PPID/cgroup"));
}

TEST_CASE("A terminal has the size that was asked, and takes another") {
  AgentGuest guest;
  guest.CopyBusyboxIn();
  std::string shown;
  std::promise<void> first, second;
  agent::ProcessEvents events;
  std::promise<agent::ExitReport> ended;
  events.on_output = [&](uint8_t channel, std::span<const uint8_t> data) {
    const bool one = shown.find('\n') == std::string::npos;
    if (channel == agent::kStdout) shown.append(data.begin(), data.end());
    if (one && shown.find('\n') != std::string::npos) first.set_value();
    return data.size();
  };
  events.on_exit = [&](const absl::StatusOr<agent::ExitReport>& report) {
    ended.set_value(report.value_or(agent::ExitReport{}));
  };
  ExecRequest request;
  request.argv = {"/tmp/busybox", "sh", "-c",
                  "stty size; trap 'stty size; tty; exit 7' WINCH; "
                  "while :; do sleep 0.05; done"};
  request.env = {"PATH=/tmp/bin"};
  request.stdin_open = true;
  request.pty = agent::WindowSize{.rows = 33, .columns = 101};
  auto process =
      agent::GuestProcess::Start(guest.client(), request, std::move(events));
  REQUIRE(process.ok());
  first.get_future().get();
  CHECK(shown == "33 101\r\n");
  // The trap may not be set yet; the signal's default is to do nothing.
  auto future = ended.get_future();
  for (uint16_t columns = 50; columns < 60; ++columns) {
    (*process)->Resize({.rows = 44, .columns = columns});
    if (future.wait_for(std::chrono::seconds(1)) == std::future_status::ready) {
      break;
    }
  }
  const agent::ExitReport report = future.get();
  CHECK(report.exit_code == 7);
  CHECK_THAT(shown, Catch::Contains("\r\n44 5"));
  CHECK_THAT(shown, Catch::Contains("/dev/pts/0"));
}

}  // namespace
}  // namespace catnap::runtime
