#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <system_error>
#include <utility>

#include "base/status.h"
#include "base/unique_fd.h"
#include "catnap/host.h"
#include "io/ring.h"
#include "vmm/host_check.h"

namespace catnap {
namespace {

// An open file in `dir` without a name, so that nothing can be left behind.
base::UniqueFd OpenUnnamed(const std::filesystem::path& dir) {
  return base::UniqueFd(
      ::open(dir.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, S_IRUSR | S_IWUSR));
}

absl::Status CheckReflink() {
  std::error_code error;
  const auto dir = std::filesystem::temp_directory_path(error);
  if (error) return ErrnoError(error.value(), "find the temporary directory");
  const base::UniqueFd from = OpenUnnamed(dir);
  const base::UniqueFd to = OpenUnnamed(dir);
  if (!from.valid() || !to.valid()) {
    return ErrnoError(errno, "make a file in {}", dir.string());
  }
  const std::string block(4096, 'x');
  if (::pwrite(from.get(), block.data(), block.size(), 0) !=
      static_cast<ssize_t>(block.size())) {
    return ErrnoError(errno, "write a file in {}", dir.string());
  }
  if (::ioctl(to.get(), FICLONE, from.get()) != 0) {
    return Error(absl::StatusCode::kFailedPrecondition,
                 "the file system of {} does not clone files ({})",
                 dir.string(), ErrnoText(errno));
  }
  return absl::OkStatus();
}

std::string DescriptorLimit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return "unknown";
  return std::to_string(limit.rlim_cur);
}

std::string MappingLimit() {
  std::ifstream in("/proc/sys/vm/max_map_count");
  std::string text;
  in >> text;
  return text.empty() ? "unknown" : text;
}

std::string Sentence(const char* subject, const absl::Status& status,
                     const char* otherwise) {
  if (status.ok()) return fmt::format(" {}: yes.", subject);
  return fmt::format(" {}: no, {} ({}).", subject, otherwise,
                     std::string(status.message()));
}

}  // namespace

HostReport Host::Probe() {
  HostReport report;
  absl::Status userfaultfd = absl::FailedPreconditionError("no KVM to try");
  auto system = kvm::System::Open();
  report.kvm = system.ok();
  report.usable = system.status();
  if (system.ok()) {
    report.usable = vmm::CheckRunsLinux(*system);
    report.kvm_runs_linux = report.usable.ok();
    userfaultfd = vmm::CheckUserfaultfd(*system);
    report.userfaultfd = userfaultfd.ok();
  }
  const absl::Status pagemap_scan = vmm::CheckPagemapScan();
  report.pagemap_scan = pagemap_scan.ok();
  const absl::Status reflink = CheckReflink();
  report.reflink = reflink.ok();
  const absl::Status io_uring = io::Ring::Create(8).status();
  report.io_uring = io_uring.ok();

  if (report.usable.ok()) {
    report.summary = "KVM here runs Linux guests: MicroVMs can be started.";
  } else {
    report.summary = fmt::format("MicroVMs cannot be started here: {}.",
                                 std::string(report.usable.message()));
    if (ReasonOf(report.usable) == ErrorReason::kKvmCannotRunLinux) {
      report.summary +=
          " /dev/kvm answers, but what is behind it does not run an "
          "unmodified kernel; use a machine with VMX or SVM, or switch on "
          "nested virtualisation in the hypervisor below.";
    }
  }
  report.summary += Sentence("userfaultfd", userfaultfd,
                             "restored memory is loaded before a guest runs");
  report.summary += Sentence("PAGEMAP_SCAN", pagemap_scan,
                             "a guest's own pages are found more slowly");
  report.summary += Sentence("File cloning", reflink, "files are copied");
  report.summary +=
      Sentence("io_uring", io_uring, "a few threads do the file work");
  report.summary += fmt::format(
      " Limits: {} descriptors (a running 1-vCPU VM takes up to 12), {} memory "
      "mappings.",
      DescriptorLimit(), MappingLimit());
  return report;
}

}  // namespace catnap
