// What a machine costs its process. Not built with sanitizers, which map
// terabytes and keep shadows of everything.
#include <sys/resource.h>

#include <catch2/catch.hpp>
#include <fstream>
#include <string>
#include <vector>

#include "support/lowered_limit.h"
#include "support/machine_fixture.h"

namespace catnap::vmm {
namespace {

uint64_t AnonymousBytes() {
  std::ifstream in("/proc/self/smaps_rollup");
  for (std::string line; std::getline(in, line);) {
    if (line.rfind("Anonymous:", 0) == 0) {
      return std::stoull(line.substr(10)) * 1024;
    }
  }
  return 0;
}

TEST_CASE("A machine out of address space says which limit it was") {
  const auto kvm = test::OpenKvm();
  const test::LoweredLimit limit(RLIMIT_AS, 512 << 20);
  const absl::Status status =
      Machine::CreateShell(kvm, {.memory_bytes = 1ull << 30}).status();
  CHECK(status.code() == absl::StatusCode::kResourceExhausted);
  CHECK_THAT(status.ToString(), Catch::Contains("RLIMIT_AS"));
}

TEST_CASE("A machine that only exists takes at most 1 MiB of the process") {
  static constexpr int kMachines = 16;
  static constexpr uint64_t kBound = 1 << 20;
  const auto kvm = test::OpenKvm();
  std::vector<std::unique_ptr<Machine>> machines;
  machines.reserve(kMachines);
  const uint64_t before = AnonymousBytes();
  for (int i = 0; i < kMachines; ++i) {
    auto shell = Machine::CreateShell(
        kvm, {.memory_bytes = 512 << 20, .device_pages = 6});
    REQUIRE(shell.ok());
    machines.push_back(*std::move(shell));
  }
  const uint64_t each = (AnonymousBytes() - before) / kMachines;
  CAPTURE(each);
  CHECK(each <= kBound);
}

}  // namespace
}  // namespace catnap::vmm
