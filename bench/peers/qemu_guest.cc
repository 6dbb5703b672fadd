#include "peers/qemu_guest.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string_view>
#include <utility>

#include "base/status.h"
#include "guest.h"

extern "C" char** environ;

namespace catnap::bench {
namespace {

constexpr int kTimeoutMs = 300'000;
// Written so that the echo of the command does not hold it.
constexpr char kReady[] = "@@READY@@";
constexpr char kMark[] = "@@END@@";
constexpr char kMarkCommand[] = "status=$?; echo; echo @@\"END\"@@ $status\n";

// What our default baseline does not show a guest either: the kernel patches
// itself after these, and both should run the same code.
constexpr char kCpu[] =
    "host,-erms,-fsrm,-pcid,-invpcid,-fsgsbase,-smap,-smep,-rdrand,-rdseed,"
    "-xsave,-avx,-avx2,-adx,-clflushopt,-clwb,-pku,-umip,-sha-ni,-aes,"
    "-pclmulqdq,-f16c,-fma,-movbe,-pdpe1gb";

// Process 1 until the root disk is found, by its serial: which name a disk has
// depends on the order in which QEMU puts devices on its buses. It says when
// the shell's terminal is open: what comes before may be lost.
constexpr char kInit[] = R"(#!/busybox sh
/busybox mount -t devtmpfs devtmpfs /dev
/busybox mount -t proc proc /proc
/busybox mount -t sysfs sysfs /sys
cd /sys/block
for disk in vd*; do
  read -r serial < $disk/serial
  echo $disk > /serial.$serial
done
read -r disk < /serial.root
/busybox mount -t ext4 -o ro /dev/$disk /root
for directory in dev proc sys; do
  /busybox mount -o move /$directory /root/$directory
done
/busybox mount -t tmpfs tmpfs /root/tmp
/busybox cp /serial.* /root/tmp
/busybox stty -echo
echo @@READY@@
PS1= PS2= exec /busybox switch_root /root /bin/sh
)";

// An initramfs of busybox and kInit at `path`.
void MakeInitramfs(const std::string& path) {
  namespace fs = std::filesystem;
  const std::string tree = path + ".tree";
  for (const char* name : {"dev", "proc", "sys", "root"}) {
    fs::create_directories(tree + "/" + name);
  }
  fs::copy_file("/bin/busybox", tree + "/busybox");
  std::ofstream(tree + "/init") << kInit;
  fs::permissions(tree + "/init", fs::perms::owner_all);
  const std::string command =
      "cd " + tree + " && find . | cpio -o -H newc --quiet > " + path;
  // No other thread waits for children.
  // NOLINTNEXTLINE(concurrency-mt-unsafe,cert-env33-c)
  if (std::system(command.c_str()) != 0) {
    Check("initramfs", absl::InternalError("cpio failed"));
  }
}

std::vector<std::string> Arguments(const QemuGuest::Options& options) {
  std::vector<std::string> words = {
      // A killed bench takes it along.
      "setpriv",
      "--pdeathsig",
      "KILL",
      "qemu-system-x86_64",
      "-M",
      "microvm,pic=off,pit=off,rtc=off,acpi=on,ioapic2=off,x-option-roms=off",
      "-M",
      "auto-kernel-cmdline=off",
      "-bios",
      "qboot.rom",
      "-cpu",
      kCpu,
      "-smp",
      "1",
      "-m",
      std::to_string(options.memory_mib),
      "-accel",
      "kvm,kernel-irqchip=on",
      "-nodefaults",
      "-no-user-config",
      "-display",
      "none",
      "-no-reboot",
      "-serial",
      "stdio",
      "-global",
      "virtio-mmio.force-legacy=false",
      "-object",
      "iothread,id=io",
      "-kernel",
      std::string(CATNAP_GUEST_DIR) + "/vmlinux",
      "-append",
      "console=ttyS0 panic=-1 quiet rdinit=/init",
      "-initrd",
      options.initramfs};
  const auto add = [&words](const char* option, std::string value) {
    words.emplace_back(option);
    words.push_back(std::move(value));
  };
  for (const QemuGuest::Disk& disk : options.disks) {
    add("-blockdev",
        fmt::format("driver=raw,node-name={0},read-only={1},discard=unmap,"
                    "cache.direct={2},file.driver=file,file.filename={3},"
                    "file.aio=io_uring,file.cache.direct={2},"
                    "file.locking=off",
                    disk.serial, disk.read_only ? "on" : "off",
                    disk.direct ? "on" : "off", disk.path));
    add("-device", fmt::format("virtio-blk-device,drive={0},serial={0},"
                               "iothread=io",
                               disk.serial));
  }
  if (!options.network_socket.empty()) {
    add("-netdev", "stream,id=net,server=off,addr.type=unix,addr.path=" +
                       options.network_socket);
    add("-device", "virtio-net-device,netdev=net,mac=02:63:61:74:6e:02");
  }
  if (!options.control_socket.empty()) {
    add("-qmp", "unix:" + options.control_socket + ",server=on,wait=off");
  }
  if (options.incoming) add("-incoming", "defer");
  return words;
}

}  // namespace

