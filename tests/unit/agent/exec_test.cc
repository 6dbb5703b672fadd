#include <catch2/catch.hpp>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <future>
#include <string>
#include <thread>
#include <vector>

#include "agent/process.h"
#include "support/running_agent.h"
#include "support/temporary_directory.h"

namespace catnap::agent {
namespace {

using testing::RunningAgent;
using namespace std::chrono_literals;

ExecRequest Shell(const std::string& script) {
  ExecRequest request;
  request.argv = {"sh", "-c", script};
  return request;
}

std::span<const uint8_t> AsBytes(std::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

// Whether a process with this number lives; one that was killed is reaped by
// the agent in a moment.
bool IsGone(int pid) {
  for (int i = 0; i < 200; ++i) {
    if (::kill(pid, 0) != 0) return true;
    std::this_thread::sleep_for(10ms);
  }
  return false;
}

TEST_CASE("Exec reports how a process ended and what it wrote") {
  RunningAgent agent(CATNAP_GUEST_AGENT);
  const auto [script, code, signal, out, err] = GENERATE(
      table<std::string, uint32_t, uint32_t, std::string, std::string>({
          {"true", 0, 0, "", ""},
          {"exit 7", 7, 0, "", ""},
          {"echo out; echo err >&2; exit 255", 255, 0, "out\n", "err\n"},
          {"kill -9 $$", 0, 9, "", ""},
          {"kill -SEGV $$", 0, 11, "", ""},
      }));
  CAPTURE(script);
  const auto outcome = agent.Exec(Shell(script));
  REQUIRE(outcome.ok());
  CHECK(outcome->report.kind ==
        (signal == 0 ? ExitKind::kExited : ExitKind::kSignaled));
  CHECK(outcome->report.exit_code == code);
  CHECK(outcome->report.signal == signal);
  CHECK(outcome->stdout_data == out);
  CHECK(outcome->stderr_data == err);
  CHECK(outcome->report.wall_ns > 0);
  CHECK(outcome->report.max_rss_bytes > 0);
}

TEST_CASE("A stop token ends a call and kills the program") {
  RunningAgent agent(CATNAP_GUEST_AGENT);
  const bool before = GENERATE(true, false);
  std::stop_source stop;
  if (before) stop.request_stop();
  std::promise<absl::StatusOr<ExecOutcome>> done;
  const auto stream = Exec(agent.client(), Shell("sleep 1000"), 4096,
                           {std::nullopt, stop.get_token()},
                           [&done](absl::StatusOr<ExecOutcome> outcome) {
                             done.set_value(std::move(outcome));
                           });
  REQUIRE(stream.ok());
  stop.request_stop();
  const auto outcome = done.get_future().get();
  CHECK(outcome.status().code() == absl::StatusCode::kCancelled);
  // The connection goes on.
  CHECK(agent.Exec(Shell("true")).ok());
}

TEST_CASE("What cannot be started says 127 or 126 and why") {
  RunningAgent agent(CATNAP_GUEST_AGENT);
  const auto [program, code] = GENERATE(table<std::string, uint32_t>({
      {"no-such-program", 127},
      {"/no/such/program", 127},
      {"/etc/passwd", 126},
      {"/tmp", 126},
      {"", 127},
  }));
  CAPTURE(program);
  ExecRequest request;
  request.argv = {program};
  const auto outcome = agent.Exec(request);
  REQUIRE(outcome.ok());
  CHECK(outcome->report.kind == ExitKind::kNotStarted);
  CHECK(outcome->report.exit_code == code);
  CHECK_FALSE(outcome->report.text.empty());
}

TEST_CASE("A process gets its environment, directory and standard input") {
  RunningAgent agent(CATNAP_GUEST_AGENT);
  ExecRequest request = Shell("pwd; echo $A; echo $HOME; cat");
  request.env = {"A=first", "A=b c", "HOME=/elsewhere"};
  request.cwd = "/usr";
  request.stdin_data = "input";
  const auto outcome = agent.Exec(request);
  REQUIRE(outcome.ok());
  CHECK(outcome->stdout_data == "/usr\nb c\n/elsewhere\ninput");
}

TEST_CASE("A process runs as its user, with no more than it may keep") {
  if (::geteuid() != 0) {
    WARN("needs root");
    return;
  }
  RunningAgent agent(CATNAP_GUEST_AGENT);
  ExecRequest request = Shell("id -u; id -g; grep CapBnd /proc/self/status");
  request.user = "65000:65001";
  request.capabilities = 1;
  const auto outcome = agent.Exec(request);
  REQUIRE(outcome.ok());
  CHECK(outcome->stdout_data == "65000\n65001\nCapBnd:\t0000000000000001\n");
  request.user = "no-such-user";
  const auto unknown = agent.Exec(request);
  REQUIRE(unknown.ok());
  CHECK(unknown->report.kind == ExitKind::kNotStarted);
}

TEST_CASE("Without standard input a process reads its end") {
  RunningAgent agent(CATNAP_GUEST_AGENT);
  const auto outcome = agent.Exec(Shell("cat; echo done"));
  REQUIRE(outcome.ok());
  CHECK(outcome->stdout_data == "done\n");
}

TEST_CASE("Several megabytes go in and come out again") {
  RunningAgent agent(CATNAP_GUEST_AGENT);
  ExecRequest request;
  request.argv = {"cat"};
  for (int i = 0; i < 500'000; ++i) {
    request.stdin_data += std::to_string(i) + "\n";
  }
  const auto outcome = agent.Exec(request, 16 << 20);
  REQUIRE(outcome.ok());
  CHECK(outcome->stdout_data == request.stdin_data);
  CHECK_FALSE(outcome->report.truncated);
}

TEST_CASE("Output beyond the limit is drained and the report says so") {
  RunningAgent agent(CATNAP_GUEST_AGENT);
  const auto outcome =
      agent.Exec(Shell("head -c 3000000 /dev/zero; exit 3"), 100'000);
  REQUIRE(outcome.ok());
  CHECK(outcome->report.exit_code == 3);
  CHECK(outcome->report.truncated);
  CHECK(outcome->stdout_data.size() == 100'000);
}

TEST_CASE("A slow reader holds a process up, and loses nothing") {
  RunningAgent agent(CATNAP_GUEST_AGENT);
  size_t received = 0;
  std::promise<absl::StatusOr<ExitReport>> done;
  std::atomic<size_t> unused{0};
  ProcessEvents events;
  events.on_output = [&](uint8_t, std::span<const uint8_t> data) -> size_t {
    received += data.size();
    unused += data.size();
    return 0;
  };
  events.on_exit = [&](absl::StatusOr<ExitReport> report) {
    done.set_value(std::move(report));
  };
  auto process = GuestProcess::Start(
      agent.client(), Shell("head -c 1000000 /dev/zero"), std::move(events));
  REQUIRE(process.ok());
  auto result = done.get_future();
  std::this_thread::sleep_for(200ms);
  CHECK(unused == kInitialCredit);
  while (result.wait_for(1ms) != std::future_status::ready) {
    (*process)->Consume(kStdout, unused.exchange(0));
  }
  const auto report = result.get();
  REQUIRE(report.ok());
  CHECK(report->exit_code == 0);
  CHECK(received == 1'000'000);
}

TEST_CASE("A timeout kills the whole tree") {
  RunningAgent agent(CATNAP_GUEST_AGENT);
  ExecRequest request =
      Shell("sleep 1000 & echo $!; setsid sleep 1000 & echo $!; wait");
  request.timeout_ms = 200;
  const auto outcome = agent.Exec(request);
  REQUIRE(outcome.ok());
  CHECK(outcome->report.kind == ExitKind::kTimeout);
  int first = 0;
  int second = 0;
  REQUIRE(std::sscanf(outcome->stdout_data.c_str(), "%d %d", &first, &second) ==
          2);
  CHECK(IsGone(first));
  // Without a cgroup nothing finds the one that left the session.
  const bool found = IsGone(second);
  if (!testing::WritableCgroup().empty()) CHECK(found);
  ::kill(second, SIGKILL);
}

TEST_CASE("A child that lives on neither delays the report nor is ended") {
  RunningAgent agent(CATNAP_GUEST_AGENT);
  const test::TemporaryDirectory dir;
  const auto outcome =
      agent.Exec(Shell("(sleep 0.3; echo late; echo late; touch " +
                       dir.File("end") + ") & echo now; exit 4"));
  REQUIRE(outcome.ok());
  CHECK(outcome->report.exit_code == 4);
  CHECK(outcome->stdout_data == "now\n");
  CHECK(outcome->report.wall_ns < 250'000'000);
  bool ended = false;
  for (int i = 0; i < 500 && !ended; ++i) {
    std::this_thread::sleep_for(10ms);
    ended = std::filesystem::exists(dir.File("end"));
  }
  CHECK(ended);
}

TEST_CASE("Cancelling kills the process") {
  RunningAgent agent(CATNAP_GUEST_AGENT);
  std::promise<int> pid;
  std::promise<absl::StatusOr<ExitReport>> done;
  ProcessEvents events;
  events.on_started = [&](const Started& s) { pid.set_value(s.guest_pid); };
  events.on_exit = [&](absl::StatusOr<ExitReport> report) {
    done.set_value(std::move(report));
  };
  ExecRequest request;
  request.argv = {"sleep", "1000"};
  request.report_start = true;
  auto process =
      GuestProcess::Start(agent.client(), request, std::move(events));
  REQUIRE(process.ok());
  const int guest_pid = pid.get_future().get();
  (*process)->Kill();
  CHECK(done.get_future().get().status().code() ==
        absl::StatusCode::kCancelled);
  CHECK(IsGone(guest_pid));
}

TEST_CASE("A terminal has a size, changes it, and takes keys") {
  RunningAgent agent(CATNAP_GUEST_AGENT);
  base::Mutex mutex;
  std::string output;
  const auto contains = [&](const char* text) {
    for (int i = 0; i < 500; ++i) {
      {
        base::MutexLock lock(&mutex);
        if (output.find(text) != std::string::npos) return true;
      }
      std::this_thread::sleep_for(10ms);
    }
    return false;
  };
  std::promise<absl::StatusOr<ExitReport>> done;
  ProcessEvents events;
  events.on_output = [&](uint8_t channel, std::span<const uint8_t> data) {
    base::MutexLock lock(&mutex);
    if (channel == kStdout) output.append(data.begin(), data.end());
    return data.size();
  };
  events.on_exit = [&](absl::StatusOr<ExitReport> report) {
    done.set_value(std::move(report));
  };
  ExecRequest request =
      Shell("tty >/dev/null && stty size; read x; stty size; echo got $x");
  request.pty = WindowSize{.rows = 33, .columns = 101};
  request.stdin_open = true;
  auto process =
      GuestProcess::Start(agent.client(), request, std::move(events));
  REQUIRE(process.ok());
  CHECK(contains("33 101"));
  (*process)->Resize({.rows = 44, .columns = 55});
  CHECK((*process)->Write(AsBytes("key\n"), false).ok());
  const auto report = done.get_future().get();
  REQUIRE(report.ok());
  CHECK(report->exit_code == 0);
  CHECK(contains("44 55"));
  CHECK(contains("got key"));
}

TEST_CASE("Signals reach the process") {
  RunningAgent agent(CATNAP_GUEST_AGENT);
  std::promise<void> ready;
  std::promise<absl::StatusOr<ExitReport>> done;
  ProcessEvents events;
  events.on_output = [&](uint8_t, std::span<const uint8_t> data) {
    ready.set_value();
    return data.size();
  };
  events.on_exit = [&](absl::StatusOr<ExitReport> report) {
    done.set_value(std::move(report));
  };
  auto process = GuestProcess::Start(
      agent.client(),
      Shell("trap 'exit 9' USR1; echo; while :; do sleep 0.01; done"),
      std::move(events));
  REQUIRE(process.ok());
  ready.get_future().get();
  (*process)->Signal(SIGUSR1);
  const auto report = done.get_future().get();
  REQUIRE(report.ok());
  CHECK(report->exit_code == 9);
}

TEST_CASE("Two hundred processes at once") {
  RunningAgent agent(CATNAP_GUEST_AGENT);
  constexpr int kCount = 200;
  std::vector<std::promise<absl::StatusOr<ExecOutcome>>> done(kCount);
  for (int i = 0; i < kCount; ++i) {
    ExecRequest request = Shell("cat; exit " + std::to_string(i));
    request.stdin_data = std::to_string(i);
    const auto stream =
        Exec(agent.client(), request, 1000, std::nullopt,
             [&done, i](absl::StatusOr<ExecOutcome> outcome) {
               done[static_cast<size_t>(i)].set_value(std::move(outcome));
             });
    REQUIRE(stream.ok());
  }
  for (int i = 0; i < kCount; ++i) {
    const auto outcome = done[static_cast<size_t>(i)].get_future().get();
    REQUIRE(outcome.ok());
    CHECK(outcome->report.exit_code == static_cast<uint32_t>(i));
    CHECK(outcome->stdout_data == std::to_string(i));
  }
}

TEST_CASE("A process that was detached is listed and taken up again") {
  RunningAgent agent(CATNAP_GUEST_AGENT);
  std::promise<Started> started;
  ProcessEvents events;
  events.on_started = [&](const Started& s) { started.set_value(s); };
  ExecRequest request = Shell("echo before; sleep 0.3; echo after");
  request.report_start = true;
  auto process =
      GuestProcess::Start(agent.client(), request, std::move(events));
  REQUIRE(process.ok());
  const Started who = started.get_future().get();
  (*process)->Detach();
  std::promise<absl::StatusOr<std::vector<ProcessEntry>>> list;
  REQUIRE(ListProcesses(agent.client(), std::nullopt,
                        [&](absl::StatusOr<std::vector<ProcessEntry>> found) {
                          list.set_value(std::move(found));
                        })
              .ok());
  const auto found = list.get_future().get();
  REQUIRE(found.ok());
  REQUIRE(found->size() == 1);
  CHECK((*found)[0].process_id == who.process_id);
  CHECK((*found)[0].argv[0] == "sh");
  std::string output;
  std::promise<absl::StatusOr<ExitReport>> done;
  ProcessEvents again;
  again.on_output = [&](uint8_t, std::span<const uint8_t> data) {
    output.append(data.begin(), data.end());
    return data.size();
  };
  again.on_exit = [&](absl::StatusOr<ExitReport> report) {
    done.set_value(std::move(report));
  };
  const auto attached =
      GuestProcess::Attach(agent.client(), who.process_id, std::move(again));
  REQUIRE(attached.ok());
  const auto report = done.get_future().get();
  REQUIRE(report.ok());
  CHECK(output.ends_with("after\n"));
}

TEST_CASE("There is one application, which is not started again") {
  RunningAgent agent(CATNAP_GUEST_AGENT);
  ExecRequest request = Shell("read line; echo \"$line\"; exit 5");
  request.application = true;
  request.stdin_open = true;
  std::promise<absl::StatusOr<ExitReport>> done;
  ProcessEvents events;
  events.on_exit = [&done](absl::StatusOr<ExitReport> report) {
    done.set_value(std::move(report));
  };
  const auto first =
      GuestProcess::Start(agent.client(), request, std::move(events));
  REQUIRE(first.ok());

  const auto second = agent.Exec(request);
  REQUIRE(second.ok());
  CHECK(second->report.kind == ExitKind::kNotStarted);
  CHECK(second->report.text == "the application runs already");
  std::promise<std::vector<ProcessEntry>> listed;
  REQUIRE(ListProcesses(
              agent.client(), std::nullopt,
              [&listed](absl::StatusOr<std::vector<ProcessEntry>> entries) {
                listed.set_value(*std::move(entries));
              })
              .ok());
  const auto entries = listed.get_future().get();
  REQUIRE(entries.size() == 1);
  CHECK(entries[0].application);

  REQUIRE((*first)->Write(AsBytes("go\n"), true).ok());
  const auto report = done.get_future().get();
  REQUIRE(report.ok());
  CHECK(report->exit_code == 5);
  const auto third = agent.Exec(Shell("exit 6"));
  REQUIRE(third.ok());
  CHECK(third->report.exit_code == 6);
}

}  // namespace
}  // namespace catnap::agent
