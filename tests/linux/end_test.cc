#include <catch2/catch.hpp>

#include "linux/linux_guest.h"

namespace catnap::vmm {
namespace {

using test::ConsoleOf;
using test::GuestFile;

constexpr ShellConfig kConfig{.memory_bytes = 128 << 20};

TEST_CASE("A guest that reboots ends by reset") {
  const auto machine =
      test::PrepareLinux(GuestFile("vmlinux"), kConfig, "catnap.action=reboot");
  CHECK(test::RunLinux(*machine).reason == EndReason::kReset);
}

TEST_CASE("A guest that panics says so on the console and ends by reset") {
  const auto machine =
      test::PrepareLinux(GuestFile("vmlinux"), kConfig, "catnap.action=panic");
  CHECK(test::RunLinux(*machine).reason == EndReason::kReset);
  CHECK_THAT(ConsoleOf(*machine), Catch::Contains("Kernel panic"));
}

TEST_CASE("A guest that hangs or idles is stopped when asked") {
  const char* action = GENERATE("hang", "idle");
  const auto machine = test::PrepareLinux(
      GuestFile("vmlinux"), kConfig, std::string("catnap.action=") + action);
  REQUIRE(machine->Start().ok());
  const bool reached =
      machine->console().WaitForText(test::kInitLine, test::Deadline());
  INFO(ConsoleOf(*machine));
  REQUIRE(reached);
  machine->Stop();
  CHECK(machine->exit()->reason == EndReason::kStopped);
}

TEST_CASE("A new generation id reaches a running guest's kernel") {
  const auto machine =
      test::PrepareLinux(GuestFile("vmlinux"), kConfig, "catnap.action=idle");
  REQUIRE(machine->Start().ok());
  REQUIRE(machine->console().WaitForText(test::kInitLine, test::Deadline()));
  REQUIRE(machine->ChangeGenerationId().ok());
  // drivers/char/random.c says this when the id changed.
  const bool reseeded = machine->console().WaitForText(
      "crng reseeded due to virtual machine fork", test::Deadline());
  INFO(ConsoleOf(*machine));
  CHECK(reseeded);
  machine->Stop();
}

}  // namespace
}  // namespace catnap::vmm
