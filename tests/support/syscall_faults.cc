#include "support/syscall_faults.h"

#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <filesystem>
#include <regex>
#include <set>
#include <string>
#include <system_error>
#include <thread>

#include "base/status.h"
#include "base/unique_fd.h"

namespace catnap::test {
namespace {

// What the kernel's <linux/ptrace.h> says, which not every C library lets be
// included beside its own.
constexpr int kSyscallStop = SIGTRAP | 0x80;
constexpr int kEventStop = 128;  // PTRACE_EVENT_STOP
constexpr uint8_t kAtEntry = 1;  // PTRACE_SYSCALL_INFO_ENTRY
constexpr auto kOptions =
    PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_EXITKILL;

enum class Kind { kTransfer, kOfFile, kOfPath, kOfPathAt };

struct Call {
  long number;  // NOLINT(google-runtime-int): as the kernel has it.
  const char* name;
  Kind kind;
};
constexpr std::array kCalls{
    Call{SYS_read, "read", Kind::kTransfer},
    Call{SYS_write, "write", Kind::kTransfer},
    Call{SYS_pread64, "pread64", Kind::kTransfer},
    Call{SYS_pwrite64, "pwrite64", Kind::kTransfer},
    Call{SYS_preadv, "preadv", Kind::kOfFile},
    Call{SYS_pwritev, "pwritev", Kind::kOfFile},
    Call{SYS_preadv2, "preadv2", Kind::kOfFile},
    Call{SYS_pwritev2, "pwritev2", Kind::kOfFile},
    Call{SYS_fsync, "fsync", Kind::kOfFile},
    Call{SYS_fdatasync, "fdatasync", Kind::kOfFile},
    Call{SYS_ftruncate, "ftruncate", Kind::kOfFile},
    Call{SYS_fallocate, "fallocate", Kind::kOfFile},
    Call{SYS_getdents64, "getdents64", Kind::kOfFile},
    Call{SYS_copy_file_range, "copy_file_range", Kind::kOfFile},
    Call{SYS_mkdir, "mkdir", Kind::kOfPath},
    Call{SYS_rmdir, "rmdir", Kind::kOfPath},
    Call{SYS_unlink, "unlink", Kind::kOfPath},
    Call{SYS_rename, "rename", Kind::kOfPath},
    Call{SYS_link, "link", Kind::kOfPath},
    Call{SYS_openat, "openat", Kind::kOfPathAt},
    Call{SYS_openat2, "openat2", Kind::kOfPathAt},
    Call{SYS_mkdirat, "mkdirat", Kind::kOfPathAt},
    Call{SYS_unlinkat, "unlinkat", Kind::kOfPathAt},
    Call{SYS_renameat, "renameat", Kind::kOfPathAt},
    Call{SYS_renameat2, "renameat2", Kind::kOfPathAt},
    Call{SYS_linkat, "linkat", Kind::kOfPathAt},
};

const Call* FindCall(uint64_t number) {
  for (const Call& call : kCalls) {
    if (static_cast<uint64_t>(call.number) == number) return &call;
  }
  return nullptr;
}

std::string NameOfDescriptor(pid_t thread, int fd) {
  const std::string link = fd == AT_FDCWD
                               ? fmt::format("/proc/{}/cwd", thread)
                               : fmt::format("/proc/{}/fd/{}", thread, fd);
  std::error_code error;
  return std::filesystem::read_symlink(link, error).string();
}

std::string TextAt(pid_t thread, uint64_t address) {
  constexpr uint64_t kPage = 4096;
  std::array<char, 512> text{};
  iovec to{text.data(), text.size() - 1};
  // NOLINTNEXTLINE(performance-no-int-to-ptr): another process's.
  iovec from{reinterpret_cast<void*>(address), text.size() - 1};
  if (::process_vm_readv(thread, &to, 1, &from, 1, 0) > 0) return text.data();
  // The page behind may not be there.
  from.iov_len = std::min(from.iov_len, kPage - address % kPage);
  if (::process_vm_readv(thread, &to, 1, &from, 1, 0) > 0) return text.data();
  return "";
}

std::string FileOf(pid_t thread, const Call& call,
                   const user_regs_struct& registers) {
  switch (call.kind) {
    case Kind::kTransfer:
    case Kind::kOfFile:
      return NameOfDescriptor(thread, static_cast<int>(registers.rdi));
    case Kind::kOfPath:
      return TextAt(thread, registers.rdi);
    case Kind::kOfPathAt:
      break;
  }
  std::string path = TextAt(thread, registers.rsi);
  if (!path.empty() && path.front() == '/') return path;
  return NameOfDescriptor(thread, static_cast<int>(registers.rdi)) + "/" + path;
}

std::string Name(const Call& call, const std::string& file) {
  return fmt::format("{} {}", call.name, file);
}

std::string Describe(pid_t thread, const user_regs_struct& registers) {
  const Call* const call = FindCall(registers.orig_rax);
  if (call == nullptr) return fmt::format("call {}", registers.orig_rax);
  return Name(*call, FileOf(thread, *call, registers));
}

class Tracer {
 public:
  Tracer(pid_t child, const FaultPlan& plan)
      : child_(child), plan_(plan), call_(plan.call) {}

