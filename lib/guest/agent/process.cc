#include "guest/agent/process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "guest/agent/spawn.h"
#include "guest/agent/text.h"

namespace catnap::guest {
namespace {

using agent::ExitKind;
using agent::ExitReport;

// Ptrace, kernel modules, raw I/O and reboot: with one of them an application
// could end or take over process 1. Without them, the kernel lets nobody trace
// a process that has more capabilities.
constexpr uint64_t kAgentsOwn = uint64_t{1} << 16 | uint64_t{1} << 17 |
                                uint64_t{1} << 19 | uint64_t{1} << 22;
constexpr size_t kKeptBytes = 64 << 10;  // Of output while nobody listens.
constexpr size_t kReadBytes = 32 << 10;
constexpr int kReadsInARow = 8;  // Then others have their turn.
constexpr std::chrono::milliseconds kTerminalGrace{100};

ExitReport NotStarted(int exit_code, std::string text) {
  ExitReport report;
  report.kind = ExitKind::kNotStarted;
  report.exit_code = static_cast<uint32_t>(exit_code);
  report.text = std::move(text);
  return report;
}

void CloseFd(int* fd) {
  if (*fd >= 0) close(*fd);
  *fd = -1;
}

Bytes AsBytes(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

uint64_t Nanoseconds(const timeval& time) {
  return static_cast<uint64_t>(time.tv_sec) * 1'000'000'000 +
         static_cast<uint64_t>(time.tv_usec) * 1000;
}

// A later variable of the same name wins.
void SetVariable(std::vector<std::string>* env, const std::string& variable) {
  const size_t name = variable.find('=') + 1;
  if (name == 0) return;
  for (std::string& old : *env) {
    if (old.compare(0, name, variable, 0, name) == 0) {
      old = variable;
      return;
    }
  }
  env->push_back(variable);
}

}  // namespace

Process::Process(ProcessTable* table, uint64_t id,
                 const agent::ExecRequest& request)
    : table_(table),
      id_(id),
      argv_(request.argv),
      application_(request.application),
      terminal_(request.pty.has_value()),
      output_room_(request.output_limit_bytes == 0
                       ? UINT64_MAX
                       : request.output_limit_bytes) {}

Process::~Process() {
  CloseStdin();
  for (Output& output : outputs_) CloseOutput(&output);
  if (timer_.has_value()) table_->loop()->RemoveTimer(*timer_);
  table_->cgroups()->Return(std::move(cgroup_));
}

bool Process::OpenTerminal(const agent::WindowSize& size, int* end) {
  const int master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
  if (master < 0) return false;
  outputs_[0].fd = master;
  int unlock = 0;
  winsize window{};
  window.ws_row = size.rows;
  window.ws_col = size.columns;
  if (ioctl(master, TIOCSPTLCK, &unlock) != 0 ||
      ioctl(master, TIOCSWINSZ, &window) != 0) {
    return false;
  }
  // Not by its name: /dev/pts of the guest may be anything.
  *end = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
  stdin_fd_ = fcntl(master, F_DUPFD_CLOEXEC, 3);
  return *end >= 0 && stdin_fd_ >= 0;
}

std::optional<ExitReport> Process::OpenPipes(const agent::ExecRequest& request,
                                             std::array<int, 3>* ends) {
  const auto failed = [] { return NotStarted(126, ErrorText("pipe", errno)); };
  std::array<int, 2> pair{};
  for (size_t i = 0; i < outputs_.size(); ++i) {
    if (pipe2(pair.data(), O_CLOEXEC) != 0) return failed();
    outputs_[i].fd = pair[0];
    (*ends)[i + 1] = pair[1];
  }
  if (request.stdin_data.empty() && !request.stdin_open) {
    (*ends)[0] = fcntl(table_->null_fd(), F_DUPFD_CLOEXEC, 3);
    if ((*ends)[0] < 0) return failed();
    return std::nullopt;
  }
  if (pipe2(pair.data(), O_CLOEXEC) != 0) return failed();
  (*ends)[0] = pair[0];
  stdin_fd_ = pair[1];
  return std::nullopt;
}

std::optional<ExitReport> Process::Start(const agent::ExecRequest& request) {
  if (argv_.empty() || argv_[0].empty()) return NotStarted(127, "no program");
  SpawnPlan plan;
  plan.argv = argv_;
  if (!request.user.empty()) {
    const std::optional<User> user = FindUser(request.user);
    if (!user.has_value()) {
      return NotStarted(126, "user " + request.user + " is not known");
    }
    plan.user = *user;
    plan.change_user = true;
  } else {
    plan.user.home = "/root";
  }
  plan.env = {
      "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
      "HOME=" + plan.user.home};
  if (terminal_) plan.env.emplace_back("TERM=xterm");
  for (const std::string& variable : request.env) {
    SetVariable(&plan.env, variable);
  }
  if (!request.cwd.empty()) plan.cwd = request.cwd;
  plan.terminal = terminal_;
  plan.dropped_capabilities = ~request.capabilities.value_or(
      request.application ? agent::kContainerCapabilities : ~uint64_t{0});
  if (table_->is_init()) {
    plan.dropped_capabilities |= kAgentsOwn;
    plan.reset_oom_score = true;
  }
  cgroup_ = table_->cgroups()->Take();
  if (table_->cgroups()->available() && !cgroup_.valid()) {
    // It could not be frozen, nor killed with its tree.
    return NotStarted(126, ErrorText("control group", errno));
  }
  plan.cgroup_fd = cgroup_.fd;
  if (request.memory_limit_bytes != 0 &&
      !CgroupPool::LimitMemory(&cgroup_, request.memory_limit_bytes)) {
    return NotStarted(126, "this guest cannot limit memory");
  }
  std::array<int, 3> ends = {-1, -1, -1};
  std::optional<ExitReport> failure;
  if (terminal_) {
    if (!OpenTerminal(*request.pty, &ends[0])) {
      failure = NotStarted(126, ErrorText("terminal", errno));
    }
    ends[1] = ends[2] = ends[0];
  } else {
    failure = OpenPipes(request, &ends);
  }
  if (!failure.has_value()) {
    plan.stdin_fd = ends[0];
    plan.stdout_fd = ends[1];
    plan.stderr_fd = ends[2];
    started_ = std::chrono::steady_clock::now();
    const SpawnResult spawned = Spawn(plan);
    pid_ = spawned.pid;
    if (pid_ < 0) failure = NotStarted(spawned.exit_code, spawned.error);
  }
  CloseFd(&ends[0]);
  if (!terminal_) {
    CloseFd(&ends[1]);
    CloseFd(&ends[2]);
  }
  if (failure.has_value()) return failure;
  for (Output& output : outputs_) {
    if (output.fd < 0) continue;
    fcntl(output.fd, F_SETFL, O_NONBLOCK);
    Watch(&output);
  }
  if (stdin_fd_ >= 0) {
    // Ours only: a pipe's ends have flags of their own.
    fcntl(stdin_fd_, F_SETFL, O_NONBLOCK);
    stdin_waiting_ = request.stdin_data;
    stdin_end_ = !request.stdin_open && !terminal_;
    PumpStdin();
  }
  if (request.timeout_ms != 0) {
    const std::chrono::milliseconds timeout(static_cast<int64_t>(
        std::min<uint64_t>(request.timeout_ms, uint64_t{1} << 40)));
    timer_ =
        table_->loop()->AddTimer(started_ + timeout, [this] { OnTimeout(); });
  }
  return std::nullopt;
}

void Process::Attach(Server* server, uint32_t stream) {
  server_ = server;
  stream_ = stream;
  for (size_t i = 0; i < outputs_.size(); ++i) {
    SendKept(static_cast<uint8_t>(agent::kStdout + i));
    if (outputs_[i].fd >= 0) Watch(&outputs_[i]);
  }
}

bool Process::SendKept(uint8_t channel) {
  std::string& kept = outputs_[channel - agent::kStdout].kept;
  if (server_ == nullptr || kept.empty()) return true;
  kept.erase(0, server_->Write(stream_, channel, AsBytes(kept), false));
  return kept.empty();
}

void Process::Detach() {
  server_ = nullptr;
  CloseStdin();
  for (Output& output : outputs_) {
    if (output.fd >= 0) Watch(&output);
  }
  Conclude();
}

void Process::OnEvents(int fd, uint32_t /*events*/) {
  if (fd == stdin_fd_) {
    PumpStdin();
    return;
  }
  Pump(fd == outputs_[0].fd ? agent::kStdout : agent::kStderr);
  Conclude();
}

void Process::Watch(Output* output) {
  if (output->watched) return;
  output->watched = table_->loop()->Add(output->fd, EPOLLIN, this);
}

void Process::CloseOutput(Output* output) {
  if (output->watched) table_->loop()->Remove(output->fd);
  output->watched = false;
  CloseFd(&output->fd);
}

void Process::Pump(uint8_t channel) {
  Output& output = outputs_[channel - agent::kStdout];
  if (!SendKept(channel)) {
    // What comes behind it waits.
    if (output.watched) table_->loop()->Remove(output.fd);
    output.watched = false;
    return;
  }
  std::array<uint8_t, kReadBytes> buffer;  // Not cleared: it is read into.
  for (int i = 0; i < kReadsInARow && output.fd >= 0; ++i) {
    size_t want = buffer.size();
    if (server_ != nullptr && output_room_ > 0) {
      want = std::min(want, server_->WritableBytes(stream_, channel));
      if (want == 0) {
        // Until there is credit; a pipe at its end would not let us sleep.
        if (output.watched) table_->loop()->Remove(output.fd);
        output.watched = false;
        return;
      }
    }
    if (output.left.has_value()) want = std::min(want, *output.left);
    if (output.left.has_value() && want == 0) return;
    const ssize_t got = read(output.fd, buffer.data(), want);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) {
      Watch(&output);
      return;
    }
    if (got <= 0) {  // EIO: nobody has the terminal open any longer.
      CloseOutput(&output);
      return;
    }
    const auto size = static_cast<size_t>(got);
    if (output.left.has_value()) *output.left -= size;
    Deliver(channel, {buffer.data(), size});
  }
  if (output.fd >= 0) Watch(&output);
}

void Process::Deliver(uint8_t channel, Bytes data) {
  if (server_ == nullptr) {
    std::string& kept = outputs_[channel - agent::kStdout].kept;
    kept.append(data.begin(), data.end());
    if (kept.size() > kKeptBytes) {
      kept.erase(0, kept.size() - kKeptBytes);
      report_.truncated = true;
    }
    return;
  }
  const size_t sent = std::min<uint64_t>(data.size(), output_room_);
  if (sent < data.size()) report_.truncated = true;
  if (output_room_ != UINT64_MAX) output_room_ -= sent;
  if (sent > 0) server_->Write(stream_, channel, data.first(sent), false);
}

void Process::PumpOutput() {
  Pump(agent::kStdout);
  Pump(agent::kStderr);
  Conclude();
}

void Process::WriteStdin(Bytes data, bool end) {
  if (stdin_fd_ < 0) {
    if (server_ != nullptr) {
      server_->Consume(stream_, agent::kStdin, data.size());
    }
    return;
  }
  stdin_waiting_.append(data.begin(), data.end());
  if (end) {
    // A terminal has no end, but a key for it.
    if (terminal_) {
      stdin_waiting_.push_back('\x04');
    } else {
      stdin_end_ = true;
    }
  }
  PumpStdin();
}

void Process::PumpStdin() {
  while (stdin_fd_ >= 0 && !stdin_waiting_.empty()) {
    const ssize_t sent =
        write(stdin_fd_, stdin_waiting_.data(), stdin_waiting_.size());
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && errno == EAGAIN) break;
    // Nobody reads it any longer: all of it is used.
    const size_t used =
        sent < 0 ? stdin_waiting_.size() : static_cast<size_t>(sent);
    stdin_waiting_.erase(0, used);
    if (server_ != nullptr) server_->Consume(stream_, agent::kStdin, used);
    if (sent < 0) CloseStdin();
  }
  if (stdin_fd_ < 0) return;
  if (stdin_waiting_.empty() && stdin_end_) {
    CloseStdin();
    return;
  }
  const bool waits = !stdin_waiting_.empty();
  if (waits == stdin_watched_) return;
  if (waits) {
    stdin_watched_ = table_->loop()->Add(stdin_fd_, EPOLLOUT, this);
  } else {
    table_->loop()->Remove(stdin_fd_);
    stdin_watched_ = false;
  }
}

