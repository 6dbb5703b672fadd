#include "catnap/microvm.h"

#include <unistd.h>

#include <array>
#include <atomic>
#include <catch2/catch.hpp>
#include <chrono>
#include <future>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "catnap/async.h"
#include "catnap/errors.h"
#include "support/host_fixture.h"

namespace catnap {
namespace {

using namespace std::chrono_literals;
using testing::Shell;
using testing::TestHost;

TEST_CASE("Exec gives output, code and the environment of image and run") {
  ImageSpec spec;
  spec.env = {{"A", "image"}, {"B", "image"}, {"C", "image"}};
  spec.workdir = "/tmp";
  TestHost host(spec);
  const MicroVM vm = host.Run({.env = {{"B", "run"}, {"C", "run"}}});
  Command command = Shell("echo $A $B $C; pwd; echo oops >&2; cat; exit 7");
  command.env = {{"C", "command"}};
  command.stdin_data = "in";
  const auto result = vm.Exec(command);
  INFO(result.status().ToString());
  REQUIRE(result.ok());
  CHECK(result->reason == ExitReason::kExited);
  CHECK(result->exit_code == 7);
  CHECK(result->stdout_data == "image run command\n/tmp\nin");
  CHECK(result->stderr_data == "oops\n");
  CHECK_FALSE(result->truncated);
  CHECK(result->wall > 0ns);
}

TEST_CASE("Exec tells why a program ended otherwise") {
  TestHost host;
  const MicroVM vm = host.Run();
  auto result = vm.Exec(Shell("kill -9 $$"));
  REQUIRE(result.ok());
  CHECK(result->reason == ExitReason::kSignaled);
  CHECK(result->signal == 9);

  result = vm.Exec({.argv = {"/no/such/program"}});
  REQUIRE(result.ok());
  CHECK(result->reason == ExitReason::kNotStarted);
  CHECK(result->exit_code == 127);

  Command late = Shell("sleep 1000");
  late.timeout = 50ms;
  result = vm.Exec(late);
  REQUIRE(result.ok());
  CHECK(result->reason == ExitReason::kTimeout);

  result = vm.Exec(Shell("sleep 1000"), {.timeout = 50ms});
  CHECK(result.status().code() == absl::StatusCode::kDeadlineExceeded);

  std::stop_source stop;
  stop.request_stop();
  result = vm.Exec(Shell("sleep 1000"), {.stop = stop.get_token()});
  CHECK(result.status().code() == absl::StatusCode::kCancelled);

  Command much = Shell("echo 0123456789");
  much.max_output_bytes = 4;
  result = vm.Exec(much);
  REQUIRE(result.ok());
  CHECK(result->stdout_data == "0123");
  CHECK(result->truncated);
}

TEST_CASE("Wrong commands are refused by member") {
  TestHost host;
  const MicroVM vm = host.Run();
  Command wrong = Shell("true");
  std::string named;
  SECTION("argv") {
    wrong.argv.clear();
    named = "argv";
  }
  SECTION("zero byte") {
    wrong.argv = {std::string("a\0b", 3)};
    named = "argv";
  }
  SECTION("env") {
    wrong.env = {{"A=B", "c"}};
    named = "env";
  }
  SECTION("timeout") {
    wrong.timeout = 0ms;
    named = "timeout";
  }
  SECTION("memory") {
    wrong.memory_limit_bytes = 0;
    named = "memory_limit_bytes";
  }
  SECTION("cwd") {
    wrong.cwd = std::string(5000, 'a');
    named = "cwd";
  }
  const auto result = vm.Exec(wrong);
  CHECK(result.status().code() == absl::StatusCode::kInvalidArgument);
  CHECK_THAT(result.status().ToString(), Catch::Contains(named));
}

TEST_CASE("Output comes by the callback in order, and before the result") {
  TestHost host;
  const MicroVM vm = host.Run();
  std::string seen;
  std::atomic<bool> inside{false};
  bool overlapped = false;
  Command command = Shell("for i in 1 2 3 4 5; do echo $i; done; echo end >&2");
  command.on_output = [&](Stream stream, std::string_view text) {
    overlapped |= inside.exchange(true);
    std::this_thread::sleep_for(1ms);
    seen += stream == Stream::kStderr ? "E:" : "";
    seen += text;
    inside = false;
  };
  const auto result = vm.Exec(command);
  REQUIRE(result.ok());
  CHECK_FALSE(overlapped);
  CHECK_THAT(seen, Catch::Contains("1\n2\n3\n4\n5\n"));
  CHECK_THAT(seen, Catch::Contains("E:end\n"));
  CHECK(result->stdout_data == "1\n2\n3\n4\n5\n");
}

TEST_CASE("A callback that is slow holds the program up, without loss") {
  TestHost host;
  const MicroVM vm = host.Run();
  size_t bytes = 0;
  Command command = Shell("head -c 1000000 /dev/zero");
  command.on_output = [&](Stream /*stream*/, std::string_view text) {
    bytes += text.size();
    std::this_thread::sleep_for(1ms);
  };
  const auto result = vm.Exec(command);
  REQUIRE(result.ok());
  CHECK(bytes == 1'000'000);
}

TEST_CASE("A process is written to, read, signalled and waited for") {
  TestHost host;
  const MicroVM vm = host.Run();
  auto process = vm.Start(Shell("read a; echo got $a; cat; exit 3"));
  REQUIRE(process.ok());
  CHECK((*process)->id() > 0);
  REQUIRE((*process)->Write("hello\n").ok());
  std::array<char, 64> buffer{};
  const auto got = (*process)->Read(Stream::kStdout, buffer);
  REQUIRE(got.ok());
  CHECK(std::string(buffer.data(), *got) == "got hello\n");
  const std::string large(300'000, 'x');
  REQUIRE((*process)->Write("more").ok());
  CHECK((*process)->CloseStdin().ok());
  CHECK((*process)->CloseStdin().ok());
  const auto result = (*process)->Wait();
  REQUIRE(result.ok());
  CHECK(result->exit_code == 3);
  CHECK(result->stdout_data == "more");  // What was not read.
  CHECK((*process)->Wait()->exit_code == 3);
  CHECK((*process)->Write("late").status().code() ==
        absl::StatusCode::kFailedPrecondition);

  process = vm.Start(Shell("sleep 1000"));
  REQUIRE(process.ok());
  CHECK((*process)
            ->Read(Stream::kStdout, buffer, {.timeout = 20ms})
            .status()
            .code() == absl::StatusCode::kDeadlineExceeded);
  CHECK((*process)->Signal(0).code() == absl::StatusCode::kInvalidArgument);
  CHECK((*process)->Signal(15).ok());
  CHECK((*process)->Wait()->signal == 15);

  process = vm.Start({.argv = {"/no/such/program"}});
  REQUIRE(process.ok());
  CHECK((*process)->id() == 0);
  CHECK((*process)->Wait()->reason == ExitReason::kNotStarted);
}

TEST_CASE("More than any window goes through a process both ways") {
  TestHost host;
  const MicroVM vm = host.Run();
  Command command = Shell("cat");
  command.stdin_data = std::string(200'000, 'a');
  auto process = vm.Start(command);
  REQUIRE(process.ok());
  auto reader = std::async(std::launch::async, [&] {
    std::string all;
    std::array<char, 4096> buffer{};
    for (;;) {
      const auto got = (*process)->Read(Stream::kStdout, buffer);
      if (!got.ok() || *got == 0) return all;
      all.append(buffer.data(), *got);
    }
  });
  CHECK((*process)->Write(std::string(1'000'000, 'b')).ok());
  CHECK((*process)->CloseStdin().ok());
  const std::string all = reader.get();
  CHECK(all == std::string(200'000, 'a') + std::string(1'000'000, 'b'));
  CHECK((*process)->Wait()->exit_code == 0);
}

TEST_CASE("A handle that goes kills its process, a detached one does not") {
  TestHost host;
  const MicroVM vm = host.Run();
  auto process = vm.Start(Shell("sleep 1000"));
  REQUIRE(process.ok());
  auto listed = vm.ListProcesses();
  REQUIRE(listed.ok());
  REQUIRE(listed->size() == 1);
  CHECK(listed->front().id == (*process)->id());
  CHECK(listed->front().argv.front() == "sh");
  process->reset();
  for (int i = 0; i < 500 && !vm.ListProcesses()->empty(); ++i) {
    std::this_thread::sleep_for(10ms);
  }
  CHECK(vm.ListProcesses()->empty());

  process = vm.Start(Shell("sleep 0.1; echo kept; exec sleep 1000"));
  REQUIRE(process.ok());
  const uint64_t id = (*process)->id();
  std::array<char, 64> buffer{};
  (*process)->Detach();
  CHECK((*process)->Wait().status().code() == absl::StatusCode::kCancelled);
  process->reset();
  auto again = vm.Attach(id);
  REQUIRE(again.ok());
  const auto got = (*again)->Read(Stream::kStdout, buffer, {.timeout = 20s});
  REQUIRE(got.ok());
  CHECK(std::string(buffer.data(), *got) == "kept\n");
  CHECK((*again)->Signal(9).ok());
  CHECK((*again)->Wait()->signal == 9);
  CHECK(vm.Attach(999'999).status().code() == absl::StatusCode::kNotFound);
}

TEST_CASE("Files go in and out, and the guest's refusals are told") {
  TestHost host;
  const MicroVM vm = host.Run();
  const std::string base = (host.path() / "inside").string();
  CHECK(vm.MakeDirectory(base + "/a/b").ok());
  CHECK(vm.WriteFile(base + "/a/file", "content", 0600).ok());
  CHECK(*vm.ReadFile(base + "/a/file") == "content");
  const auto info = vm.Stat(base + "/a/file");
  REQUIRE(info.ok());
  CHECK(info->name == "file");
  CHECK(info->size == 7);
  CHECK((info->mode & 0777) == 0600);
  CHECK(vm.ListDirectory(base + "/a")->size() == 2);
  CHECK(vm.ReadFile(base + "/a/file", 3).status().code() ==
        absl::StatusCode::kOutOfRange);
  const auto missing = vm.ReadFile(base + "/none");
  CHECK(missing.status().code() == absl::StatusCode::kNotFound);
  CHECK(ReasonOf(missing.status()) == ErrorReason::kGuestPath);

  const auto out = host.path() / "out";
  CHECK(vm.CopyOut(base, out).ok());
  CHECK(std::filesystem::file_size(out / "a" / "file") == 7);
  CHECK(vm.CopyIn(out, base + "2").ok());
  CHECK(*vm.ReadFile(base + "2/a/file") == "content");
  CHECK(vm.CopyIn(host.path() / "missing", base).code() ==
        absl::StatusCode::kNotFound);
  CHECK(vm.CopyOut(base, out, {.max_bytes = 3}).code() ==
        absl::StatusCode::kOutOfRange);
  CHECK(vm.Remove(base, true).ok());
  CHECK(vm.ReadFile("", 1).status().code() ==
        absl::StatusCode::kInvalidArgument);
  CHECK(vm.WriteFile(base, "", 010000).code() ==
        absl::StatusCode::kInvalidArgument);
  // What never ends by itself is refused.
  CHECK(vm.ReadFile("/dev/zero", 1000).status().code() ==
        absl::StatusCode::kFailedPrecondition);
}

// Answers each line with the line and the name of its machine.
class Echo final : public GuestService {
 public:
  void OnConnection(const MicroVM& from, UniqueFd connection) override {
    std::array<char, 256> line{};
    const ssize_t got = ::read(connection.get(), line.data(), line.size());
    const std::string answer =
        from.id() + ":" +
        std::string(line.data(), got > 0 ? static_cast<size_t>(got) : 0);
    sent = ::write(connection.get(), answer.data(), answer.size()) > 0;
  }
  std::atomic<bool> sent{false};
};

TEST_CASE("A guest reaches the host's services, as long as they are there") {
  // A port of 127.0.0.2 that nobody else has.
  constexpr uint16_t kFirst = 18'431;
  constexpr uint16_t kSecond = 18'432;
  TestHost host;
  const auto echo = std::make_shared<Echo>();
  const MicroVM vm = host.Run({.id = "me", .services = {{kFirst, echo}}});
  const auto ask = [&vm](uint16_t port) {
    Command command;
    const std::string address = "/dev/tcp/127.0.0.2/" + std::to_string(port);
    command.argv = {"bash", "-c",
                    "for i in $(seq 100); do exec 3<>" + address +
                        " && break; sleep 0.02; done 2>/dev/null; "
                        "echo hello >&3; cat <&3"};
    const auto result = vm.Exec(command, {.timeout = 20s});
    return result.ok() ? result->stdout_data : result.status().ToString();
  };
  CHECK(ask(kFirst) == "me:hello\n");
  CHECK(echo->sent);
  CHECK(vm.SetService(kSecond, echo).ok());
  CHECK(ask(kSecond) == "me:hello\n");
  CHECK(vm.SetService(0, echo).code() == absl::StatusCode::kInvalidArgument);
  CHECK(vm.SetService(kSecond, nullptr).ok());
}

TEST_CASE("A terminated machine says so everywhere") {
  TestHost host;
  MicroVM vm = host.Run({.id = "gone"});
  CHECK(vm.state() == MicroVMState::kRunning);
  CHECK(vm.termination_reason() == TerminationReason::kNone);
  auto waiting = std::async(std::launch::async,
                            [vm] { return vm.Exec(Shell("sleep 1000")); });
  while (vm.ListProcesses()->empty()) std::this_thread::sleep_for(1ms);
  CHECK(vm.Terminate().ok());
  const auto result = waiting.get();
  REQUIRE(result.ok());
  CHECK(result->reason == ExitReason::kVmTerminated);
  CHECK(vm.state() == MicroVMState::kTerminated);
  CHECK(vm.termination_reason() == TerminationReason::kRequested);
  CHECK_THAT(vm.state_reason(), Catch::Contains("Terminate()"));
  CHECK(vm.Terminate().ok());
  const auto after = vm.Exec(Shell("true"));
  CHECK(after.status().code() == absl::StatusCode::kFailedPrecondition);
  CHECK(ReasonOf(after.status()) == ErrorReason::kVmTerminated);
  CHECK(vm.WaitForState(MicroVMState::kRunning, 10ms).status().code() ==
        absl::StatusCode::kFailedPrecondition);
  CHECK(*vm.WaitForState(MicroVMState::kTerminated, 10ms) ==
        MicroVMState::kTerminated);
  CHECK_FALSE(std::filesystem::exists(host.path() / "state/vms/gone"));
  CHECK(vm.GetUsage().vcpu_seconds == 1.5);
  // It stays listed, and its name is free.
  CHECK(host.host().GetMicroVM("gone")->state() == MicroVMState::kTerminated);
  CHECK(host.Run({.id = "gone"}).state() == MicroVMState::kRunning);
}

TEST_CASE("A guest that ends by itself ends its machine, with the reason") {
  TestHost host;
  const MicroVM vm = host.Run();
  host.factory().latest()->EndWith(
      {TerminationReason::kGuestPanic, "it panicked"});
  CHECK(vm.WaitForState(MicroVMState::kTerminated, 10s).ok());
  CHECK(vm.termination_reason() == TerminationReason::kGuestPanic);
  CHECK(vm.state_reason() == "it panicked");
}

TEST_CASE("An application is started, waited for, and its end is a reason") {
  TestHost host;
  ImageSpec spec;
  spec.entrypoint = {"sh", "-c"};
  spec.env = {{"GO", "1"}};
  spec.on_app_exit = OnAppExit::kTerminate;
  std::string refusal;
  SECTION("that runs on") {
    spec.command = {"sleep 1000"};
    spec.ready.command = {"sh", "-c", "test $GO = 1"};
    spec.name = "app";
    const auto image = host.Build(spec);
    REQUIRE(image.ok());
    const auto vm = MicroVM::Run(host.host(), *image);
    REQUIRE(vm.ok());
    CHECK(vm->state() == MicroVMState::kRunning);
    return;
  }
  SECTION("that ends later") {
    spec.command = {"sleep 2; exit 4"};
    spec.name = "app";
    const auto image = host.Build(spec);
    REQUIRE(image.ok());
    const auto vm = MicroVM::Run(host.host(), *image);
    REQUIRE(vm.ok());
    CHECK(vm->WaitForState(MicroVMState::kTerminated, 20s).ok());
    CHECK(vm->termination_reason() == TerminationReason::kAppExited);
    CHECK_THAT(vm->state_reason(), Catch::Contains("code 4"));
    return;
  }
  SECTION("that ends before it is ready") {
    spec.command = {"exit 5"};
    spec.ready.command = {"false"};
    refusal = "code 5";
  }
  SECTION("that is never ready") {
    spec.command = {"sleep 1000"};
    spec.ready.port = 1;
    spec.ready.timeout = 100ms;
    refusal = "ready.timeout";
  }
  SECTION("that does not exist") {
    spec.entrypoint = {"/no/such/program"};
    refusal = "/no/such/program";
  }
  spec.name = "app";
  const auto image = host.Build(spec);
  CHECK(image.status().code() == absl::StatusCode::kFailedPrecondition);
  CHECK_THAT(image.status().ToString(), Catch::Contains(refusal));
}

// Keeps what it is given.
class Lines final : public LogSink {
 public:
  void Write(const LogRecord& record) override {
    const std::lock_guard lock(mutex_);
    text_ += std::string(record.vm_id) + " " + std::string(record.source) +
             ": " + std::string(record.text) + "\n";
  }
  std::string text() {
    const std::lock_guard lock(mutex_);
    return text_;
  }

 private:
  std::mutex mutex_;
  std::string text_;
};

TEST_CASE("What the application writes comes as log lines") {
  ImageSpec spec;
  spec.entrypoint = {"sh", "-c",
                     "sleep 2; echo one; echo two >&2; printf three"};
  spec.on_app_exit = OnAppExit::kTerminate;
  TestHost host(spec);
  const auto lines = std::make_shared<Lines>();
  const MicroVM vm = host.Run({.id = "app", .guest_log = lines});
  CHECK(vm.WaitForState(MicroVMState::kTerminated, 20s).ok());
  CHECK(host.host().Close({.running = AtClose::kTerminate}).ok());
  CHECK_THAT(lines->text(), Catch::Contains("app app.stdout: one\n"));
  CHECK_THAT(lines->text(), Catch::Contains("app app.stderr: two\n"));
  CHECK_THAT(lines->text(), Catch::Contains("app app.stdout: three\n"));
}

TEST_CASE("Asynchronous calls complete on the executor") {
  TestHost host;
  std::promise<absl::StatusOr<MicroVM>> ran;
  async::Run(host.host(), host.image(), {}, {},
             [&](absl::StatusOr<MicroVM> vm) { ran.set_value(std::move(vm)); });
  auto vm = ran.get_future().get();
  REQUIRE(vm.ok());
  std::promise<std::string> output;
  async::Exec(*vm, Shell("echo here"), {},
              [&](absl::StatusOr<ExecResult> result) {
                output.set_value(result.ok() ? result->stdout_data : "");
              });
  CHECK(output.get_future().get() == "here\n");
  std::promise<absl::Status> connected;
  async::Connect(*vm, 1, {}, [&](absl::StatusOr<UniqueFd> fd) {
    connected.set_value(fd.status());
  });
  CHECK(connected.get_future().get().code() == absl::StatusCode::kUnavailable);
  std::promise<absl::StatusOr<Snapshot>> taken;
  async::TakeSnapshot(*vm, {}, {}, [&](absl::StatusOr<Snapshot> snapshot) {
    taken.set_value(std::move(snapshot));
  });
  const auto snapshot = taken.get_future().get();
  REQUIRE(snapshot.ok());
  std::promise<absl::StatusOr<MicroVM>> restored;
  async::Restore(host.host(), *snapshot, {}, {},
                 [&](absl::StatusOr<MicroVM> copy) {
                   restored.set_value(std::move(copy));
                 });
  const auto copy = restored.get_future().get();
  REQUIRE(copy.ok());
  CHECK(copy->state() == MicroVMState::kRunning);
  CHECK(copy->id() != vm->id());
  std::promise<absl::Status> empty;
  async::Exec(MicroVM(), Shell("true"), {},
              [&](const absl::StatusOr<ExecResult>& result) {
                empty.set_value(result.status());
              });
  CHECK(empty.get_future().get().code() ==
        absl::StatusCode::kFailedPrecondition);
  for (const bool restore : {false, true}) {
    std::promise<absl::Status> refused;
    if (restore) {
      async::Restore(host.host(), Snapshot(), {}, {},
                     [&](const absl::StatusOr<MicroVM>& result) {
                       refused.set_value(result.status());
                     });
    } else {
      async::TakeSnapshot(MicroVM(), {}, {},
                          [&](const absl::StatusOr<Snapshot>& result) {
                            refused.set_value(result.status());
                          });
    }
    CHECK(refused.get_future().get().code() ==
          absl::StatusCode::kFailedPrecondition);
  }
}

}  // namespace
}  // namespace catnap