  absl::Status Attach() {
    // Threads that others make meanwhile are found when it is done again.
    for (size_t before = SIZE_MAX; before != threads_.size();) {
      before = threads_.size();
      CATNAP_RETURN_IF_ERROR(SeizeNew());
    }
    for (const pid_t thread : threads_) {
      ::ptrace(PTRACE_INTERRUPT, thread, nullptr, nullptr);
    }
    return absl::OkStatus();
  }

  absl::StatusOr<FaultEnd> Run() {
    for (;;) {
      int status = 0;
      const pid_t thread =
          ::waitpid(-1, &status, __WALL | (held_ != 0 ? WNOHANG : 0));
      if (thread < 0 && errno == EINTR) continue;
      if (thread < 0) return ErrnoError(errno, "wait for the traced child");
      if (thread == 0) {
        if (plan_.release()) {
          Resume(held_, 0);
          held_ = 0;
        } else {
          std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
        continue;
      }
      if (WIFEXITED(status) || WIFSIGNALED(status)) {
        if (thread == held_) held_ = 0;
        if (thread != child_) continue;
        end_.status = status;
        return end_;
      }
      OnStop(thread, status);
    }
  }

 private:
  absl::Status SeizeNew() {
    std::error_code error;
    for (std::filesystem::directory_iterator
             at(fmt::format("/proc/{}/task", child_), error),
         last;
         !error && at != last; at.increment(error)) {
      const pid_t thread = std::stoi(at->path().filename().string());
      if (threads_.count(thread) != 0) continue;
      if (::ptrace(PTRACE_SEIZE, thread, nullptr, kOptions) != 0) {
        // It ended, or who made it was traced already.
        if (errno == ESRCH) continue;
        if (errno == EPERM && !threads_.empty()) continue;
        return ErrnoError(errno, "trace thread {}", thread);
      }
      threads_.insert(thread);
    }
    return absl::OkStatus();
  }

  static void Resume(pid_t thread, int signal) {
    ::ptrace(PTRACE_SYSCALL, thread, nullptr, signal);
  }

  void OnStop(pid_t thread, int status) {
    const int signal = WSTOPSIG(status);
    if (signal == kSyscallStop) {
      OnCall(thread);
      return;
    }
    const int event = status >> 16;
    if (event == kEventStop && (signal == SIGSTOP || signal == SIGTSTP)) {
      ::ptrace(PTRACE_LISTEN, thread, nullptr, nullptr);
      return;
    }
    Resume(thread, event != 0 ? 0 : signal);
  }

  void OnCall(pid_t thread) {
    user_regs_struct registers{};
    __ptrace_syscall_info info{};
    if (::ptrace(PTRACE_GET_SYSCALL_INFO, thread, sizeof(info), &info) <= 0 ||
        ::ptrace(PTRACE_GETREGS, thread, nullptr, &registers) != 0) {
      return;  // It was killed.
    }
    if (info.op != kAtEntry) {
      if (failing_ == thread) {
        failing_ = 0;
        registers.rax = static_cast<uint64_t>(-int64_t{plan_.error});
        ::ptrace(PTRACE_SETREGS, thread, nullptr, &registers);
      }
      Resume(thread, 0);
      return;
    }
    if (end_.hit || !Counts(thread, registers) || ++end_.calls != plan_.at ||
        plan_.fault == Fault::kNone) {
      Resume(thread, 0);
      return;
    }
    end_.hit = true;
    end_.where = Describe(thread, registers);
    switch (plan_.fault) {
      case Fault::kNone:
        break;
      case Fault::kKill:
        ::kill(child_, SIGKILL);
        return;
      case Fault::kFail:
        failing_ = thread;
        registers.orig_rax = UINT64_MAX;  // No call.
        ::ptrace(PTRACE_SETREGS, thread, nullptr, &registers);
        break;
      case Fault::kShorten:
        registers.rdx /= 2;
        ::ptrace(PTRACE_SETREGS, thread, nullptr, &registers);
        break;
      case Fault::kHold:
        held_ = thread;
        return;
    }
    Resume(thread, 0);
  }

  bool Counts(pid_t thread, const user_regs_struct& registers) const {
    if (plan_.counts != nullptr && !plan_.counts()) return false;
    if (plan_.directory.empty()) return true;
    const Call* const call = FindCall(registers.orig_rax);
    if (call == nullptr) return false;
    if (plan_.fault == Fault::kShorten &&
        (call->kind != Kind::kTransfer || registers.rdx < 2)) {
      return false;
    }
    const std::string file = FileOf(thread, *call, registers);
    if (file.rfind(plan_.directory, 0) != 0) return false;
    return plan_.call.empty() || std::regex_search(Name(*call, file), call_);
  }

  const pid_t child_;
  const FaultPlan& plan_;
  const std::regex call_;
  std::set<pid_t> threads_;  // Seized by us.
  pid_t failing_ = 0;
  pid_t held_ = 0;
  FaultEnd end_;
};

}  // namespace

absl::StatusOr<FaultEnd> RunWithFaults(pid_t child, const FaultPlan& plan,
                                       const std::function<void()>& begin) {
  Tracer tracer(child, plan);
  CATNAP_RETURN_IF_ERROR(tracer.Attach());
  begin();
  return tracer.Run();
}

void FaultGate::Begin() {
  char byte = 'b';
  while (::write(begins_.get(), &byte, 1) < 0 && errno == EINTR) {
  }
  while (::read(traced_.get(), &byte, 1) < 0 && errno == EINTR) {
  }
  state_->counting = true;
}

absl::StatusOr<FaultEnd> LiveWithFaults(
    FaultPlan plan, const std::function<absl::Status(FaultGate&)>& live,
    std::string* error) {
  std::array<int, 2> begins{};
  std::array<int, 2> traced{};
  if (::pipe2(begins.data(), O_CLOEXEC) != 0) {
    return ErrnoError(errno, "make a pipe");
  }
  FaultGate gate;
  gate.begins_ = base::UniqueFd(begins[1]);
  const base::UniqueFd begins_end(begins[0]);
  if (::pipe2(traced.data(), O_CLOEXEC) != 0) {
    return ErrnoError(errno, "make a pipe");
  }
  gate.traced_ = base::UniqueFd(traced[0]);
  const base::UniqueFd traced_end(traced[1]);
  FaultGate::State& state = *gate.state_;
  const pid_t child = ::fork();
  if (child < 0) return ErrnoError(errno, "fork");
  if (child == 0) {
    const absl::Status status = live(gate);
    const std::string text = status.ToString();
    if (!status.ok()) text.copy(state.error.data(), state.error.size() - 1);
    ::_exit(status.ok() ? 0 : 1);
  }
  plan.counts = [&state] { return state.counting.load(); };
  // Until it begins it is on its own. Its end closes the pipe.
  gate.begins_.Reset();
  char byte = 0;
  ssize_t got = 0;
  while ((got = ::read(begins_end.get(), &byte, 1)) < 0 && errno == EINTR) {
  }
  FaultEnd end;
  if (got == 1) {
    auto run = RunWithFaults(child, plan, [&traced_end] {
      if (::write(traced_end.get(), "t", 1) != 1) std::abort();
    });
    if (!run.ok()) {
      ::kill(child, SIGKILL);
      ::waitpid(child, nullptr, 0);
      return run.status();
    }
    end = *std::move(run);
  } else if (::waitpid(child, &end.status, 0) != child) {
    return ErrnoError(errno, "wait for the child");
  }
  *error = state.error.data();
  return end;
}

bool RefuseIoUring() {
  std::array<sock_filter, 6> filter{{
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, arch)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  }};
  const sock_fprog program{static_cast<uint16_t>(filter.size()), filter.data()};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

}  // namespace catnap::test
