#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <filesystem>
#include <string>
#include <vector>

#include "support/lowered_limit.h"
#include "support/machine_fixture.h"

namespace catnap::vmm {
namespace {

using test::Assembler;
using test::LoweredLimit;

int OpenDescriptors() {
  int count = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator("/proc/self/fd")) {
    count += entry.is_symlink() ? 1 : 0;
  }
  return count - 1;  // The directory itself.
}

TEST_CASE("A machine out of descriptors says which limit it was") {
  const auto kvm = test::OpenKvm();
  // Room for 0, 1, 2, ... more, so that each step of the making fails once.
  const int room = GENERATE(range(0, 6));
  const int open = OpenDescriptors();
  absl::Status status;
  {
    const LoweredLimit limit(RLIMIT_NOFILE, static_cast<rlim_t>(open + room));
    status = Machine::CreateShell(kvm, {.memory_bytes = test::kSmallMemory,
                                        .vcpus = 2,
                                        .device_pages = 6})
                 .status();
  }
  CHECK(status.code() == absl::StatusCode::kResourceExhausted);
  CHECK_THAT(status.ToString(), Catch::Contains("RLIMIT_NOFILE"));
  CHECK(OpenDescriptors() == open);
}

TEST_CASE("A machine takes at most 12 descriptors") {
  const auto kvm = test::OpenKvm();
  const int before = OpenDescriptors();
  const auto shell = Machine::CreateShell(
      kvm, {.memory_bytes = test::kSmallMemory, .device_pages = 6});
  REQUIRE(shell.ok());
  CHECK(OpenDescriptors() - before <= 12);
}

TEST_CASE("Machines come and go without leaving descriptors behind") {
  const auto kvm = test::OpenKvm();
  const int before = OpenDescriptors();
  for (int i = 0; i < 10; ++i) {
    const auto machine = test::MakeMachine(Assembler().PowerOff());
    REQUIRE(machine->Start().ok());
    REQUIRE(machine->WaitForEnd(test::Deadline()));
  }
  CHECK(OpenDescriptors() == before);
}

TEST_CASE("The host program forks and spawns under ten busy machines") {
  std::vector<std::unique_ptr<Machine>> machines;
  machines.reserve(10);
  for (int i = 0; i < 10; ++i) {
    machines.push_back(test::MakeMachine(test::BusyLoop()));
    REQUIRE(machines.back()->Start().ok());
  }
  std::string program = "/bin/true";
  char* arguments[] = {program.data(), nullptr};
  for (int i = 0; i < 20; ++i) {
    pid_t spawned = -1;
    REQUIRE(::posix_spawn(&spawned, program.c_str(), nullptr, nullptr,
                          arguments, environ) == 0);
    const pid_t forked = ::fork();
    if (forked == 0) {
      ::execv(program.c_str(), arguments);
      ::_exit(127);
    }
    REQUIRE(forked > 0);
    int status = -1;
    REQUIRE(::waitpid(spawned, &status, 0) == spawned);
    CHECK(status == 0);
    REQUIRE(::waitpid(forked, &status, 0) == forked);
    CHECK(status == 0);
  }
  for (const auto& machine : machines) {
    CHECK(machine->state() == MachineState::kRunning);
  }
}

TEST_CASE("A guest that writes everywhere at random is stopped when asked") {
  // xorshift32 in eax chooses a port or an address in the MMIO hole, and what
  // to write; one register page and its ioeventfds lie in the way. Only the
  // two ports that end a guest are left out.
  Assembler code;
  code.Cli().MovEax(0x1234'5678);
  const uint64_t loop = code.here();
  code.Bytes({0x89, 0xc2, 0xc1, 0xe2, 0x0d, 0x31, 0xd0,  // eax ^= eax << 13
              0x89, 0xc2, 0xc1, 0xea, 0x11, 0x31, 0xd0,  // eax ^= eax >> 17
              0x89, 0xc2, 0xc1, 0xe2, 0x05, 0x31, 0xd0,  // eax ^= eax << 5
              0x89, 0xc2,                                // mov edx, eax
              0x81, 0xe2, 0xff, 0xff, 0x00, 0x00,        // and edx, 0xffff
              0x81, 0xe2, 0xfd, 0xf9, 0x00, 0x00,        // not 0x600, 0x602
              0xee,                                      // out dx, al
              0xef,                                      // out dx, eax
              0x89, 0xc7,                                // mov edi, eax
              0x81, 0xe7, 0xff, 0xff, 0xff, 0x0f,        // 256 MiB
              0x81, 0xcf, 0x00, 0x00, 0x00, 0xd0,        // at 0xd0000000
              0x89, 0x07,                                // mov [rdi], eax
              0x88, 0x07,                                // mov [rdi], al
              0x81, 0xe7, 0xff, 0x0f, 0x00, 0xd0,        // the first page
              0x89, 0x07});                              // mov [rdi], eax
  code.Jump(loop);
  const auto machine = test::MakeMachine(
      code, {.memory_bytes = test::kSmallMemory, .device_pages = 1});
  REQUIRE(machine->Start().ok());
  // No thread changes the environment here.
  // NOLINTNEXTLINE(concurrency-mt-unsafe)
  const char* text = std::getenv("CATNAP_TEST_STRESS_SECONDS");
  const std::chrono::seconds seconds(text == nullptr ? 2 : std::stoi(text));
  const auto until = std::chrono::steady_clock::now() + seconds;
  machine->WaitForEnd(until);
  CHECK(machine->state() == MachineState::kRunning);
  machine->Stop();
  CHECK(machine->exit()->reason == EndReason::kStopped);
}

}  // namespace
}  // namespace catnap::vmm
