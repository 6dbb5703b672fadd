#include "vmm/host_check.h"

#include <catch2/catch.hpp>

#include "base/status.h"
#include "catnap/host.h"
#include "support/machine_fixture.h"

namespace catnap {
namespace {

TEST_CASE("A device that is not there is told apart from one that may not") {
  const auto missing = kvm::System::Open("/dev/no-such-kvm");
  CHECK(missing.status().code() == absl::StatusCode::kFailedPrecondition);
  CHECK(ReasonOf(missing.status()) == ErrorReason::kNoKvmDevice);
  CHECK_THAT(missing.status().ToString(), Catch::Contains("kvm_intel"));
}

TEST_CASE("A file that is not KVM is not taken for it") {
  const auto wrong = kvm::System::Open("/dev/null");
  CHECK(wrong.status().code() == absl::StatusCode::kFailedPrecondition);
  CHECK(ReasonOf(wrong.status()) == ErrorReason::kKvmCannotRunLinux);
}

TEST_CASE("Probe says the same as the checks it is made of") {
  const HostReport report = Host::Probe();
  const auto system = test::OpenKvm();
  CHECK(report.kvm);
  CHECK(report.kvm_runs_linux == vmm::CheckRunsLinux(system).ok());
  CHECK(report.userfaultfd == vmm::CheckUserfaultfd(system).ok());
  CHECK(report.pagemap_scan == vmm::CheckPagemapScan().ok());
  CHECK(report.usable.ok() == report.kvm_runs_linux);
}

TEST_CASE("Probe's summary says what follows from a KVM that cannot") {
  const HostReport report = Host::Probe();
  INFO(report.summary);
  CHECK_THAT(report.summary,
             Catch::Contains(report.usable.ok() ? "can be started"
                                                : "cannot be started here"));
  CHECK_THAT(report.summary, Catch::Contains("descriptors"));
  CHECK((report.usable.ok() ||
         ReasonOf(report.usable) == ErrorReason::kKvmCannotRunLinux));
}

}  // namespace
}  // namespace catnap
