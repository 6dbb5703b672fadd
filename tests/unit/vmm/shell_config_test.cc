#include <catch2/catch.hpp>
#include <csignal>

#include "vmm/machine.h"

namespace catnap::vmm {
namespace {

TEST_CASE("Validate names the option, its value and the limit") {
  const auto [config, text] = GENERATE(table<ShellConfig, const char*>({
      {{.vcpus = 0}, "vcpus is 0, must be 1 to 32"},
      {{.vcpus = 33}, "vcpus is 33, must be 1 to 32"},
      {{.vcpus = -1}, "vcpus is -1, must be 1 to 32"},
      {{.memory_bytes = 0}, "memory_bytes is 0, must be 67108864 to"},
      {{.memory_bytes = 63 << 20}, "memory_bytes is 66060288, must be"},
      {{.memory_bytes = 65ull << 30}, "must be 67108864 to 68719476736"},
      {{.memory_bytes = (64 << 20) + 4096}, "must be a multiple of 1048576"},
      {{.device_pages = -1}, "device_pages is -1, must be 0 to 18"},
      {{.device_pages = 19}, "device_pages is 19, must be 0 to 18"},
      {{.kick_signal = SIGTERM}, "kick_signal is 15"},
  }));
  const absl::Status status = Validate(config);
  CHECK(status.code() == absl::StatusCode::kInvalidArgument);
  CHECK_THAT(status.ToString(), Catch::Contains(text));
}

TEST_CASE("Validate accepts the limits themselves") {
  CHECK(Validate({.memory_bytes = 64 << 20, .vcpus = 1}).ok());
  CHECK(Validate({.memory_bytes = 64 << 20, .vcpus = 32, .device_pages = 18})
            .ok());
}

TEST_CASE("Validate says how much memory the machine has") {
  // Holds on hosts with less than the greatest guest; others take it.
  const absl::Status status = Validate({.memory_bytes = 64ull << 30});
  CHECK((status.ok() || status.code() == absl::StatusCode::kResourceExhausted));
}

}  // namespace
}  // namespace catnap::vmm
