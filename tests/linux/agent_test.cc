#include <catch2/catch.hpp>
#include <chrono>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "agent/files.h"
#include "agent/process.h"
#include "base/clock.h"
#include "io/event_loop.h"
#include "io/file.h"
#include "linux/linux_guest.h"
#include "runtime/agent_connection.h"
#include "virtio/vsock/vsock.h"

namespace catnap::runtime {
namespace {

// A guest whose process 1 is the agent, in its initramfs, and our end of its
// connection.
class AgentGuest {
 public:
  explicit AgentGuest(int vcpus = 1) {
    auto loop = io::EventLoop::Create({});
    REQUIRE(loop.ok());
    loop_ = *std::move(loop);
    const auto kernel = test::OpenFile(test::GuestFile("vmlinux"));
    const auto initramfs = test::OpenFile(test::GuestFile("agent.initramfs"));
    machine_ = test::MakeShell(
        {.memory_bytes = 256 << 20, .vcpus = vcpus, .device_pages = 1});
    auto device = std::make_unique<virtio::Vsock>(virtio::VsockOptions{},
                                                  &machine_->memory());
    virtio::Vsock* const sockets = device.get();
    REQUIRE(
        machine_
            ->AttachVirtio(0, std::move(device), loop_.get(), base::Logger())
            .ok());
    connection_ = std::make_unique<AgentConnection>(
        std::shared_ptr<vmm::GuestSockets>(machine_, sockets), loop_.get(),
        &clock_);
    vmm::LaunchConfig launch;
    launch.linux_kernel = {.kernel_fd = kernel.get(),
                           .initramfs_fd = initramfs.get(),
                           .command_line = "console=ttyS0 panic=-1 quiet"};
    const absl::Status launched = machine_->Launch(std::move(launch));
    REQUIRE(launched.ok());
    REQUIRE(machine_->Start().ok());
    auto client = connection_->WaitForClient(test::Deadline());
    INFO(test::ConsoleOf(*machine_));
    REQUIRE(client.ok());
    client_ = *std::move(client);
  }
  ~AgentGuest() { connection_.reset(); }

  agent::Client* client() { return client_.get(); }
  vmm::Machine& machine() { return *machine_; }

  absl::Status Ping() {
    std::promise<absl::Status> done;
    client_->Ping(test::Deadline(), [&done](absl::Status status) {
      done.set_value(std::move(status));
    });
    return done.get_future().get();
  }

  // busybox of this machine, which is one static program.
  void CopyBusyboxIn() {
    const absl::Status copied = agent::CopyIn(
        client(), "/bin/busybox", "/tmp/busybox", {}, test::Deadline());
    INFO(copied.ToString());
    REQUIRE(copied.ok());
  }

  absl::StatusOr<agent::ExecOutcome> Exec(
      std::vector<std::string> argv, const std::string& input = "",
      std::chrono::steady_clock::time_point deadline = test::Deadline()) {
    agent::ExecRequest request;
    request.argv = std::move(argv);
    request.stdin_data = input;
    std::promise<absl::StatusOr<agent::ExecOutcome>> done;
    auto future = done.get_future();
    const auto stream =
        agent::Exec(client(), std::move(request), 64 << 20, deadline,
                    [&done](absl::StatusOr<agent::ExecOutcome> outcome) {
                      done.set_value(std::move(outcome));
                    });
    if (!stream.ok()) return stream.status();
    return future.get();
  }

