#include <catch2/catch.hpp>
#include <cstdlib>
#include <string>

#include "linux/agent_guest.h"
#include "linux/linux_guest.h"

namespace catnap::vmm {
namespace {

std::string PathFrom(const char* variable) {
  // No thread changes the environment here.
  const char* path = std::getenv(variable);  // NOLINT(concurrency-mt-unsafe)
  INFO(variable << " is not set; tests/run.sh takes it from what "
                   "tests/emulated_host/prepare.sh makes");
  REQUIRE(path != nullptr);
  return path;
}

TEST_CASE("Debian's own kernel reaches user space") {
  const auto machine = test::PrepareLinux(
      PathFrom("CATNAP_STOCK_KERNEL"), {.memory_bytes = 256 << 20, .vcpus = 2});
  CHECK(test::RunLinux(*machine).reason == EndReason::kPowerOff);
  CHECK_THAT(test::ConsoleOf(*machine), Catch::Contains(test::kInitLine));
}

TEST_CASE("Debian's own kernel runs the agent, and programs by it") {
  test::AgentGuest guest(/*vcpus=*/1, PathFrom("CATNAP_STOCK_KERNEL"),
                         PathFrom("CATNAP_STOCK_MODULES"));
  CHECK(guest.Ping().ok());
  guest.CopyBusyboxIn();
  CHECK_THAT(guest.Shell("uname -r"), Catch::Contains("-amd64"));
  CHECK_THAT(guest.Shell("cat /proc/modules"),
             Catch::Contains("virtio_mmio ") &&
                 Catch::Contains("vmw_vsock_virtio_transport ") &&
                 Catch::Contains("virtio_blk ") && Catch::Contains("ext4 "));
  // Limits, too: this kernel has what an exec needs.
  agent::ExecRequest request;
  request.argv = {"/tmp/busybox", "dd",     "if=/dev/zero",
                  "of=/dev/null", "bs=60M", "count=1"};
  request.memory_limit_bytes = 16 << 20;
  const auto outcome = guest.Exec(request);
  REQUIRE(outcome.ok());
  CHECK(outcome->report.kind == agent::ExitKind::kMemoryLimit);
  CHECK_THAT(test::ConsoleOf(guest.machine()),
             !Catch::Contains("catnap-agent:"));
}

}  // namespace
}  // namespace catnap::vmm
