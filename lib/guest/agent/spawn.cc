#include "guest/agent/spawn.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <string_view>

#include "guest/agent/text.h"

namespace catnap::guest {
namespace {

constexpr std::string_view kDefaultPath =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
constexpr unsigned kCapabilities = 64;

// What the child needs, laid out before it is there: it shares our memory and
// may not allocate.
struct ChildPlan {
  const SpawnPlan* plan;
  std::vector<char*> argv;
  std::vector<char*> env;
  std::vector<std::string> programs;  // Tried in order.
  // The child's answer.
  int error = 0;
  const char* step = nullptr;
};

std::vector<char*> Pointers(const std::vector<std::string>& texts) {
  std::vector<char*> pointers;
  pointers.reserve(texts.size() + 1);
  for (const std::string& text : texts) {
    pointers.push_back(const_cast<char*>(text.c_str()));
  }
  pointers.push_back(nullptr);
  return pointers;
}

std::vector<std::string> Programs(const SpawnPlan& plan) {
  const std::string& name = plan.argv[0];
  if (name.find('/') != std::string::npos) return {name};
  std::string_view path = kDefaultPath;
  for (const std::string_view variable : plan.env) {
    if (variable.starts_with("PATH=")) path = variable.substr(5);
  }
  std::vector<std::string> programs;
  for (const std::string_view folder : Split(path, ':')) {
    programs.push_back(std::string(folder.empty() ? "." : folder) + "/" + name);
  }
  return programs;
}

// Raw, since the library's wrappers would make all threads follow, of which
// there are none, and touch locks that belong to the parent.
bool BecomeUser(const User& user) {
  return syscall(SYS_setgroups, user.groups.size(), user.groups.data()) == 0 &&
         syscall(SYS_setresgid, user.gid, user.gid, user.gid) == 0 &&
         syscall(SYS_setresuid, user.uid, user.uid, user.uid) == 0;
}

[[noreturn]] void Give(ChildPlan* child, const char* step) {
  child->error = errno;
  child->step = step;
  _exit(127);
}

// In the child, on the parent's stack and memory: system calls only.
[[noreturn, gnu::noinline]] void RunChild(ChildPlan* child) {
  const SpawnPlan& plan = *child->plan;
  setsid();
  if (plan.terminal && ioctl(plan.stdin_fd, TIOCSCTTY, 0) != 0) {
    Give(child, "controlling terminal");
  }
  if (dup2(plan.stdin_fd, 0) < 0 || dup2(plan.stdout_fd, 1) < 0 ||
      dup2(plan.stderr_fd, 2) < 0) {
    Give(child, "dup2");
  }
  umask(022);
  if (plan.reset_oom_score) {
    const int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (fd >= 0 && write(fd, "0", 1) != 1) Give(child, "oom_score_adj");
  }
  for (unsigned i = 0; i < kCapabilities; ++i) {
    if ((plan.dropped_capabilities >> i & 1) != 0) {
      prctl(PR_CAPBSET_DROP, i, 0, 0, 0);  // One that is unknown is not there.
    }
  }
  if (plan.change_user && !BecomeUser(plan.user)) Give(child, "set user");
  if (chdir(plan.cwd.c_str()) != 0) Give(child, "working directory");
  sigset_t none;
  sigemptyset(&none);
  pthread_sigmask(SIG_SETMASK, &none, nullptr);
  int error = ENOENT;
  for (const std::string& program : child->programs) {
    execve(program.c_str(), child->argv.data(), child->env.data());
    // One that may not be run is remembered, a later one that may is taken.
    if (errno != ENOENT && errno != ENOTDIR) error = errno;
  }
  errno = error;
  Give(child, nullptr);
}

// Inline assembly and not syscall(): the child would return through that
// function's frame, and the parent then into what the child left of it. `child`
// is an operand so that the compiler knows that it is written to.
[[gnu::noinline]] pid_t Clone(clone_args* args, ChildPlan* child) {
  long result = SYS_clone3;  // NOLINT(google-runtime-int): a register.
  asm volatile("syscall"
               : "+a"(result)
               : "D"(args), "S"(sizeof(*args)), "d"(child)
               : "rcx", "r11", "memory");
  if (result == 0) RunChild(child);
  return static_cast<pid_t>(result);
}

}  // namespace

SpawnResult Spawn(const SpawnPlan& plan) {
  ChildPlan child{.plan = &plan,
                  .argv = Pointers(plan.argv),
                  .env = Pointers(plan.env),
                  .programs = Programs(plan)};
  clone_args args{};
  args.flags = CLONE_VM | CLONE_VFORK;
  args.exit_signal = SIGCHLD;
  if (plan.cgroup_fd >= 0) {
    args.flags |= CLONE_INTO_CGROUP;
    args.cgroup = static_cast<uint64_t>(plan.cgroup_fd);
  }
  const pid_t pid = Clone(&args, &child);
  SpawnResult result;
  if (pid < 0) {
    result.exit_code = 126;
    result.error = ErrorText("clone", -pid);
    return result;
  }
  if (child.error == 0) {
    result.pid = pid;
    return result;
  }
  waitpid(pid, nullptr, 0);
  const bool missing = child.step == nullptr &&
                       (child.error == ENOENT || child.error == ENOTDIR);
  result.exit_code = missing ? 127 : 126;
  result.error =
      ErrorText(child.step == nullptr ? plan.argv[0] : std::string(child.step),
                child.error);
  return result;
}

}  // namespace catnap::guest
