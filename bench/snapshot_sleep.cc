#include "snapshot_sleep.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <thread>
#include <utility>

#include "base/status.h"
#include "catnap/catnap.h"
#include "guest.h"
#include "room.h"
#include "snapshot_guest.h"
#include "ticker.h"

extern "C" char** environ;

namespace catnap::bench {
namespace {

using Clock = std::chrono::steady_clock;
using namespace std::chrono_literals;
namespace fs = std::filesystem;

constexpr const char* kId = "sleeper";

double Micros(Clock::duration duration) {
  return std::chrono::duration<double, std::micro>(duration).count();
}

void FirstExec(const MicroVM& vm) {
  Command command;
  command.argv = {"/bin/true"};
  const auto result = vm.Exec(command);
  Check("exec", result.status());
  if (result->reason != ExitReason::kExited || result->exit_code != 0) {
    Check("exec", absl::InternalError("/bin/true failed"));
  }
}

MicroVM Find(Host& host) {
  auto vm = host.GetMicroVM(kId);
  Check("find the MicroVM", vm.status());
  return *std::move(vm);
}

// A ticker in the guest, until this goes.
class GuestTicker {
 public:
  explicit GuestTicker(const MicroVM& vm) {
    Command command;
    command.argv = {"python3", "-c", kTickerProgram};
    command.on_output = [ticks = ticks_](Stream stream, std::string_view) {
      if (stream == Stream::kStdout) ticks->Add();
    };
    auto process = vm.Start(command);
    Check("start the ticker", process.status());
    process_ = *std::move(process);
    ticks_->WaitFor(50);
  }
  Ticks& ticks() { return *ticks_; }

