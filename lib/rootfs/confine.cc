#include "rootfs/confine.h"

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/landlock.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <vector>

#include "base/status.h"
#include "base/unique_fd.h"

namespace catnap::rootfs {
namespace {

// A sanitizer's runtime reserves terabytes, and looks at files at the end.
#ifdef CATNAP_SANITIZED
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

// A million names take 300 MB; decompressors take up to 128 MB. What an
// archive asks for beyond that (xz can name a dictionary of 4 GB) is refused.
constexpr rlim_t kMaxMemoryBytes = rlim_t{2} << 30;

// Every access to files by name that Landlock's first version knows, but those
// for reading.
constexpr uint64_t kDeniedAccess =
    LANDLOCK_ACCESS_FS_EXECUTE | LANDLOCK_ACCESS_FS_WRITE_FILE |
    LANDLOCK_ACCESS_FS_REMOVE_DIR | LANDLOCK_ACCESS_FS_REMOVE_FILE |
    LANDLOCK_ACCESS_FS_MAKE_CHAR | LANDLOCK_ACCESS_FS_MAKE_DIR |
    LANDLOCK_ACCESS_FS_MAKE_REG | LANDLOCK_ACCESS_FS_MAKE_SOCK |
    LANDLOCK_ACCESS_FS_MAKE_FIFO | LANDLOCK_ACCESS_FS_MAKE_BLOCK |
    LANDLOCK_ACCESS_FS_MAKE_SYM;
constexpr uint64_t kReadAccess =
    LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR;

absl::Status RestrictFiles(bool reads_directory) {
  landlock_ruleset_attr rules{};
  rules.handled_access_fs = kDeniedAccess | (reads_directory ? 0 : kReadAccess);
  const base::UniqueFd ruleset(static_cast<int>(
      ::syscall(SYS_landlock_create_ruleset, &rules, sizeof(rules), 0)));
  if (!ruleset.valid()) {
    if (errno == ENOSYS || errno == EOPNOTSUPP) return absl::OkStatus();
    return ErrnoError(errno, "make a Landlock ruleset");
  }
  if (::syscall(SYS_landlock_restrict_self, ruleset.get(), 0) != 0) {
    return ErrnoError(errno, "restrict the access to files");
  }
  return absl::OkStatus();
}

absl::Status RestrictCalls(bool reads_directory) {
  // Memory, what is open, time, the end.
  std::vector<uint32_t> allowed = {
      SYS_brk,           SYS_mmap,
      SYS_munmap,        SYS_mremap,
      SYS_mprotect,      SYS_madvise,
      SYS_read,          SYS_pread64,
      SYS_readv,         SYS_write,
      SYS_pwrite64,      SYS_writev,
      SYS_lseek,         SYS_fstat,
      SYS_fsync,         SYS_fdatasync,
      SYS_ftruncate,     SYS_fallocate,
      SYS_close,         SYS_fcntl,
      SYS_futex,         SYS_getrandom,
      SYS_clock_gettime, SYS_gettimeofday,
      SYS_time,          SYS_getpid,
      SYS_gettid,        SYS_tgkill,
      SYS_rt_sigaction,  SYS_rt_sigprocmask,
      SYS_rt_sigreturn,  SYS_exit,
      SYS_exit_group,    SYS_restart_syscall,
      SYS_newfstatat};  // What fstat() is in libraries.
  if (reads_directory) {
    // By openat2() only, which Landlock keeps to reading.
    allowed.insert(allowed.end(), {SYS_openat2, SYS_getdents64, SYS_readlinkat,
                                   SYS_flistxattr, SYS_fgetxattr});
  }
  const auto load = [](size_t offset) {
    return sock_filter(
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, static_cast<uint32_t>(offset)));
  };
  const auto answer = [](uint32_t what) {
    return sock_filter(BPF_STMT(BPF_RET | BPF_K, what));
  };
  std::vector<sock_filter> filter = {
      load(offsetof(seccomp_data, arch)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0),
      answer(SECCOMP_RET_KILL_PROCESS), load(offsetof(seccomp_data, nr))};
  for (const uint32_t call : allowed) {
    filter.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1));
    filter.push_back(answer(SECCOMP_RET_ALLOW));
  }
  filter.push_back(answer(SECCOMP_RET_ERRNO | EPERM));
  const sock_fprog program{.len = static_cast<uint16_t>(filter.size()),
                           .filter = filter.data()};
  if (::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0 &&
      errno != EINVAL && errno != ENOSYS) {
    return ErrnoError(errno, "restrict the system calls");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Confine(const Confinement& confinement) {
  const rlimit no_core{.rlim_cur = 0, .rlim_max = 0};
  if (::setrlimit(RLIMIT_CORE, &no_core) != 0) {
    return ErrnoError(errno, "switch core dumps off");
  }
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) {
    return ErrnoError(errno, "give new privileges up");
  }
  if (kSanitized) return absl::OkStatus();
  rlimit memory{};
  if (::getrlimit(RLIMIT_AS, &memory) != 0) {
    return ErrnoError(errno, "read the limit of memory");
  }
  if (memory.rlim_cur > kMaxMemoryBytes) {
    memory.rlim_cur = kMaxMemoryBytes;
    if (::setrlimit(RLIMIT_AS, &memory) != 0) {
      return ErrnoError(errno, "limit the memory");
    }
  }
  CATNAP_RETURN_IF_ERROR(RestrictFiles(confinement.reads_directory));
  CATNAP_RETURN_IF_ERROR(RestrictCalls(confinement.reads_directory));
  return absl::OkStatus();
}

}  // namespace catnap::rootfs
