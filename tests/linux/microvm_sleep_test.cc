#include <array>
#include <catch2/catch.hpp>
#include <chrono>
#include <filesystem>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "catnap/catnap.h"
#include "linux/busybox_root.h"
#include "linux/microvm_shell.h"
#include "support/tcp.h"

// MicroVMs that sleep, by the public API.

namespace catnap {
namespace {

using namespace std::chrono_literals;
using test::Sh;
using test::Shell;

ImageSpec WebServer(const std::filesystem::path& room) {
  ImageSpec spec = ImageSpec::FromDirectory("web", test::MakeBusyboxRoot(room));
  spec.memory_bytes = uint64_t{256} << 20;
  spec.disk_bytes = uint64_t{1} << 30;
  spec.entrypoint = {"/bin/sh", "-c",
                     "mkdir /www; echo a page >/www/index.html; "
                     "exec /bin/httpd -f -p 8080 -h /www"};
  spec.ready.port = 8080;
  return spec;
}

std::string Fetch(const Forward& forward) {
  const base::UniqueFd fd = testing::ConnectTcp(forward.address().port);
  if (!testing::SendAll(fd.get(), "GET /index.html HTTP/1.0\r\n\r\n")) {
    return "cannot send";
  }
  return testing::ReceiveUpTo(fd.get(), 4096);
}

TEST_CASE("A MicroVM falls asleep, wakes for who needs it, outlives its Host") {
  const test::RoomForFiles files;
  const auto& room = files.path();
  auto host = Host::Open({.state_dir = room / "state"});
  REQUIRE(host.ok());
  const ImageSpec spec = WebServer(room);
  const auto image = Image::Build(**host, spec);
  INFO(image.status().ToString());
  REQUIRE(image.ok());

  RunOptions options;
  options.id = "one";
  options.env = {{"TENANT", "it's one"}};
  options.idle_policy = IdlePolicy{.max_idle_duration = 3s,
                                   .suspended_duration = {},
                                   .auto_resume_enabled = true,
                                   .activity = {}};
  auto vm = MicroVM::Run(**host, *image, options);
  INFO(vm.status().ToString());
  REQUIRE(vm.ok());
  // Nothing was started here: the server has been running since the build.
  const auto forward = vm->ForwardPort({}, 8080);
  REQUIRE(forward.ok());
  CHECK_THAT(Fetch(*forward), Catch::Contains("a page"));

  const auto asleep = vm->WaitForState(MicroVMState::kSuspended, 100s);
  INFO(asleep.status().ToString());
  REQUIRE(asleep.ok());
  CHECK(vm->GetUsage().stored_bytes > 0);
  CHECK_THAT(Fetch(*forward), Catch::Contains("a page"));
  CHECK(vm->state() == MicroVMState::kRunning);

  // The server started without it, but can look it up.
  const std::string show = "unset TENANT; . /run/catnap/env; echo $TENANT";
  CHECK(Sh(*vm, show) == "it's one\n");

  // A process's stream goes on over an explicit sleep.
  REQUIRE(vm->SetIdlePolicy(std::nullopt).ok());
  auto process = vm->Start(Shell("while read line; do echo got $line; done"));
  REQUIRE(process.ok());
  std::array<char, 64> buffer{};
  REQUIRE((*process)->Write("before\n").ok());
  auto got = (*process)->Read(Stream::kStdout, buffer);
  REQUIRE(got.ok());
  CHECK(std::string(buffer.data(), *got) == "got before\n");
  absl::Status status = vm->Suspend();
  INFO(status.ToString());
  REQUIRE(status.ok());
  CHECK(vm->state() == MicroVMState::kSuspended);
  CHECK(ReasonOf(vm->Exec(Shell("true")).status()) ==
        ErrorReason::kVmSuspended);
  status = vm->Resume();
  INFO(status.ToString());
  REQUIRE(status.ok());
  REQUIRE((*process)->Write("after\n").ok());
  got = (*process)->Read(Stream::kStdout, buffer);
  REQUIRE(got.ok());
  CHECK(std::string(buffer.data(), *got) == "got after\n");

  // Forks go their own ways, from where it is now.
  CHECK(Sh(*vm, "echo common >/etc/file").empty());
  std::vector<RunOptions> children(2);
  children[1].env = {{"TENANT", "another"}};
  const auto forks = vm->ForkEach(children);
  INFO(forks.status().ToString());
  REQUIRE(forks.ok());
  REQUIRE(forks->size() == 2);
  std::set<std::string> ids = {Sh(*vm, "cat /etc/machine-id")};
  for (const MicroVM& fork : *forks) {
    const std::string id = Sh(fork, "cat /etc/machine-id");
    CHECK(id.size() == 33);
    CHECK(ids.insert(id).second);
    // In memory: no fork writes its disk for it.
    CHECK(Sh(fork,
             "/bin/busybox grep -c ' /etc/machine-id tmpfs ' "
             "/proc/mounts") == "1\n");
    CHECK(Sh(fork, "echo $(hostname) >>/etc/file; cat /etc/file") ==
          "common\n" + fork.id() + "\n");
    const auto own_port = fork.ForwardPort({}, 8080);
    REQUIRE(own_port.ok());
    CHECK_THAT(Fetch(*own_port), Catch::Contains("a page"));
  }
  CHECK(Sh((*forks)[0], show) == "it's one\n");
  CHECK(Sh((*forks)[1], show) == "another\n");
  for (const MicroVM& fork : *forks) CHECK(fork.Terminate().ok());
  CHECK(Sh(*vm, "cat /etc/file") == "common\n");

  // The Host goes, the MicroVM stays.
  status = (*host)->Close();
  INFO(status.ToString());
  REQUIRE(status.ok());
  host = Host::Open({.state_dir = room / "state"});
  REQUIRE(host.ok());
  const auto again = (*host)->GetMicroVM("one");
  REQUIRE(again.ok());
  CHECK(again->state() == MicroVMState::kSuspended);
  status = again->Resume();
  INFO(status.ToString());
  REQUIRE(status.ok());
  CHECK(Sh(*again, "cat /etc/file") == "common\n");
  const auto port = again->ForwardPort({}, 8080);
  REQUIRE(port.ok());
  CHECK_THAT(Fetch(*port), Catch::Contains("a page"));
  CHECK((*host)->Close({.running = AtClose::kTerminate}).ok());
}

}  // namespace
}  // namespace catnap
