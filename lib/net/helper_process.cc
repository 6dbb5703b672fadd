#include "net/helper_process.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>

#include "base/status.h"

namespace catnap::net {
namespace {

constexpr size_t kErrorBytes = 8192;  // More fails in the child.
constexpr int kFirstOther = HelperProcess::kSocketFd + 1;
// Not in the C library's headers of Debian 12 for C++.
constexpr auto kPidfd = static_cast<idtype_t>(3);  // P_PIDFD.

// posix_spawn's two objects, which are to be destroyed.
class SpawnSetup {
 public:
  SpawnSetup() {
    error_ = ::posix_spawn_file_actions_init(&actions);
    if (error_ != 0) return;
    error_ = ::posix_spawnattr_init(&attributes);
    if (error_ != 0) ::posix_spawn_file_actions_destroy(&actions);
  }
  ~SpawnSetup() {
    if (error_ != 0) return;
    ::posix_spawn_file_actions_destroy(&actions);
    ::posix_spawnattr_destroy(&attributes);
  }
  SpawnSetup(const SpawnSetup&) = delete;
  SpawnSetup& operator=(const SpawnSetup&) = delete;

  int error() const { return error_; }

  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;

 private:
  int error_ = 0;
};

absl::Status Configure(SpawnSetup* setup, int socket, int errors) {
  posix_spawn_file_actions_t* const actions = &setup->actions;
  sigset_t none;
  sigset_t all;
  ::sigemptyset(&none);
  ::sigfillset(&all);
  const std::array steps = {
      ::posix_spawn_file_actions_addopen(actions, 0, "/dev/null", O_RDWR, 0),
      ::posix_spawn_file_actions_addopen(actions, 1, "/dev/null", O_RDWR, 0),
      ::posix_spawn_file_actions_adddup2(actions, errors, 2),
      ::posix_spawn_file_actions_adddup2(actions, socket,
                                         HelperProcess::kSocketFd),
      // The host program may have descriptors that are not close-on-exec.
      ::posix_spawn_file_actions_addclosefrom_np(actions, kFirstOther),
      // Our threads block every signal, the helper is to take them.
      ::posix_spawnattr_setsigmask(&setup->attributes, &none),
      ::posix_spawnattr_setsigdefault(&setup->attributes, &all),
      ::posix_spawnattr_setpgroup(&setup->attributes, 0),
      ::posix_spawnattr_setflags(
          &setup->attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF |
                                  POSIX_SPAWN_SETPGROUP)};
  for (const int error : steps) {
    if (error != 0) return ErrnoError(error, "posix_spawn setup");
  }
  return absl::OkStatus();
}

// A copy of `fd` that no step of the child's start overwrites.
absl::StatusOr<base::UniqueFd> MoveUp(const base::UniqueFd& fd) {
  base::UniqueFd moved(::fcntl(fd.get(), F_DUPFD_CLOEXEC, kFirstOther));
  if (!moved.valid()) return ErrnoError(errno, "F_DUPFD_CLOEXEC");
  return moved;
}

// The last line that is not one of passt's complaints about the system's log.
std::string LastLine(std::string_view text) {
  while (!text.empty()) {
    const size_t end = text.find_last_not_of(std::string_view("\n\0 ", 3));
    if (end == std::string_view::npos) break;
    text = text.substr(0, end + 1);
    const size_t start = text.find_last_of('\n');
    const std::string_view line =
        start == std::string_view::npos ? text : text.substr(start + 1);
    if (line.find("syslog") == std::string_view::npos) {
      return std::string(line.substr(0, 200));
    }
    text = text.substr(0, text.size() - line.size());
  }
  return "";
}

// Lets the helper be this far ahead of us. A frame that its socket has no room
// for is lost, and the guest waits for TCP's timers: 0.7 MiB/s to the guest
// with the kernel's default of 208 KiB, 6 MiB/s with this.
void MakeRoom(int socket) {
  const int bytes = 4 << 20;
  // FORCE is root's; others get what net.core.wmem_max allows.
  if (::setsockopt(socket, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof(bytes)) !=
      0) {
    ::setsockopt(socket, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<HelperProcess>> HelperProcess::Start(
    const std::string& program, const std::vector<std::string>& arguments) {
  std::array<int, 2> pair{};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair.data()) != 0) {
    return ErrnoError(errno, "socketpair for {}", program);
  }
  std::unique_ptr<HelperProcess> helper(new HelperProcess());
  helper->socket_ = std::make_shared<base::UniqueFd>(pair[0]);
  const base::UniqueFd low_theirs(pair[1]);
  MakeRoom(pair[1]);
  CATNAP_ASSIGN_OR_RETURN(const base::UniqueFd theirs, MoveUp(low_theirs));
  if (::fcntl(pair[0], F_SETFL, O_NONBLOCK) != 0) {
    return ErrnoError(errno, "F_SETFL for {}", program);
  }
  CATNAP_ASSIGN_OR_RETURN(helper->errors_,
                          base::CreateMemFd("catnap-helper", kErrorBytes));
  if (::fcntl(helper->errors_.get(), F_ADD_SEALS, F_SEAL_GROW) != 0) {
    return ErrnoError(errno, "F_ADD_SEALS");
  }
  CATNAP_ASSIGN_OR_RETURN(const base::UniqueFd errors, MoveUp(helper->errors_));
  SpawnSetup setup;
  if (setup.error() != 0) return ErrnoError(setup.error(), "posix_spawn setup");
  CATNAP_RETURN_IF_ERROR(Configure(&setup, theirs.get(), errors.get()));
  std::string name = program;
  std::vector<std::string> texts = arguments;
  std::vector<char*> argv = {name.data()};
  for (std::string& text : texts) argv.push_back(text.data());
  argv.push_back(nullptr);
  std::array<char*, 1> environment = {nullptr};
  const int error =
      ::posix_spawnp(&helper->pid_, program.c_str(), &setup.actions,
                     &setup.attributes, argv.data(), environment.data());
  if (error != 0) {
    helper->pid_ = -1;
    return ErrnoError(error, "cannot start {}", program);
  }
  helper->pidfd_ = base::UniqueFd(
      static_cast<int>(::syscall(SYS_pidfd_open, helper->pid_, 0)));
  if (!helper->pidfd_.valid()) {
    // The program takes its children's ends itself, and did so already: then
    // the socket's end says the rest. Or there are no descriptors left.
    const int why = errno;
    if (why != ESRCH) {
      ::kill(helper->pid_, SIGKILL);
      ::waitpid(helper->pid_, nullptr, 0);
      return ErrnoError(why, "pidfd_open for {}", program);
    }
  }
  return helper;
}

HelperProcess::~HelperProcess() { End(); }

std::string HelperProcess::End() {
  if (!pidfd_.valid()) return "it ended";
  // How it ended by itself, if it did.
  siginfo_t info{};
  std::string how = "it was stopped";
  if (::waitid(kPidfd, static_cast<id_t>(pidfd_.get()), &info,
               WEXITED | WNOHANG | WNOWAIT) == 0 &&
      info.si_pid != 0) {
    how = info.si_code == CLD_EXITED
              ? fmt::format("it ended with status {}", info.si_status)
              : fmt::format("signal {} ended it", info.si_status);
  }
  ::syscall(SYS_pidfd_send_signal, pidfd_.get(), SIGKILL, nullptr, 0);
  while (::waitid(kPidfd, static_cast<id_t>(pidfd_.get()), &info, WEXITED) !=
             0 &&
         errno == EINTR) {
  }
  pidfd_.Reset();
  std::array<char, kErrorBytes> text{};
  const ssize_t got = ::pread(errors_.get(), text.data(), text.size(), 0);
  const std::string line = LastLine(
      std::string_view(text.data(), got < 0 ? 0 : static_cast<size_t>(got)));
  return line.empty() ? how : how + ": " + line;
}

}  // namespace catnap::net
