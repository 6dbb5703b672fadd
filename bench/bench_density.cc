// What each of many forks of a Debian guest with Python takes of the host's
// memory, by the public API. Runs where KVM runs Linux. README.md says what is
// counted.
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "catnap/catnap.h"
#include "harness.h"
#include "memory_use.h"
#include "room.h"

namespace {

using catnap::MicroVM;
using catnap::bench::Check;
using catnap::bench::MemoryUse;
using catnap::bench::Report;
using namespace std::chrono_literals;

constexpr int kDefaultForks = 100;
constexpr uint16_t kPort = 8000;
// The figures, in KiB.
constexpr double kLimit = 1.3 * 1024;
constexpr double kLimitAfterExec = 2.5 * 1024;

catnap::ImageSpec PythonImage() {
  auto spec = catnap::ImageSpec::FromTar(
      "python", catnap::bench::FindRootfs(CATNAP_SOURCE_DIR));
  spec.memory_bytes = uint64_t{512} << 20;
  spec.entrypoint = {"python3", "-m", "http.server", std::to_string(kPort)};
  spec.ready.port = kPort;
  spec.ready.timeout = 300s;
  return spec;
}

MemoryUse Now() {
  const auto use = catnap::bench::ReadMemoryUse();
  Check("memory", use.status());
  return *use;
}

// What came since `before`, for each of `forks`.
void Add(Report& report, const std::string& name, const MemoryUse& before,
         size_t forks, double limit) {
  const MemoryUse now = Now();
  const auto each = [forks](int64_t then, int64_t later) {
    return static_cast<double>(later - then) / static_cast<double>(forks);
  };
  const double guest = each(before.guest_private, now.guest_private);
  const double vmm = each(before.vmm_anonymous, now.vmm_anonymous);
  const double templates = each(before.templates, now.templates);
  const double sum = guest + vmm + templates;
  report.Add(name, "KiB", sum);
  report.Add(name + "/guest_private", "KiB", guest);
  report.Add(name + "/vmm_anonymous", "KiB", vmm);
  report.Add(name + "/templates", "KiB", templates);
  report.Add(name + "/of_host", "KiB",
             each(now.host_available, before.host_available));
  report.Add(name + "_to_limit", "ratio", sum / limit);
}

}  // namespace

int main(int argc, char** argv) {
  // --samples is the number of forks: one measurement has them all.
  Report report(catnap::bench::ParseOptions(argc, argv, kDefaultForks));
  catnap::bench::RaiseDescriptorLimit();
  const int count = report.options().samples;
  const catnap::bench::Room room;
  const auto host = catnap::Host::Open({.state_dir = room / "state"});
  Check("open the Host", host.status());
  const auto image = catnap::Image::GetOrBuild(**host, PythonImage());
  Check("build the image", image.status());
  // All of the image's memory, which grows with no fork.
  Check("prewarm", (*host)->Prewarm(*image, 0));
  const auto parent = MicroVM::Run(**host, *image);
  Check("run the parent", parent.status());
  Check("exec in the parent", parent->Exec({.argv = {"/bin/true"}}).status());
  std::this_thread::sleep_for(1s);

  const MemoryUse before = Now();
  const auto forks = parent->Fork(count);
  Check("fork", forks.status());
  std::this_thread::sleep_for(1s);
  Add(report, "density/unique_kib_per_fork", before, forks->size(), kLimit);
  for (const MicroVM& fork : *forks) {
    const auto done = fork.Exec({.argv = {"/bin/true"}});
    Check("exec", done.status());
    if (done->exit_code != 0) Check("exec", absl::InternalError("/bin/true"));
  }
  Add(report, "density/unique_kib_per_fork_after_exec", before, forks->size(),
      kLimitAfterExec);
  const int status = report.Finish();
  Check("close", (*host)->Close({.running = catnap::AtClose::kTerminate}));
  return status;
}
