#include <atomic>
#include <catch2/catch.hpp>

#include "support/machine_fixture.h"

namespace catnap::vmm {
namespace {

using test::Assembler;
using test::Deadline;

MachineExit RunToEnd(const Assembler& code) {
  const auto machine = test::MakeMachine(code);
  REQUIRE(machine->Start().ok());
  REQUIRE(machine->WaitForEnd(Deadline()));
  CHECK(machine->state() == MachineState::kEnded);
  return *machine->exit();
}

TEST_CASE("A guest that writes SLEEP_CONTROL ends by power off") {
  CHECK(RunToEnd(Assembler().PowerOff()).reason == EndReason::kPowerOff);
}

TEST_CASE("A guest that writes RESET_REG ends by reset") {
  CHECK(RunToEnd(Assembler().Reset()).reason == EndReason::kReset);
}

TEST_CASE("A triple fault ends the guest, not the host program") {
  const MachineExit exit = RunToEnd(Assembler().LoadEmptyIdtAndFault());
  CHECK(exit.reason == EndReason::kTripleFault);
  CHECK(exit.detail == "triple fault");
}

TEST_CASE("A guest that runs where no memory is ends with a reason") {
  // Nothing lies at 3.5 GiB; whether the CPU faults for good or KVM gives up
  // on the instruction is KVM's choice.
  Assembler code;
  code.Bytes({0xb8, 0x00, 0x00, 0x00, 0xe0,  // mov eax, 0xe0000000
              0xff, 0xe0});                  // jmp rax
  const EndReason reason = RunToEnd(code).reason;
  CHECK((reason == EndReason::kInternalError ||
         reason == EndReason::kTripleFault));
}

TEST_CASE("on_end is called once, with the first reason") {
  const auto guest = test::MakeGuest(Assembler().PowerOff());
  std::atomic<int> calls{0};
  std::atomic<EndReason> reason{EndReason::kStopped};
  {
    auto machine = test::MakeShell();
    LaunchConfig launch;
    launch.template_memfd = guest.memfd.get();
    launch.state = guest.state;
    launch.on_end = [&](const MachineExit& exit) {
      ++calls;
      reason = exit.reason;
    };
    const absl::Status launched = machine->Launch(std::move(launch));
    REQUIRE(launched.ok());
    REQUIRE(machine->Start().ok());
    REQUIRE(machine->WaitForEnd(Deadline()));
    machine->Stop();
  }
  CHECK(calls == 1);
  CHECK(reason == EndReason::kPowerOff);
}

TEST_CASE("A machine that has ended does not start again") {
  const auto machine = test::MakeMachine(Assembler().PowerOff());
  REQUIRE(machine->Start().ok());
  REQUIRE(machine->WaitForEnd(Deadline()));
  const absl::Status again = machine->Start();
  CHECK(again.code() == absl::StatusCode::kFailedPrecondition);
  CHECK_THAT(again.ToString(), Catch::Contains("power off"));
}

}  // namespace
}  // namespace catnap::vmm
