#ifndef CATNAP_TESTS_SUPPORT_MACHINE_FIXTURE_H_
#define CATNAP_TESTS_SUPPORT_MACHINE_FIXTURE_H_

#include <catch2/catch.hpp>
#include <chrono>
#include <memory>
#include <utility>

#include "support/tiny_guest.h"
#include "vmm/machine.h"

namespace catnap::test {

inline constexpr uint64_t kSmallMemory = 64ull << 20;

// Long enough for the slowest sanitizer build on a busy machine; a test that
// reaches it has failed.
inline std::chrono::steady_clock::time_point Deadline() {
  return std::chrono::steady_clock::now() + std::chrono::seconds(60);
}

inline std::shared_ptr<const kvm::System> OpenKvm() {
  auto system = kvm::System::Open();
  INFO(system.status().ToString());
  REQUIRE(system.ok());
  return *std::move(system);
}

inline std::unique_ptr<vmm::Machine> MakeShell(
    const vmm::ShellConfig& config = {.memory_bytes = kSmallMemory}) {
  auto machine = vmm::Machine::CreateShell(OpenKvm(), config);
  INFO(machine.status().ToString());
  REQUIRE(machine.ok());
  return *std::move(machine);
}

inline TinyGuest MakeGuest(const Assembler& code,
                           uint64_t memory_bytes = kSmallMemory) {
  auto guest = MakeTinyGuest(code, memory_bytes);
  INFO(guest.status().ToString());
  REQUIRE(guest.ok());
  return *std::move(guest);
}

// A machine that stands before the first instruction of `code`.
inline std::unique_ptr<vmm::Machine> MakeMachine(
    const Assembler& code,
    const vmm::ShellConfig& config = {.memory_bytes = kSmallMemory}) {
  auto machine = MakeShell(config);
  const TinyGuest guest = MakeGuest(code, config.memory_bytes);
  const absl::Status launched = machine->Launch(
      {.template_memfd = guest.memfd.get(), .state = guest.state});
  INFO(launched.ToString());
  REQUIRE(launched.ok());
  return machine;
}

// Interrupts off, for ever.
inline Assembler BusyLoop() {
  Assembler code;
  code.Cli();
  code.Jump(code.here());
  return code;
}

}  // namespace catnap::test

#endif  // CATNAP_TESTS_SUPPORT_MACHINE_FIXTURE_H_