 private:
  const std::shared_ptr<Ticks> ticks_ = std::make_shared<Ticks>();
  std::unique_ptr<Process> process_;
};

// The last of what another process says: when it was there, and numbers.
struct Heard {
  Clock::duration until_first_exec{};
  double open = 0;
  double resume = 0;
  double exec = 0;
};

Heard RunWake(const std::string& state_dir) {
  std::array<int, 2> out{};
  if (::pipe2(out.data(), O_CLOEXEC) != 0) {
    Check("pipe", ErrnoError(errno, "pipe2"));
  }
  std::string program = fs::read_symlink("/proc/self/exe");
  std::string mode = "--wake";
  std::string directory = state_dir;
  std::array<char*, 4> argv = {program.data(), mode.data(), directory.data(),
                               nullptr};
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, out[1], 1);
  pid_t pid = -1;
  Heard heard;
  const auto start = Clock::now();
  const int error = ::posix_spawn(&pid, program.c_str(), &actions, nullptr,
                                  argv.data(), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  ::close(out[1]);
  if (error != 0) Check("spawn", ErrnoError(error, "posix_spawn"));
  std::string line;
  for (char c = 0; ::read(out[0], &c, 1) == 1 && c != '\n';) line.push_back(c);
  heard.until_first_exec = Clock::now() - start;
  int status = 0;
  ::waitpid(pid, &status, 0);
  ::close(out[0]);
  if (status != 0 || std::sscanf(line.c_str(), "awake %lf %lf %lf", &heard.open,
                                 &heard.resume, &heard.exec) != 3) {
    Check("wake in another process", absl::InternalError("it failed: " + line));
  }
  return heard;
}

}  // namespace

Sleeper::Sleeper(std::string state_dir) : state_dir_(std::move(state_dir)) {
  const auto host = OpenHost(state_dir_);
  const Image image = SleeperImage(*host, nullptr);
  RunOptions options;
  options.id = kId;
  const auto vm = MicroVM::Run(*host, image, std::move(options));
  Check("run", vm.status());
  FirstExec(*vm);
  Check("suspend", vm->Suspend());
  Check("close", host->Close());
}

std::string Sleeper::root_disk() const {
  return state_dir_ + "/images/sleeper/1.0/root.ext4";
}

void Sleeper::Wake(const std::string& state_dir) {
  const auto start = Clock::now();
  const auto host = OpenHost(state_dir);
  const MicroVM vm = Find(*host);
  const auto opened = Clock::now();
  Check("resume", vm.Resume());
  const auto resumed = Clock::now();
  FirstExec(vm);
  const auto ended = Clock::now();
  const std::string line =
      fmt::format("awake {} {} {}\n", Micros(opened - start),
                  Micros(resumed - opened), Micros(ended - resumed));
  if (::write(1, line.data(), line.size()) !=
      static_cast<ssize_t>(line.size())) {
    Check("say so", ErrnoError(errno, "write"));
  }
  Check("suspend", vm.Suspend());
  Check("close", host->Close());
}

void Sleeper::WakeElsewhere(Report& report) {
  for (const char* how : {"cold", "warm"}) {
    // Warm is right after a suspend: what that wrote and this read is cached.
    if (how == std::string_view("cold")) DropFromCache(state_dir_);
    const Heard heard = RunWake(state_dir_);
    const std::string name = fmt::format("resume/{}_first_exec", how);
    report.AddMicros(name, heard.until_first_exec);
    report.Add(name + "/host_open", "us", heard.open);
    report.Add(name + "/resume", "us", heard.resume);
    report.Add(name + "/exec", "us", heard.exec);
  }
}

void Sleeper::SleepHere(Report& report) {
  const auto host = OpenHost(state_dir_);
  const MicroVM vm = Find(*host);
  Check("resume", vm.Resume());
  GuestTicker ticker(vm);
  Ticks& ticks = ticker.ticks();
  const auto live = [&](const std::string& suffix,
                        SnapshotOptions::Where where) {
    SnapshotOptions options;
    options.where = where;
    const auto start = Clock::now();
    const auto snapshot = vm.TakeSnapshot(options);
    const auto end = Clock::now();
    Check("take a snapshot", snapshot.status());
    ticks.WaitFor(2);
    report.AddMicros("live/pause" + suffix, ticks.LongestGap(start, end));
    report.AddMicros("live/total" + suffix, end - start);
    report.Add("live/own_bytes" + suffix, "bytes",
               static_cast<double>(snapshot->own_bytes()));
    // As long again, undisturbed.
    const auto quiet = Clock::now();
    std::this_thread::sleep_for(end - start);
    ticks.WaitFor(2);
    report.AddMicros("live/no_pause" + suffix,
                     ticks.LongestGap(quiet, Clock::now()));
  };
  live("", SnapshotOptions::Where::kStore);
  live("/in_memory", SnapshotOptions::Where::kMemory);

  // The first pays for what woke since another process had it; the second is
  // what a MicroVM that wakes, works a little and sleeps again costs.
  for (const char* name : {"suspend/total", "suspend/again_total"}) {
    const bool again = name == std::string_view("suspend/again_total");
    ticks.WaitFor(50);
    const uint64_t written = vm.GetUsage().snapshot_bytes_written;
    const auto start = Clock::now();
    Check("suspend", vm.Suspend());
    const auto asleep = Clock::now();
    report.AddMicros(name, asleep - start);
    report.AddMicros(again ? "suspend/again_pause" : "suspend/pause",
                     asleep - ticks.last());
    report.Add(
        again ? "suspend/again_bytes" : "suspend/bytes", "bytes",
        static_cast<double>(vm.GetUsage().snapshot_bytes_written - written));
    const auto wake = Clock::now();
    Check("resume", vm.Resume());
    const auto resumed = Clock::now();
    FirstExec(vm);
    report.AddMicros("resume/hot_first_exec", Clock::now() - wake);
    report.AddMicros("resume/hot_first_exec/resume", resumed - wake);
  }
  Check("suspend", vm.Suspend());
  Check("close", host->Close());
}

}  // namespace catnap::bench
