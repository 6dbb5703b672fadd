#include <catch2/catch.hpp>

#include "linux/linux_guest.h"

namespace catnap::vmm {
namespace {

using test::ConsoleOf;
using test::GuestFile;

TEST_CASE("Both forms of the guest kernel reach user space and switch off") {
  const char* form = GENERATE("vmlinux", "bzImage");
  const auto machine =
      test::PrepareLinux(GuestFile(form), {.memory_bytes = 128 << 20});
  CHECK(test::RunLinux(*machine).reason == EndReason::kPowerOff);
  CHECK_THAT(ConsoleOf(*machine), Catch::Contains(test::kInitLine));
}

TEST_CASE("The default baseline boots without a complaint of the kernel") {
  const auto machine =
      test::PrepareLinux(GuestFile("vmlinux"), {.memory_bytes = 128 << 20});
  CHECK(test::RunLinux(*machine).reason == EndReason::kPowerOff);
  const std::string console = ConsoleOf(*machine);
  CHECK_THAT(console, Catch::Contains(" clocksource=tsc ") ||
                          Catch::Contains(" clocksource=kvm-clock "));
  CHECK_THAT(console, !Catch::Contains("WARNING"));
  CHECK_THAT(console, !Catch::Contains("Call Trace"));
}

// Not in the emulated host: QEMU does not let KVM see the guest's XSETBV, so
// the host's kernel runs with the guest's XCR0 and may crash.
TEST_CASE("The other CPU baselines boot", "[hardware]") {
  const auto baseline =
      GENERATE(arch::CpuBaseline::kX86_64V3, arch::CpuBaseline::kHost);
  const auto machine =
      test::PrepareLinux(GuestFile("vmlinux"),
                         {.memory_bytes = 128 << 20, .cpu_baseline = baseline});
  CHECK(test::RunLinux(*machine).reason == EndReason::kPowerOff);
  CHECK_THAT(ConsoleOf(*machine), Catch::Contains(test::kInitLine));
}

TEST_CASE("Every vCPU comes up") {
  const int vcpus = GENERATE(2, 4);
  const auto machine = test::PrepareLinux(
      GuestFile("vmlinux"), {.memory_bytes = 128 << 20, .vcpus = vcpus});
  CHECK(test::RunLinux(*machine).reason == EndReason::kPowerOff);
  CHECK_THAT(ConsoleOf(*machine),
             Catch::Contains(" cpus=" + std::to_string(vcpus) + " "));
}

TEST_CASE("The smallest guest boots, and one with memory above 4 GiB") {
  const uint64_t memory = GENERATE(64ull << 20, 4ull << 30);
  const auto machine =
      test::PrepareLinux(GuestFile("vmlinux"), {.memory_bytes = memory});
  CHECK(test::RunLinux(*machine).reason == EndReason::kPowerOff);
  CHECK_THAT(ConsoleOf(*machine), Catch::Contains(test::kInitLine));
}

TEST_CASE("The kernel finds every device that the tables describe") {
  const auto machine = test::PrepareLinux(
      GuestFile("vmlinux"), {.memory_bytes = 128 << 20, .device_pages = 3});
  // A magic value and version that the driver knows; device 0 is a
  // placeholder that it passes over.
  for (int page = 0; page < 3; ++page) {
    machine->register_page(page).Store32(0x0, 0x7472'6976);
    machine->register_page(page).Store32(0x4, 2);
  }
  CHECK(test::RunLinux(*machine).reason == EndReason::kPowerOff);
  const std::string console = ConsoleOf(*machine);
  CHECK_THAT(console, Catch::Contains("ttyS0 at I/O 0x3f8 (irq = "));
  CHECK_THAT(console, !Catch::Contains("ACPI Error"));
  CHECK_THAT(console, !Catch::Contains("ACPI BIOS Error"));
  CHECK_THAT(console, Catch::Contains(test::kInitLine));
}

TEST_CASE("A booting guest may be paused at any moment") {
  const auto machine = test::PrepareLinux(
      GuestFile("vmlinux"), {.memory_bytes = 128 << 20, .vcpus = 2});
  REQUIRE(machine->Start().ok());
  const auto deadline = test::Deadline();
  while (!machine->WaitForEnd(std::chrono::steady_clock::now() +
                              std::chrono::milliseconds(20)) &&
         std::chrono::steady_clock::now() < deadline) {
    REQUIRE(machine->Pause().ok());
    const absl::Status again = machine->Start();
    REQUIRE((again.ok() || machine->state() == MachineState::kEnded));
  }
  INFO(ConsoleOf(*machine));
  REQUIRE(machine->exit().has_value());
  CHECK(machine->exit()->reason == EndReason::kPowerOff);
}

}  // namespace
}  // namespace catnap::vmm
