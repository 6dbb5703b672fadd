// Boots a Linux kernel in one MicroVM, shows its console and says how long
// each stage took. It uses the machine layer that MicroVM will stand on.
//
//   boot_guest KERNEL INITRAMFS [--memory-mib N] [--vcpus N]
//              [--command-line TEXT] [--until TEXT] [--timeout SECONDS]
//              [--json]
//
// Exit status 0: the line that contains TEXT ("catnap-init:") came and the
// guest switched itself off.
#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <string>
#include <string_view>

#include "base/status.h"
#include "base/unique_fd.h"
#include "kvm/system.h"
#include "vmm/machine.h"

namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  std::string kernel;
  std::string initramfs;
  uint64_t memory_mib = 128;
  int vcpus = 1;
  std::string command_line = "console=ttyS0 quiet panic=-1";
  std::string until = "catnap-init:";
  int timeout_seconds = 60;
  bool json = false;
};

template <typename Number>
bool ParseNumber(std::string_view text, Number& into) {
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), into);
  return error == std::errc() && end == text.data() + text.size();
}

bool ParseOptions(int argc, char** argv, Options& options) {
  int positional = 0;
  for (int i = 1; i < argc; ++i) {
    const std::string_view word = argv[i];
    if (word == "--json") {
      options.json = true;
      continue;
    }
    if (word.substr(0, 2) != "--") {
      (positional++ == 0 ? options.kernel : options.initramfs) = word;
      continue;
    }
    if (++i == argc) return false;
    const std::string_view value = argv[i];
    bool good = true;
    if (word == "--memory-mib") {
      good = ParseNumber(value, options.memory_mib);
    } else if (word == "--vcpus") {
      good = ParseNumber(value, options.vcpus);
    } else if (word == "--timeout") {
      good = ParseNumber(value, options.timeout_seconds);
    } else if (word == "--command-line") {
      options.command_line = value;
    } else if (word == "--until") {
      options.until = value;
    } else {
      good = false;
    }
    if (!good) return false;
  }
  return positional == 2;
}

double MillisBetween(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double, std::milli>(to - from).count();
}

absl::StatusOr<catnap::base::UniqueFd> OpenFile(const std::string& path) {
  catnap::base::UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return catnap::ErrnoError(errno, "open {}", path);
  return fd;
}

absl::Status Boot(const Options& options) {
  const Clock::time_point begin = Clock::now();
  CATNAP_ASSIGN_OR_RETURN(const auto kernel, OpenFile(options.kernel));
  CATNAP_ASSIGN_OR_RETURN(const auto initramfs, OpenFile(options.initramfs));
  CATNAP_ASSIGN_OR_RETURN(const auto system, catnap::kvm::System::Open());
  const Clock::time_point opened = Clock::now();
  CATNAP_ASSIGN_OR_RETURN(const auto machine,
                          catnap::vmm::Machine::CreateShell(
                              system, {.memory_bytes = options.memory_mib << 20,
                                       .vcpus = options.vcpus}));
  const Clock::time_point created = Clock::now();

  // Written on a vCPU's thread, read after the machine has ended.
  Clock::time_point running{};
  std::atomic<bool> seen{false};
  Clock::time_point line_at{};
  catnap::vmm::LaunchConfig launch;
  launch.linux_kernel = {.kernel_fd = kernel.get(),
                         .initramfs_fd = initramfs.get(),
                         .command_line = options.command_line};
  launch.on_console_line = [&](std::string_view line, uint64_t) {
    if (!seen.load() && line.find(options.until) != std::string_view::npos) {
      line_at = Clock::now();
      seen.store(true);
    }
    if (!options.json) {
      std::printf("guest %8.1f ms | %.*s\n",
                  MillisBetween(running, Clock::now()),
                  static_cast<int>(line.size()), line.data());
    }
  };
  CATNAP_RETURN_IF_ERROR(machine->Launch(std::move(launch)));
  const Clock::time_point loaded = Clock::now();
  running = loaded;
  CATNAP_RETURN_IF_ERROR(machine->Start());
  machine->WaitForEnd(loaded + std::chrono::seconds(options.timeout_seconds));
  const Clock::time_point ended = Clock::now();
  machine->Stop();
  const auto exit = machine->exit();
  if (!seen.load()) {
    return catnap::Error(
        absl::StatusCode::kDeadlineExceeded,
        "no line with \"{}\" came from the guest, which ended by: {} ({})",
        options.until, catnap::vmm::NameOf(exit->reason), exit->detail);
  }
  const Clock::time_point started = *machine->started_at();
  std::printf(
      options.json
          ? "{\"open_ms\": %.3f, \"shell_ms\": %.3f, \"load_ms\": %.3f, "
            "\"run_to_line_ms\": %.3f, \"line_to_end_ms\": %.3f, "
            "\"spawn_to_line_ms\": %.3f}\n"
          : "stage             ms\n"
            "open files, KVM   %9.3f\n"
            "create the shell  %9.3f\n"
            "load the kernel   %9.3f\n"
            "run to its line   %9.3f   (first KVM_RUN to user space)\n"
            "line to the end   %9.3f\n"
            "begin to line     %9.3f\n",
      MillisBetween(begin, opened), MillisBetween(opened, created),
      MillisBetween(created, loaded), MillisBetween(started, line_at),
      MillisBetween(line_at, ended), MillisBetween(begin, line_at));
  if (exit->reason != catnap::vmm::EndReason::kPowerOff) {
    return catnap::Error(absl::StatusCode::kUnavailable,
                         "the guest ended by: {} ({})",
                         catnap::vmm::NameOf(exit->reason), exit->detail);
  }
  return absl::OkStatus();
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  if (!ParseOptions(argc, argv, options)) {
    std::fprintf(stderr,
                 "usage: boot_guest KERNEL INITRAMFS [--memory-mib N] "
                 "[--vcpus N] [--command-line TEXT] [--until TEXT] "
                 "[--timeout SECONDS] [--json]\n");
    return 2;
  }
  const absl::Status status = Boot(options);
  if (!status.ok()) {
    std::fprintf(stderr, "boot_guest: %s\n", status.ToString().c_str());
    return 1;
  }
  return 0;
}
