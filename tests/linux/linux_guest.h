#ifndef CATNAP_TESTS_LINUX_LINUX_GUEST_H_
#define CATNAP_TESTS_LINUX_LINUX_GUEST_H_

#include <fcntl.h>

#include <catch2/catch.hpp>
#include <memory>
#include <string>

#include "base/unique_fd.h"
#include "support/machine_fixture.h"
#include "vmm/machine.h"

namespace catnap::test {

inline constexpr const char* kInitLine = "catnap-init: user space reached";

inline base::UniqueFd OpenFile(const std::string& path) {
  base::UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  INFO("open " << path);
  REQUIRE(fd.valid());
  return fd;
}

inline std::string GuestFile(const std::string& name) {
  return std::string(CATNAP_GUEST_DIR) + "/" + name;
}

// A machine that stands before the first instruction of the kernel at `path`,
// with the first init.
inline std::unique_ptr<vmm::Machine> PrepareLinux(
    const std::string& path, const vmm::ShellConfig& config,
    const std::string& more_command_line = "") {
  const auto kernel = OpenFile(path);
  const auto initramfs = OpenFile(GuestFile("initramfs"));
  auto machine = MakeShell(config);
  vmm::LaunchConfig launch;
  launch.linux_kernel = {
      .kernel_fd = kernel.get(),
      .initramfs_fd = initramfs.get(),
      .command_line = "console=ttyS0 panic=-1 " + more_command_line};
  const absl::Status launched = machine->Launch(std::move(launch));
  INFO(launched.ToString());
  REQUIRE(launched.ok());
  return machine;
}

// What the guest wrote to its console so far.
inline std::string ConsoleOf(vmm::Machine& machine) {
  return machine.console().Tail();
}

// Runs until the guest has ended by itself and returns why. The console is
// shown when a later check in the test fails.
inline vmm::MachineExit RunLinux(vmm::Machine& machine) {
  REQUIRE(machine.Start().ok());
  const bool ended = machine.WaitForEnd(Deadline());
  INFO(ConsoleOf(machine));
  REQUIRE(ended);
  return *machine.exit();
}

}  // namespace catnap::test

#endif  // CATNAP_TESTS_LINUX_LINUX_GUEST_H_
