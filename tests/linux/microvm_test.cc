#include "catnap/microvm.h"

#include <unistd.h>

#include <array>
#include <catch2/catch.hpp>
#include <chrono>
#include <filesystem>
#include <memory>
#include <string>

#include "catnap/catnap.h"
#include "linux/busybox_root.h"
#include "linux/microvm_shell.h"

namespace catnap {
namespace {

using namespace std::chrono_literals;
using test::Shell;

class Greeter final : public GuestService {
 public:
  void OnConnection(const MicroVM& from, UniqueFd connection) override {
    const std::string text = "hello " + from.id() + "\n";
    answered = ::write(connection.get(), text.data(), text.size()) > 0;
  }
  bool answered = false;
};

TEST_CASE("A MicroVM of a directory is used like a machine") {
  const test::RoomForFiles files;
  const auto& room = files.path();
  auto host = Host::Open({.state_dir = room / "state"});
  INFO(host.status().ToString());
  REQUIRE(host.ok());
  ImageSpec spec =
      ImageSpec::FromDirectory("busybox", test::MakeBusyboxRoot(room));
  spec.memory_bytes = uint64_t{256} << 20;
  spec.disk_bytes = uint64_t{1} << 30;
  spec.entrypoint = {"/bin/httpd", "-f", "-p", "8080", "-h", "/etc"};
  spec.ready.port = 8080;
  const auto image = Image::Build(**host, spec);
  INFO(image.status().ToString());
  REQUIRE(image.ok());
  const auto greeter = std::make_shared<Greeter>();
  const auto vm =
      MicroVM::Run(**host, *image, {.id = "one", .services = {{9, greeter}}});
  INFO(vm.status().ToString());
  REQUIRE(vm.ok());

  // Its disk is its root, and writable.
  auto result = vm->Exec(
      Shell("echo from the guest >/etc/file && sync && cat /etc/file"));
  REQUIRE(result.ok());
  CHECK(result->stdout_data == "from the guest\n");
  CHECK(*vm->ReadFile("/etc/file") == "from the guest\n");
  // Nothing of its kernel's wakes it twice a second.
  CHECK(*vm->ReadFile("/proc/sys/vm/compaction_proactiveness") == "0\n");
  CHECK(vm->GetUsage().stored_bytes > 0);
  CHECK(vm->GetUsage().vcpu_seconds > 0);
  CHECK(vm->WriteFile("/etc/index.html", "a page\n").ok());

  // The application is reached through the host.
  const auto forward = vm->ForwardPort({}, 8080);
  REQUIRE(forward.ok());
  const auto connection = vm->Connect(8080);
  REQUIRE(connection.ok());
  const std::string request = "GET /index.html HTTP/1.0\r\n\r\n";
  REQUIRE(::write(connection->get(), request.data(), request.size()) > 0);
  std::string page;
  std::array<char, 512> buffer{};
  for (ssize_t got = 0;
       (got = ::read(connection->get(), buffer.data(), buffer.size())) > 0;) {
    page.append(buffer.data(), static_cast<size_t>(got));
  }
  CHECK_THAT(page, Catch::Contains("a page"));
  CHECK(vm->Connect(81).status().code() == absl::StatusCode::kUnavailable);

  // And the guest reaches the host.
  result = vm->Exec(Shell("nc host.catnap 9 </dev/null"), {.timeout = 60s});
  REQUIRE(result.ok());
  CHECK(result->stdout_data == "hello one\n");
  CHECK(greeter->answered);

  Command greedy;
  greedy.argv = {"/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=100M",
                 "count=1"};
  greedy.memory_limit_bytes = uint64_t{16} << 20;
  result = vm->Exec(greedy);
  REQUIRE(result.ok());
  CHECK(result->reason == ExitReason::kMemoryLimit);

  CHECK(vm->Terminate().ok());
  CHECK(vm->termination_reason() == TerminationReason::kRequested);
}

TEST_CASE("A guest that switches itself off or ends its application is over") {
  const test::RoomForFiles files;
  const auto& room = files.path();
  auto host = Host::Open({.state_dir = room / "state"});
  REQUIRE(host.ok());
  ImageSpec spec =
      ImageSpec::FromDirectory("busybox", test::MakeBusyboxRoot(room));
  spec.memory_bytes = uint64_t{128} << 20;
  spec.disk_bytes = uint64_t{1} << 30;
  spec.entrypoint = {"/bin/sh", "-c",
                     "while ! [ -e /tmp/end ]; do sleep 0.2; done"};
  const auto image = Image::Build(**host, spec);
  INFO(image.status().ToString());
  REQUIRE(image.ok());
  auto vm = MicroVM::Run(**host, *image);
  INFO(vm.status().ToString());
  REQUIRE(vm.ok());
  REQUIRE(vm->WriteFile("/tmp/end", "").ok());
  CHECK(vm->WaitForState(MicroVMState::kTerminated, 60s).ok());
  CHECK(vm->termination_reason() == TerminationReason::kAppExited);
  const auto late = vm->Exec(Shell("true"));
  CHECK(ReasonOf(late.status()) == ErrorReason::kVmTerminated);
}

}  // namespace
}  // namespace catnap
