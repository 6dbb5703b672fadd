#include "guest/agent/init.h"

#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstdio>
#include <string_view>

#include "guest/agent/hosts.h"
#include "guest/agent/identity.h"
#include "guest/agent/network.h"
#include "guest/agent/text.h"

namespace catnap::guest {
namespace {

constexpr size_t kMaxCommandLine = 4096;
constexpr size_t kMaxModuleList = 64 << 10;
constexpr const char* kCgroup = "/sys/fs/cgroup";
constexpr const char* kNewRoot = "/newroot";
constexpr const char* kRunDirectory = "/run/catnap";
constexpr const char* kHelpers = "/lib/catnap";
constexpr const char* kHelpersSeen = "/run/catnap/lib";

void Complain(std::string_view what) {
  const std::string line = "catnap-agent: " + ErrorText(what, errno) + "\n";
  if (write(STDERR_FILENO, line.data(), line.size()) < 0) {
    // No console: there is nobody to tell.
  }
}

void Mount(const char* type, const char* path, unsigned flags,
           const char* options = nullptr) {
  mkdir(path, 0755);
  // The kernel may have mounted devtmpfs already.
  if (mount(type, path, type, flags, options) != 0 && errno != EBUSY) {
    Complain(path);
  }
}

// The last `name=value` of the command line; "" when there is none.
std::string_view Argument(std::string_view command_line,
                          std::string_view name) {
  std::string_view value;
  for (std::string_view word : Split(command_line, ' ')) {
    if (!word.starts_with(name)) continue;
    word.remove_prefix(name.size());
    value = word.substr(0, word.find('\n'));
  }
  return value;
}

void LoadModules() {
  const std::string list = ReadText("/etc/catnap/modules", kMaxModuleList);
  for (const std::string_view path : Split(list, '\n')) {
    if (path.empty()) continue;
    const int fd = open(std::string(path).c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0 || syscall(SYS_finit_module, fd, "", 0) != 0) Complain(path);
    if (fd >= 0) close(fd);
  }
}

void BringLoopbackUp() {
  const int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  ifreq request{};
  std::snprintf(request.ifr_name, sizeof(request.ifr_name), "lo");
  request.ifr_flags = IFF_UP | IFF_RUNNING;
  if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &request) != 0) Complain("lo");
  if (fd >= 0) close(fd);
}

// The initramfs's files for programs, where programs find them once the disk is
// the root: it goes along with /run. There may be none.
void OfferHelpers() {
  mkdir(kRunDirectory, 0755);
  mkdir(kHelpersSeen, 0755);
  if (mount(kHelpers, kHelpersSeen, nullptr, MS_BIND, nullptr) != 0) {
    if (errno != ENOENT) Complain(kHelpers);
    rmdir(kHelpersSeen);
    return;
  }
  if (mount(nullptr, kHelpersSeen, nullptr,
            MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV,
            nullptr) != 0) {
    Complain(kHelpersSeen);
  }
}

// The disk becomes "/". The initramfs stays below it and holds only us, whose
// memory it is anyway. Without a disk the initramfs is the root.
void EnterRootDisk(std::string_view device) {
  mkdir(kNewRoot, 0755);
  const std::string path(device);
  if (mount(path.c_str(), kNewRoot, "ext4", MS_NOATIME, nullptr) != 0) {
    if (errno != ENOENT && errno != ENXIO) Complain(path);
    return;
  }
  for (const char* mounted : {"/dev", "/proc", "/sys", "/run"}) {
    const std::string to = std::string(kNewRoot) + mounted;
    mkdir(to.c_str(), 0755);
    if (mount(mounted, to.c_str(), nullptr, MS_MOVE, nullptr) != 0) {
      Complain(to);
    }
  }
  if (chdir(kNewRoot) != 0 || mount(".", "/", nullptr, MS_MOVE, nullptr) != 0 ||
      chroot(".") != 0 || chdir("/") != 0) {
    Complain("root");
  }
}

}  // namespace

GuestConfig SetUpGuest() {
  Mount("proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC);
  Mount("sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC);
  Mount("devtmpfs", "/dev", MS_NOSUID, "mode=0755");
  Mount("tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=0755");
  OfferHelpers();
  LoadModules();
  const std::string command_line = ReadText("/proc/cmdline", kMaxCommandLine);
  const std::string_view disk = Argument(command_line, "catnap.root=");
  EnterRootDisk(disk.empty() ? "/dev/vda" : disk);
  NameTheHost();  // Where that cannot be, its address still is.
  CoverMachineId(kRunDirectory);
  Mount("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC,
        "mode=0620,gid=5,ptmxmode=0666");
  Mount("tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV, "mode=1777");
  Mount("cgroup2", kCgroup, MS_NOSUID | MS_NODEV | MS_NOEXEC);
  // Else a thread of the kernel wakes twice a second to see whether memory is
  // in pieces: for nothing while all sleep, and in pages of each fork's own.
  // Memory is still put together for who needs it.
  WriteText("/proc/sys/vm/compaction_proactiveness", "0");
  BringLoopbackUp();
  SetUpNetwork();
  // Neither traced, nor the first to go when memory is short.
  prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
  if (!WriteText("/proc/self/oom_score_adj", "-1000")) Complain("oom score");

  GuestConfig config;
  config.cgroup_root = kCgroup;
  config.run_directory = kRunDirectory;
  const std::string_view port = Argument(command_line, "catnap.port=");
  std::from_chars(port.data(), port.data() + port.size(), config.port);
  return config;
}

void PowerOff() {
  sync();
  reboot(RB_POWER_OFF);
  // A machine without power-off: process 1 must not end.
  for (;;) pause();
}

int ConnectToHost(uint32_t port) {
  const int fd =
      socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return -1;
  sockaddr_vm name{};
  name.svm_family = AF_VSOCK;
  name.svm_cid = VMADDR_CID_HOST;
  name.svm_port = port;
  timeval patience{};
  patience.tv_sec = 1;
  setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, &patience,
             sizeof(patience));
  if (connect(fd, reinterpret_cast<const sockaddr*>(&name), sizeof(name)) !=
          0 &&
      errno != EINPROGRESS) {
    close(fd);
    return -1;
  }
  return fd;
}

int ConnectError(int fd) {
  int error = 0;
  socklen_t size = sizeof(error);
  return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) == 0 ? error
                                                                  : errno;
}

}  // namespace catnap::guest