 private:
  base::SystemClock clock_;
  std::unique_ptr<io::EventLoop> loop_;
  std::shared_ptr<vmm::Machine> machine_;
  std::unique_ptr<AgentConnection> connection_;
  std::shared_ptr<agent::Client> client_;
};

TEST_CASE("The agent of a Linux guest runs programs over vsock") {
  AgentGuest guest;
  CHECK(guest.Ping().ok());
  guest.CopyBusyboxIn();

  auto outcome = guest.Exec({"/tmp/busybox", "echo", "hello from the guest"});
  INFO(outcome.status().ToString());
  REQUIRE(outcome.ok());
  CHECK(outcome->report.kind == agent::ExitKind::kExited);
  CHECK(outcome->report.exit_code == 0);
  CHECK(outcome->stdout_data == "hello from the guest\n");

  outcome = guest.Exec({"/tmp/busybox", "sh", "-c", "cat; exit 3"}, "in");
  REQUIRE(outcome.ok());
  CHECK(outcome->report.exit_code == 3);
  CHECK(outcome->stdout_data == "in");

  outcome = guest.Exec({"/no/such/program"});
  REQUIRE(outcome.ok());
  CHECK(outcome->report.kind == agent::ExitKind::kNotStarted);
  CHECK(outcome->report.exit_code == 127);

  // More output than any window holds.
  outcome = guest.Exec({"/tmp/busybox", "sh", "-c",
                        "/tmp/busybox yes 0123456789 | /tmp/busybox head -c "
                        "5000000"});
  REQUIRE(outcome.ok());
  CHECK(outcome->stdout_data.size() == 5'000'000);

  // What the library's deadline ends is killed.
  outcome = guest.Exec(
      {"/tmp/busybox", "sleep", "1000"}, "",
      std::chrono::steady_clock::now() + std::chrono::milliseconds(300));
  CHECK(outcome.status().code() == absl::StatusCode::kDeadlineExceeded);
  outcome = guest.Exec({"/tmp/busybox", "pidof", "busybox"});
  REQUIRE(outcome.ok());
  CHECK_THAT(outcome->stdout_data, !Catch::Contains(" "));  // Itself only.
  CHECK(guest.Ping().ok());
}

TEST_CASE("Many programs run in a guest at once") {
  AgentGuest guest(/*vcpus=*/2);
  guest.CopyBusyboxIn();
  constexpr int kPrograms = 50;
  std::vector<std::promise<absl::StatusOr<agent::ExecOutcome>>> done(kPrograms);
  for (int i = 0; i < kPrograms; ++i) {
    agent::ExecRequest request;
    request.argv = {"/tmp/busybox", "echo", std::to_string(i)};
    const auto at = static_cast<size_t>(i);
    const auto stream =
        agent::Exec(guest.client(), std::move(request), 4096, test::Deadline(),
                    [&done, at](absl::StatusOr<agent::ExecOutcome> result) {
                      done[at].set_value(std::move(result));
                    });
    REQUIRE(stream.ok());
  }
  int right = 0;
  for (int i = 0; i < kPrograms; ++i) {
    const auto outcome = done[static_cast<size_t>(i)].get_future().get();
    if (outcome.ok() && outcome->stdout_data == std::to_string(i) + "\n") {
      ++right;
    }
  }
  CHECK(right == kPrograms);
}

TEST_CASE("Streams to a guest that ends, end") {
  AgentGuest guest;
  guest.CopyBusyboxIn();
  std::promise<absl::StatusOr<agent::ExecOutcome>> done;
  agent::ExecRequest request;
  request.argv = {"/tmp/busybox", "sleep", "1000"};
  const auto stream =
      agent::Exec(guest.client(), std::move(request), 4096, std::nullopt,
                  [&done](absl::StatusOr<agent::ExecOutcome> result) {
                    done.set_value(std::move(result));
                  });
  REQUIRE(stream.ok());
  CHECK(guest.Ping().ok());
  guest.machine().Stop();
  // Nobody answers any more; the caller's deadline says so.
  std::promise<absl::Status> pinged;
  guest.client()->Ping(
      std::chrono::steady_clock::now() + std::chrono::milliseconds(200),
      [&pinged](absl::Status status) { pinged.set_value(std::move(status)); });
  CHECK(pinged.get_future().get().code() == absl::StatusCode::kUnavailable);
  guest.client()->Close(absl::CancelledError("over"));
  CHECK_FALSE(done.get_future().get().ok());
}

}  // namespace
}  // namespace catnap::runtime