QemuGuest::QemuGuest(const Options& options) {
  // What comes in was started with the same one.
  if (!options.incoming) MakeInitramfs(options.initramfs);
  std::array<int, 2> in{};
  std::array<int, 2> out{};
  if (::pipe2(in.data(), O_CLOEXEC) != 0 ||
      ::pipe2(out.data(), O_CLOEXEC) != 0) {
    Check("pipe", absl::InternalError("failed"));
  }
  to_ = base::UniqueFd(in[1]);
  from_ = base::UniqueFd(out[0]);
  std::vector<std::string> words = Arguments(options);
  std::vector<char*> argv;
  argv.reserve(words.size() + 1);
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, in[0], 0);
  ::posix_spawn_file_actions_adddup2(&actions, out[1], 1);
  const int error =
      ::posix_spawnp(&pid_, argv[0], &actions, nullptr, argv.data(), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  ::close(in[0]);
  ::close(out[1]);
  if (error != 0) Check("start QEMU", ErrnoError(error, "posix_spawn"));
  if (!options.incoming) ReadTo(kReady);
}

QemuGuest::~QemuGuest() {
  if (pid_ <= 0) return;
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
}

std::string QemuGuest::ReadTo(const std::string& mark) {
  while (true) {
    const size_t at = console_.find(mark);
    const size_t end = at == std::string::npos ? at : console_.find('\n', at);
    if (end != std::string::npos) {
      std::string text = console_.substr(0, end);
      console_.erase(0, end + 1);
      return text;
    }
    pollfd wait = {.fd = from_.get(), .events = POLLIN, .revents = 0};
    std::array<char, 4096> buffer{};
    const ssize_t got = ::poll(&wait, 1, kTimeoutMs) == 1
                            ? ::read(from_.get(), buffer.data(), buffer.size())
                            : -1;
    if (got <= 0) {
      Check("QEMU", absl::UnavailableError("no answer:\n" + console_));
    }
    for (const char c :
         std::string_view(buffer.data(), static_cast<size_t>(got))) {
      if (on_tick_ != nullptr && c == tick_) {
        on_tick_();
      } else if (c != '\r') {
        console_.push_back(c);
      }
    }
  }
}

std::string QemuGuest::DiskOf(const std::string& serial) {
  const std::string text =
      Shell("read -r disk < /tmp/serial." + serial + "; echo $disk");
  const size_t start = text.find("vd");
  if (start == std::string::npos) Check("QEMU", absl::NotFoundError(serial));
  return text.substr(start, 3);
}

void QemuGuest::Type(const std::string& text) {
  if (::write(to_.get(), text.data(), text.size()) !=
      static_cast<ssize_t>(text.size())) {
    Check("QEMU", absl::UnavailableError("cannot write: " + text));
  }
}

std::string QemuGuest::Listen(const std::string& commands, char tick,
                              const std::function<void()>& on_tick) {
  tick_ = tick;
  on_tick_ = on_tick;
  std::string text = Shell(commands);
  on_tick_ = nullptr;
  return text;
}

std::string QemuGuest::Shell(const std::string& commands) {
  Type("{ " + commands + "\n}; " + kMarkCommand);
  std::string text = ReadTo(kMark);
  const size_t at = text.find(kMark);
  const std::string status = text.substr(at + sizeof(kMark));
  text.resize(at);
  if (status != "0") {
    Check("QEMU", absl::InternalError(commands + " ended with " + status +
                                      ":\n" + text));
  }
  return text;
}

}  // namespace catnap::bench
