#include <atomic>
#include <catch2/catch.hpp>
#include <csignal>
#include <thread>
#include <vector>

#include "support/machine_fixture.h"

namespace catnap::vmm {
namespace {

using test::Assembler;

constexpr uint64_t kCounter = 0x20'0000;

// Counts at kCounter, for ever, without an exit.
Assembler Count() {
  Assembler code;
  code.Cli().MovRdi(kCounter).MovEax(0);
  const uint64_t loop = code.here();
  code.IncEax().Store32().Jump(loop);
  return code;
}

// Reads a port without a device, for ever: an exit each time.
Assembler ReadPorts() {
  Assembler code;
  code.Cli().MovEdx(0x1234);
  const uint64_t loop = code.here();
  code.InEax().Jump(loop);
  return code;
}

uint32_t CounterOf(Machine& machine) {
  const auto value = machine.memory().Load<uint32_t>(memory::Gpa{kCounter});
  REQUIRE(value.ok());
  return *value;
}

void WaitUntilCounts(Machine& machine) {
  const uint32_t before = CounterOf(machine);
  while (CounterOf(machine) == before) std::this_thread::yield();
}

TEST_CASE("A paused guest stands still and goes on where it stood") {
  const auto machine = test::MakeMachine(Count());
  REQUIRE(machine->Start().ok());
  WaitUntilCounts(*machine);
  REQUIRE(machine->Pause().ok());
  CHECK(machine->state() == MachineState::kPaused);
  const uint32_t paused = CounterOf(*machine);
  for (int i = 0; i < 1000; ++i) std::this_thread::yield();
  CHECK(CounterOf(*machine) == paused);
  REQUIRE(machine->Start().ok());
  WaitUntilCounts(*machine);
  CHECK(CounterOf(*machine) != paused);
}

TEST_CASE("No pause is lost, wherever the vCPU is") {
  // Right after Start() the thread may not have entered the guest yet; with
  // exits it is in and out all the time.
  const Assembler code = GENERATE(Count(), ReadPorts(), test::BusyLoop());
  const auto machine = test::MakeMachine(code);
  for (int i = 0; i < 500; ++i) {
    REQUIRE(machine->Start().ok());
    REQUIRE(machine->Pause().ok());
  }
  CHECK(machine->state() == MachineState::kPaused);
}

TEST_CASE("Start, Pause and Stop may come from any thread at once") {
  const auto machine = test::MakeMachine(
      ReadPorts(), {.memory_bytes = test::kSmallMemory, .vcpus = 2});
  std::vector<std::thread> threads;
  threads.reserve(4);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&machine, t] {
      for (int i = 0; i < 100; ++i) {
        const absl::Status status =
            (i + t) % 2 == 0 ? machine->Start() : machine->Pause();
        if (!status.ok()) std::abort();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  machine->Stop();
  CHECK(machine->exit()->reason == EndReason::kStopped);
}

TEST_CASE("Stop ends a guest that loops with interrupts off") {
  const auto machine = test::MakeMachine(test::BusyLoop());
  REQUIRE(machine->Start().ok());
  machine->Stop();
  CHECK(machine->state() == MachineState::kEnded);
  CHECK(machine->exit()->reason == EndReason::kStopped);
}

TEST_CASE("A machine may be destroyed while its guest runs") {
  for (int i = 0; i < 20; ++i) {
    const auto machine = test::MakeMachine(ReadPorts());
    REQUIRE(machine->Start().ok());
  }
}

TEST_CASE("Kicks never reach a handler of the host program") {
  static std::atomic<int> delivered{0};
  struct sigaction action {};
  struct sigaction before {};
  action.sa_handler = [](int) { ++delivered; };
  REQUIRE(::sigaction(DefaultKickSignal(), &action, &before) == 0);
  {
    const auto machine = test::MakeMachine(test::BusyLoop());
    for (int i = 0; i < 100; ++i) {
      REQUIRE(machine->Start().ok());
      REQUIRE(machine->Pause().ok());
    }
  }
  CHECK(delivered == 0);
  REQUIRE(::sigaction(DefaultKickSignal(), &before, nullptr) == 0);
}

TEST_CASE("Calls in the wrong order say so") {
  const auto machine = test::MakeShell();
  CHECK(machine->Start().code() == absl::StatusCode::kFailedPrecondition);
  CHECK(machine->Pause().code() == absl::StatusCode::kFailedPrecondition);
  const auto guest = test::MakeGuest(test::BusyLoop());
  CHECK(machine->Launch({}).code() == absl::StatusCode::kInvalidArgument);
  REQUIRE(
      machine
          ->Launch({.template_memfd = guest.memfd.get(), .state = guest.state})
          .ok());
  CHECK(
      machine
          ->Launch({.template_memfd = guest.memfd.get(), .state = guest.state})
          .code() == absl::StatusCode::kFailedPrecondition);
}

TEST_CASE("A launch never writes to its template") {
  const auto guest = test::MakeGuest(Count());
  const auto machine = test::MakeShell();
  REQUIRE(
      machine
          ->Launch({.template_memfd = guest.memfd.get(), .state = guest.state})
          .ok());
  REQUIRE(machine->Start().ok());
  WaitUntilCounts(*machine);
  machine->Stop();
  uint32_t in_template = 1;
  REQUIRE(::pread(guest.memfd.get(), &in_template, sizeof(in_template),
                  kCounter) == sizeof(in_template));
  CHECK(in_template == 0);
}

TEST_CASE("A guest with more than 3 GiB has memory above 4 GiB") {
  static constexpr uint64_t kMemory = 4ull << 30;
  static constexpr uint64_t kHigh = 0x1'0000'0000 + 0x1000'0000;
  Assembler code;
  code.MovRdi(kHigh).MovEax(0x600d).Store32().PowerOff();
  const auto machine = test::MakeMachine(code, {.memory_bytes = kMemory});
  REQUIRE(machine->Start().ok());
  REQUIRE(machine->WaitForEnd(test::Deadline()));
  CHECK(machine->exit()->reason == EndReason::kPowerOff);
  const auto value = machine->memory().Load<uint32_t>(memory::Gpa{kHigh});
  REQUIRE(value.ok());
  CHECK(*value == 0x600d);
}

}  // namespace
}  // namespace catnap::vmm