void Process::CloseStdin() {
  if (stdin_watched_) table_->loop()->Remove(stdin_fd_);
  stdin_watched_ = false;
  stdin_waiting_.clear();
  CloseFd(&stdin_fd_);
}

void Process::Control(const agent::ExecControl& control) {
  if (control.window.has_value() && terminal_ && outputs_[0].fd >= 0) {
    winsize window{};
    window.ws_row = control.window->rows;
    window.ws_col = control.window->columns;
    ioctl(outputs_[0].fd, TIOCSWINSZ, &window);
  }
  // Not yet reaped, so the number is still this process's.
  if (control.signal > 0 && control.signal < NSIG && !exited_) {
    kill(pid_, static_cast<int>(control.signal));
  }
  if (control.kill_tree) KillTree();
}

void Process::KillTree() {
  if (cgroup_.valid()) CgroupPool::Kill(&cgroup_);
  // Without groups: at least its session's first process group.
  if (!exited_ && pid_ > 0) kill(-pid_, SIGKILL);
}

void Process::OnTimeout() {
  timer_.reset();
  if (exited_) {
    grace_over_ = true;
    Conclude();
    return;
  }
  timed_out_ = true;
  KillTree();
}

void Process::OnExit(int status, const rusage& usage) {
  exited_ = true;
  pid_ = -1;  // The number may come again.
  const auto wall = std::chrono::steady_clock::now() - started_;
  report_.wall_ns = static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(wall).count());
  report_.cpu_ns = Nanoseconds(usage.ru_utime) + Nanoseconds(usage.ru_stime);
  report_.max_rss_bytes = static_cast<uint64_t>(usage.ru_maxrss) * 1024;
  if (WIFSIGNALED(status)) {
    report_.kind = ExitKind::kSignaled;
    report_.signal = static_cast<uint32_t>(WTERMSIG(status));
  } else {
    report_.exit_code = static_cast<uint32_t>(WEXITSTATUS(status));
  }
  if (timed_out_) {
    report_.kind = ExitKind::kTimeout;
  } else if (CgroupPool::HitMemoryLimit(cgroup_)) {
    report_.kind = ExitKind::kMemoryLimit;
  }
  if (timer_.has_value()) table_->loop()->RemoveTimer(*timer_);
  timer_.reset();
  time_left_.reset();
  CloseStdin();
  for (Output& output : outputs_) {
    if (output.fd < 0 || terminal_) continue;
    int waiting = 0;
    ioctl(output.fd, FIONREAD, &waiting);
    output.left = static_cast<size_t>(std::max(waiting, 0));
  }
  if (terminal_) {
    // What was written reaches the master a little later.
    timer_ = table_->loop()->AddTimer(
        std::chrono::steady_clock::now() + kTerminalGrace,
        [this] { OnTimeout(); });
  }
  PumpOutput();
}

