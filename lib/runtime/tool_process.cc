#include "runtime/tool_process.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <limits>

#include "base/status.h"
#include "base/unique_fd.h"

namespace catnap::runtime {
namespace {

constexpr int kFirstDescriptor = 3;

struct Pipe {
  base::UniqueFd reader;
  base::UniqueFd writer;
};

absl::StatusOr<Pipe> MakePipe() {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) {
    return ErrnoError(errno, "make a pipe");
  }
  Pipe pipe{.reader = base::UniqueFd(ends[0]),
            .writer = base::UniqueFd(ends[1])};
  // Only this end: the tool waits when it is ahead.
  if (::fcntl(pipe.reader.get(), F_SETFL, O_NONBLOCK) != 0) {
    return ErrnoError(errno, "make a pipe");
  }
  return pipe;
}

// What posix_spawn() is told; its parts need to be destroyed.
class SpawnPlan {
 public:
  SpawnPlan() {
    ok_ = ::posix_spawn_file_actions_init(&actions_) == 0 &&
          ::posix_spawnattr_init(&attributes_) == 0;
  }
  SpawnPlan(const SpawnPlan&) = delete;
  SpawnPlan& operator=(const SpawnPlan&) = delete;
  ~SpawnPlan() {
    ::posix_spawn_file_actions_destroy(&actions_);
    ::posix_spawnattr_destroy(&attributes_);
  }

  // Number `to` in the child is our `from`.
  void Give(int from, int to) {
    ok_ = ok_ && ::posix_spawn_file_actions_adddup2(&actions_, from, to) == 0;
  }
  // Numbers from `first` on are closed: the host program may have descriptors
  // that are not close-on-exec.
  void CloseFrom(int first) {
    ok_ = ok_ &&
          ::posix_spawn_file_actions_addclosefrom_np(&actions_, first) == 0;
  }
  void ResetSignals() {
    sigset_t all;
    sigset_t none;
    ::sigfillset(&all);
    ::sigemptyset(&none);
    ok_ = ok_ && ::posix_spawnattr_setsigdefault(&attributes_, &all) == 0 &&
          ::posix_spawnattr_setsigmask(&attributes_, &none) == 0 &&
          // A group of its own: what a terminal sends is for the host program.
          ::posix_spawnattr_setpgroup(&attributes_, 0) == 0 &&
          ::posix_spawnattr_setflags(
              &attributes_, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK |
                                POSIX_SPAWN_SETPGROUP) == 0;
  }

  absl::StatusOr<pid_t> Spawn(const Tool& tool) {
    if (!ok_) return ErrnoError(ENOMEM, "prepare to start {}", tool.path);
    std::vector<std::string> words = tool.arguments;
    std::vector<char*> argv;
    argv.reserve(words.size() + 1);
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    std::array<char*, 1> environment = {nullptr};
    pid_t pid = -1;
    const int error =
        ::posix_spawn(&pid, tool.path.c_str(), &actions_, &attributes_,
                      argv.data(), environment.data());
    if (error == EAGAIN || error == ENOMEM) {
      return ErrnoError(error, "start {}", tool.path);
    }
    if (error != 0) {
      return Error(absl::StatusCode::kFailedPrecondition, "start {}: {}",
                   tool.path, ErrnoText(error));
    }
    return pid;
  }

 private:
  posix_spawn_file_actions_t actions_{};
  posix_spawnattr_t attributes_{};
  bool ok_ = false;
};

// A child that is killed, if it still runs, and waited for when this goes.
class Child {
 public:
  explicit Child(pid_t pid)
      : pid_(pid),
        // By this a process is never signalled that got the number after the
        // host program took the child's end.
        pidfd_(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0))) {}
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  ~Child() {
    if (pid_ > 0) End();
  }

  // Ends it if that is needed. Its exit code, if it had one to tell.
  std::optional<int> End() {
    if (pidfd_.valid()) {
      ::syscall(SYS_pidfd_send_signal, pidfd_.get(), SIGKILL, nullptr, 0);
    } else {
      ::kill(pid_, SIGKILL);
    }
    int status = 0;
    pid_t got = -1;
    do {
      got = ::waitpid(pid_, &status, 0);
    } while (got < 0 && errno == EINTR);
    pid_ = -1;
    if (got < 0 || !WIFEXITED(status)) return std::nullopt;
    return WEXITSTATUS(status);
  }

 private:
  pid_t pid_;
  const base::UniqueFd pidfd_;
};

