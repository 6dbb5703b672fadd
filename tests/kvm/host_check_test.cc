#include "vmm/host_check.h"

#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

#include "base/status.h"
#include "catnap/host.h"
#include "support/machine_fixture.h"
#include "support/temporary_directory.h"

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

std::string Content(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

TEST_CASE(
    "That KVM runs Linux is looked at once for each boot of the machine") {
  const test::TemporaryDirectory directory;
  const std::string record = directory.path() + "/kvm-checked";
  const auto key = vmm::HostCheckKey();
  INFO(key.status().ToString());
  REQUIRE(key.ok());
  const auto system = test::OpenKvm();
  const absl::Status checked = vmm::CheckRunsLinux(system);

  // Nothing recorded, and what another boot or KVM left: it is looked at, and
  // only success stays.
  std::string other = *key;
  const size_t boot = other.find("boot ");
  REQUIRE(boot != std::string::npos);
  other[boot + 5] = other[boot + 5] == '0' ? '1' : '0';
  for (const std::string& before : {std::string(), other, *key + "x"}) {
    if (!before.empty()) std::ofstream(record) << before;
    CHECK(vmm::CheckRunsLinuxOnce(system, record).code() == checked.code());
    CHECK(Content(record) == (checked.ok() ? *key : before));
    std::filesystem::remove(record);
  }

  // Recorded: nothing is made to look, whatever would be found.
  std::ofstream(record) << *key;
  CHECK(vmm::CheckRunsLinuxOnce(nullptr, record).ok());
  // Where nothing can be recorded it is looked at each time.
  CHECK(vmm::CheckRunsLinuxOnce(system, directory.path() + "/none/x").code() ==
        checked.code());
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