void Process::OnFreeze() {
  if (!timer_.has_value() || exited_) return;
  time_left_ = timer_->first - std::chrono::steady_clock::now();
  table_->loop()->RemoveTimer(*timer_);
  timer_.reset();
}

void Process::OnThaw(std::chrono::nanoseconds frozen) {
  if (exited_) return;
  started_ += frozen;
  if (!time_left_.has_value()) return;
  timer_ = table_->loop()->AddTimer(
      std::chrono::steady_clock::now() + *time_left_, [this] { OnTimeout(); });
  time_left_.reset();
}

bool Process::IsDone(const Output& output) const {
  if (server_ != nullptr && !output.kept.empty()) return false;
  if (output.fd < 0) return true;
  if (terminal_) return grace_over_;
  return server_ == nullptr || output.left.value_or(1) == 0;
}

void Process::Conclude() {
  if (!exited_ || !IsDone(outputs_[0]) || !IsDone(outputs_[1])) return;
  for (Output& output : outputs_) {
    if (output.fd < 0) continue;
    if (output.watched) table_->loop()->Remove(output.fd);
    output.watched = false;
    table_->Drain(std::exchange(output.fd, -1));
  }
  if (server_ != nullptr) {
    std::exchange(server_, nullptr)->Finish(stream_, Encode(report_));
  } else {
    table_->ended()->Keep(
        {id_,
         report_,
         {std::move(outputs_[0].kept), std::move(outputs_[1].kept)}});
  }
  table_->Remove(id_);
}

}  // namespace catnap::guest
