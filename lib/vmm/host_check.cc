#include "vmm/host_check.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <vector>

#include "arch/x86_64/layout.h"
#include "base/byte_order.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "io/file.h"
#include "memory/userfault.h"
#include "vmm/machine.h"

namespace catnap::vmm {
namespace {

constexpr auto kFailed = absl::StatusCode::kFailedPrecondition;
// A guest that neither ends nor faults within this is not going to.
constexpr std::chrono::seconds kPatience{2};

// Of HostCheckKey(): one more when kSyscallGuest looks at more.
constexpr int kCheckVersion = 1;
constexpr char kBootId[] = "/proc/sys/kernel/random/boot_id";
constexpr char kDevice[] = "/dev/kvm";
constexpr size_t kMaxKey = 512;

// The probe's guest, in a template of the smallest memory:
constexpr uint64_t kMemoryBytes = arch::kMinMemoryBytes;
constexpr uint64_t kPml4 = 0x1000;
constexpr uint64_t kPdpt = 0x2000;
constexpr uint64_t kDirectory = 0x3000;
constexpr uint64_t kStackTop = 0x8000;
constexpr uint64_t kCode = 0x10000;
constexpr uint64_t kMissingPage = 0x20'0000;
// Present, writable, for user mode too; and 2 MiB pages.
constexpr uint64_t kUserPage = 0x7;
constexpr uint64_t kLargePage = 0x80;

// Machine code by hand; offsets in the comments.
//   mov esp, kStackTop
//   popcnt eax, esp ; cmpxchg16b [rsp-16]   instructions of every kernel
//   EFER.SCE = 1; STAR = kernel 0x10, user base 0x20; LSTAR = kernel_entry
//   rcx = user, r11 = 2; sysretq            to CPL 3
// user:
//   syscall                                 back to CPL 0
// kernel_entry:
//   ax = cs; test al, 3; jnz fail
//   power off
// fail:
//   reset
constexpr uint8_t kSyscallGuest[] = {
    0xbc, 0x00, 0x80, 0x00, 0x00,        // 00 mov esp, 0x8000
    0xf3, 0x0f, 0xb8, 0xc4,              // 05 popcnt eax, esp
    0x48, 0x0f, 0xc7, 0x4c, 0x24, 0xf0,  // 09 cmpxchg16b [rsp-16]
    0xb9, 0x80, 0x00, 0x00, 0xc0,        // 0f mov ecx, 0xc0000080
    0x0f, 0x32,                          // 14 rdmsr
    0x83, 0xc8, 0x01,                    // 16 or eax, 1
    0x0f, 0x30,                          // 19 wrmsr
    0xb9, 0x81, 0x00, 0x00, 0xc0,        // 1b mov ecx, 0xc0000081
    0x31, 0xc0,                          // 20 xor eax, eax
    0xba, 0x10, 0x00, 0x23, 0x00,        // 22 mov edx, 0x00230010
    0x0f, 0x30,                          // 27 wrmsr
    0xb9, 0x82, 0x00, 0x00, 0xc0,        // 29 mov ecx, 0xc0000082
    0xb8, 0x48, 0x00, 0x01, 0x00,        // 2e mov eax, 0x10048
    0x31, 0xd2,                          // 33 xor edx, edx
    0x0f, 0x30,                          // 35 wrmsr
    0xb9, 0x46, 0x00, 0x01, 0x00,        // 37 mov ecx, 0x10046
    0x41, 0xbb, 0x02, 0x00, 0x00, 0x00,  // 3c mov r11d, 2
    0x48, 0x0f, 0x07,                    // 42 sysretq
    0x90,                                // 45 nop
    0x0f, 0x05,                          // 46 syscall
    0x8c, 0xc8,                          // 48 mov eax, cs
    0xa8, 0x03,                          // 4a test al, 3
    0x75, 0x08,                          // 4c jnz fail
    0x66, 0xba, 0x00, 0x06,              // 4e mov dx, 0x600
    0xb0, 0x34,                          // 52 mov al, S5 | enable
    0xee,                                // 54 out dx, al
    0xf4,                                // 55 hlt
    0x66, 0xba, 0x02, 0x06,              // 56 fail: mov dx, 0x602
    0xb0, 0x01,                          // 5a mov al, reset
    0xee,                                // 5c out dx, al
    0xf4,                                // 5d hlt
};
static_assert(arch::kSleepControlPort == 0x600 && arch::kResetPort == 0x602 &&
              (arch::kSleepEnable | arch::kSleepTypeS5 << 2) == 0x34 &&
              arch::kResetValue == 1 && kStackTop == 0x8000 &&
              kCode == 0x10000);

// Reads the page that is missing, powers off when it finds what userfaultfd
// was told to put there, and resets otherwise.
constexpr uint8_t kFaultGuest[] = {
    0xa1, 0x00, 0x00, 0x20, 0x00, 0x00, 0x00,  // 00 mov eax, [0x200000]
    0x00, 0x00,                                //    (64-bit address)
    0x3d, 0x43, 0x41, 0x54, 0x4e,              // 09 cmp eax, "CATN"
    0x75, 0x08,                                // 0e jnz fail
    0x66, 0xba, 0x00, 0x06,                    // 10 mov dx, 0x600
    0xb0, 0x34,                                // 14 mov al, S5 | enable
    0xee,                                      // 16 out dx, al
    0xf4,                                      // 17 hlt
    0x66, 0xba, 0x02, 0x06,                    // 18 fail: mov dx, 0x602
    0xb0, 0x01,                                // 1c mov al, reset
    0xee,                                      // 1e out dx, al
    0xf4,                                      // 1f hlt
};
constexpr uint32_t kFaultContent = 0x4e54'4143;  // "CATN"
static_assert(kMissingPage == 0x20'0000);

absl::Status PutAt(int fd, uint64_t offset, const void* data, size_t size) {
  if (::pwrite(fd, data, size, static_cast<off_t>(offset)) !=
      static_cast<ssize_t>(size)) {
    return ErrnoError(errno, "write the probe's guest");
  }
  return absl::OkStatus();
}

// A machine that is about to run `code`, with the first GiB mapped.
absl::StatusOr<std::unique_ptr<Machine>> PrepareGuest(
    std::shared_ptr<const kvm::System> system, std::span<const uint8_t> code) {
  CATNAP_ASSIGN_OR_RETURN(const base::UniqueFd memfd,
                          base::CreateMemFd("catnap-probe", kMemoryBytes));
  std::array<uint64_t, 512> directory{};
  for (uint64_t i = 0; i < directory.size(); ++i) {
    directory[i] = i << 21 | kUserPage | kLargePage;
  }
  const uint64_t pml4_entry = kPdpt | kUserPage;
  const uint64_t pdpt_entry = kDirectory | kUserPage;
  const int fd = memfd.get();
  CATNAP_RETURN_IF_ERROR(PutAt(fd, kPml4, &pml4_entry, sizeof(pml4_entry)));
  CATNAP_RETURN_IF_ERROR(PutAt(fd, kPdpt, &pdpt_entry, sizeof(pdpt_entry)));
  CATNAP_RETURN_IF_ERROR(
      PutAt(fd, kDirectory, directory.data(), sizeof(directory)));
  CATNAP_RETURN_IF_ERROR(PutAt(fd, kCode, code.data(), code.size()));

  CATNAP_ASSIGN_OR_RETURN(
      auto machine,
      Machine::CreateShell(std::move(system), {.memory_bytes = kMemoryBytes}));
  arch::InitialState state;
  state.rip = kCode;
  state.cr3 = kPml4;
  CATNAP_RETURN_IF_ERROR(
      machine->Launch({.template_memfd = memfd.get(), .state = state}));
  return machine;
}

// Waits for the end of a guest that runs. OK when it powers off: its word for
// success.
absl::Status AwaitSuccess(Machine& machine, const char* what) {
  machine.WaitForEnd(std::chrono::steady_clock::now() + kPatience);
  machine.Stop();
  const auto exit = machine.exit();
  if (exit.has_value() && exit->reason == EndReason::kPowerOff) {
    return absl::OkStatus();
  }
  std::string how = "without a word";
  if (exit.has_value()) {
    switch (exit->reason) {
      case EndReason::kStopped:
        how = fmt::format("not within {} s", kPatience.count());
        break;
      case EndReason::kReset:
        how = "with the wrong result";
        break;
      default:
        how = fmt::format("by: {}", exit->detail);
        break;
    }
  }
  return Error(kFailed, "a tiny guest that {} ended {}", what, how);
}

// Answers the one fault of the probe's guest.
absl::Status ServeFault(const memory::Userfault& userfault, uint8_t* page) {
  pollfd wait{.fd = userfault.fd(), .events = POLLIN, .revents = 0};
  const int timeout_ms =
      static_cast<int>(std::chrono::milliseconds(kPatience).count());
  if (::poll(&wait, 1, timeout_ms) != 1) {
    return Error(kFailed, "KVM's page fault did not reach userfaultfd");
  }
  CATNAP_ASSIGN_OR_RETURN(const auto fault, userfault.NextFault());
  if (!fault.has_value()) {
    return Error(kFailed, "userfaultfd reported something else than a fault");
  }
  alignas(arch::kPageSize) std::array<uint8_t, arch::kPageSize> content{};
  base::StoreLe<uint32_t>(content.data(), kFaultContent);
  return userfault.Put(page, content.data(), content.size());
}

}  // namespace

absl::Status CheckRunsLinux(std::shared_ptr<const kvm::System> system) {
  CATNAP_ASSIGN_OR_RETURN(const auto machine,
                          PrepareGuest(std::move(system), kSyscallGuest));
  CATNAP_RETURN_IF_ERROR(machine->Start());
  absl::Status ran =
      AwaitSuccess(*machine, "enters user mode and comes back by syscall");
  if (ran.ok()) return ran;
  return WithReason(ran, ErrorReason::kKvmCannotRunLinux);
}

absl::StatusOr<std::string> HostCheckKey() {
  CATNAP_ASSIGN_OR_RETURN(std::string boot, io::ReadFile(kBootId, kMaxKey));
  while (!boot.empty() && boot.back() == '\n') boot.pop_back();
  struct stat device {};
  if (::stat(kDevice, &device) != 0) return ErrnoError(errno, "{}", kDevice);
  // A module that is loaded anew has a new device node, with a new time.
  return fmt::format("check {} boot {} device {}:{}:{} made {}.{:09}\n",
                     kCheckVersion, boot, device.st_dev, device.st_ino,
                     device.st_rdev, device.st_ctim.tv_sec,
                     device.st_ctim.tv_nsec);
}

absl::Status CheckRunsLinuxOnce(std::shared_ptr<const kvm::System> system,
                                const std::string& record) {
  const auto key = HostCheckKey();
  if (key.ok()) {
    const auto found = io::ReadFile(record, kMaxKey);
    if (found.ok() && *found == *key) return absl::OkStatus();
  }
  CATNAP_RETURN_IF_ERROR(CheckRunsLinux(std::move(system)));
  if (!key.ok()) return absl::OkStatus();
  // Whole or not at all; one that a power failure takes is of no use anyway.
  const auto file = io::AtomicFile::Create(record);
  if (file.ok() && (*file)->Append(key->data(), key->size()).ok()) {
    static_cast<void>((*file)->CommitLater());
  }
  return absl::OkStatus();
}

absl::Status CheckUserfaultfd(std::shared_ptr<const kvm::System> system) {
  CATNAP_ASSIGN_OR_RETURN(const auto userfault, memory::Userfault::Open());
  CATNAP_ASSIGN_OR_RETURN(const auto machine,
                          PrepareGuest(std::move(system), kFaultGuest));
  CATNAP_ASSIGN_OR_RETURN(
      const auto page,
      machine->memory().Slice(memory::Gpa{kMissingPage}, arch::kPageSize));
  // An anonymous page, so that nothing but userfaultfd can fill it.
  if (::mmap(page.data(), page.size(), PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED ||
      ::madvise(page.data(), page.size(), MADV_DONTFORK) != 0) {
    return ErrnoError(errno, "map the page that is missing");
  }
  CATNAP_RETURN_IF_ERROR(userfault.Register(page.data(), page.size()));
  CATNAP_RETURN_IF_ERROR(machine->Start());
  const absl::Status served = ServeFault(userfault, page.data());
  // A vCPU that waits for the page cannot be parked: let it go first.
  userfault.Unregister(page.data(), page.size());
  CATNAP_RETURN_IF_ERROR(served);
  return AwaitSuccess(*machine, "reads a page that userfaultfd delivers");
}

absl::Status CheckPagemapScan() {
  // struct pm_scan_arg of <linux/fs.h>, Linux 6.7; older headers lack it.
  struct PmScanArg {
    uint64_t size = sizeof(PmScanArg);
    uint64_t flags = 0;
    uint64_t start = 0;
    uint64_t end = 0;
    uint64_t walk_end = 0;
    uint64_t vec = 0;
    uint64_t vec_len = 0;
    uint64_t max_pages = 0;
    uint64_t category_inverted = 0;
    uint64_t category_mask = 0;
    uint64_t category_anyof_mask = 0;
    uint64_t return_mask = 0;
  };
  const base::UniqueFd pagemap(
      ::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  if (!pagemap.valid()) return ErrnoError(errno, "open /proc/self/pagemap");
  struct {
    uint64_t start, end, categories;
  } region{};
  CATNAP_ASSIGN_OR_RETURN(const base::Mapping probe,
                          base::Mapping::Anonymous(arch::kPageSize));
  probe.data()[0] = 1;
  constexpr uint64_t kPageIsPresent = 1 << 3;
  PmScanArg arg;
  arg.start = reinterpret_cast<uintptr_t>(probe.data());
  arg.end = arg.start + arch::kPageSize;
  arg.vec = reinterpret_cast<uintptr_t>(&region);
  arg.vec_len = 1;
  arg.category_mask = kPageIsPresent;
  arg.return_mask = kPageIsPresent;
  const int found = ::ioctl(pagemap.get(), _IOWR('f', 16, PmScanArg), &arg);
  if (found < 0) {
    return Error(kFailed, "PAGEMAP_SCAN: {} (Linux 6.7 and newer have it)",
                 ErrnoText(errno));
  }
  if (found != 1 || region.start != arg.start) {
    return Error(kFailed, "PAGEMAP_SCAN did not find a page that is there");
  }
  return absl::OkStatus();
}

}  // namespace catnap::vmm