// Takes what `reader` has, and keeps the first of it. False at its end.
bool Drain(int reader, std::string* kept) {
  std::array<char, 4096> bytes;
  while (true) {
    const ssize_t got = ::read(reader, bytes.data(), bytes.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return errno == EAGAIN;
    if (got == 0) return false;
    const size_t room = kMaxToolOutputBytes - kept->size();
    kept->append(bytes.data(), std::min(room, static_cast<size_t>(got)));
    // Once only: a tool that writes without end must not keep this thread.
    return true;
  }
}

// For poll(), rounded up, so that nothing spins before the deadline.
int TimeoutMs(
    const std::optional<std::chrono::steady_clock::time_point>& deadline) {
  if (!deadline.has_value()) return -1;
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(
      *deadline - std::chrono::steady_clock::now());
  return static_cast<int>(
      std::clamp<int64_t>(left.count(), 0, std::numeric_limits<int>::max()));
}

// Collects what the tool writes until it closes both pipes, as it does when it
// ends.
absl::Status Collect(const Tool& tool, int stop_fd, base::UniqueFd output,
                     base::UniqueFd errors, ToolEnd* end) {
  while (output.valid() || errors.valid()) {
    // poll() passes over negative numbers.
    std::array<pollfd, 3> waits = {{{stop_fd, POLLIN, 0},
                                    {output.get(), POLLIN, 0},
                                    {errors.get(), POLLIN, 0}}};
    const int ready =
        ::poll(waits.data(), waits.size(), TimeoutMs(tool.deadline));
    if (ready < 0 && errno != EINTR) return ErrnoError(errno, "poll");
    if (tool.stop.stop_requested()) {
      return absl::CancelledError("the call was stopped");
    }
    if (tool.deadline.has_value() &&
        std::chrono::steady_clock::now() >= *tool.deadline) {
      return absl::DeadlineExceededError("the call took too long");
    }
    if (ready <= 0) continue;
    if (waits[1].revents != 0 && !Drain(output.get(), &end->output)) {
      output.Reset();
    }
    if (waits[2].revents != 0 && !Drain(errors.get(), &end->errors)) {
      errors.Reset();
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ToolEnd> RunTool(const Tool& tool) {
  if (tool.stop.stop_requested()) {
    return absl::CancelledError("the call was stopped");
  }
  CATNAP_ASSIGN_OR_RETURN(const base::UniqueFd stop_fd, base::CreateEventFd());
  CATNAP_ASSIGN_OR_RETURN(Pipe output, MakePipe());
  CATNAP_ASSIGN_OR_RETURN(Pipe errors, MakePipe());
  base::UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  if (!null.valid()) return ErrnoError(errno, "open /dev/null");

  std::vector<std::pair<int, int>> given = {
      {null.get(), STDIN_FILENO},
      {output.writer.get(), STDOUT_FILENO},
      {errors.writer.get(), STDERR_FILENO}};
  given.insert(given.end(), tool.descriptors.begin(), tool.descriptors.end());
  const int first_closed =
      kFirstDescriptor + static_cast<int>(tool.descriptors.size());
  // A number that one of them has may be one that another is to get: all are
  // moved out of the way first.
  std::vector<base::UniqueFd> moved;
  SpawnPlan plan;
  for (auto& [from, to] : given) {
    base::UniqueFd copy(::fcntl(from, F_DUPFD_CLOEXEC, first_closed));
    if (!copy.valid()) return ErrnoError(errno, "duplicate a descriptor");
    plan.Give(copy.get(), to);
    moved.push_back(std::move(copy));
  }
  plan.CloseFrom(first_closed);
  plan.ResetSignals();
  CATNAP_ASSIGN_OR_RETURN(const pid_t pid, plan.Spawn(tool));
  Child child(pid);
  // Else they would never end.
  moved.clear();
  output.writer.Reset();
  errors.writer.Reset();
  null.Reset();

  const std::stop_callback on_stop(
      tool.stop, [&stop_fd] { base::SignalEventFd(stop_fd.get()); });
  ToolEnd end;
  CATNAP_RETURN_IF_ERROR(Collect(tool, stop_fd.get(), std::move(output.reader),
                                 std::move(errors.reader), &end));
  end.exit_code = child.End();
  return end;
}

}  // namespace catnap::runtime
