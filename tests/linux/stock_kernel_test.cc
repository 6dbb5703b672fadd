#include <catch2/catch.hpp>
#include <cstdlib>

#include "linux/linux_guest.h"

namespace catnap::vmm {
namespace {

TEST_CASE("Debian's own kernel reaches user space") {
  // No thread changes the environment here.
  const char* kernel =
      std::getenv("CATNAP_STOCK_KERNEL");  // NOLINT(concurrency-mt-unsafe)
  INFO("CATNAP_STOCK_KERNEL names the bzImage; tests/run.sh sets it");
  REQUIRE(kernel != nullptr);
  const auto machine =
      test::PrepareLinux(kernel, {.memory_bytes = 256 << 20, .vcpus = 2});
  CHECK(test::RunLinux(*machine).reason == EndReason::kPowerOff);
  CHECK_THAT(test::ConsoleOf(*machine), Catch::Contains(test::kInitLine));
}

}  // namespace
}  // namespace catnap::vmm
