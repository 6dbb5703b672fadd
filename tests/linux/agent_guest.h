#ifndef CATNAP_TESTS_LINUX_AGENT_GUEST_H_
#define CATNAP_TESTS_LINUX_AGENT_GUEST_H_

#include <unistd.h>

#include <catch2/catch.hpp>
#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "agent/files.h"
#include "agent/process.h"
#include "base/clock.h"
#include "base/unique_fd.h"
#include "io/event_loop.h"
#include "linux/linux_guest.h"
#include "runtime/agent_connection.h"
#include "virtio/vsock/vsock.h"

namespace catnap::test {

// A guest whose process 1 is the agent, in its initramfs, and our end of its
// connection.
class AgentGuest {
 public:
  // Puts more devices into the machine, from page 1 on.
  using Attach = std::function<void(vmm::Machine&, io::EventLoop*)>;

  // With modules the kernel is a stock one, which needs them.
  explicit AgentGuest(int vcpus = 1,
                      const std::string& kernel_path = GuestFile("vmlinux"),
                      const std::string& modules_path = "",
                      const Attach& attach = nullptr) {
    auto loop = io::EventLoop::Create({});
    REQUIRE(loop.ok());
    loop_ = *std::move(loop);
    const auto kernel = OpenFile(kernel_path);
    auto initramfs = base::CreateMemFd("initramfs", 0);
    REQUIRE(initramfs.ok());
    AppendFile(GuestFile("agent.initramfs"), initramfs->get());
    if (!modules_path.empty()) AppendFile(modules_path, initramfs->get());
    machine_ = MakeShell({.memory_bytes = 256 << 20,
                          .vcpus = vcpus,
                          .device_pages = attach ? 2 : 1});
    auto device = std::make_unique<virtio::Vsock>(virtio::VsockOptions{},
                                                  &machine_->memory());
    virtio::Vsock* const sockets = device.get();
    REQUIRE(
        machine_
            ->AttachVirtio(0, std::move(device), loop_.get(), base::Logger())
            .ok());
    connection_ = std::make_unique<runtime::AgentConnection>(
        std::shared_ptr<vmm::GuestSockets>(machine_, sockets), loop_.get(),
        &clock_);
    if (attach) attach(*machine_, loop_.get());
    vmm::LaunchConfig launch;
    launch.linux_kernel = {.kernel_fd = kernel.get(),
                           .initramfs_fd = initramfs->get(),
                           .command_line = "console=ttyS0 panic=-1 quiet"};
    const absl::Status launched = machine_->Launch(std::move(launch));
    REQUIRE(launched.ok());
    REQUIRE(machine_->Start().ok());
    auto client = connection_->WaitForClient(Deadline());
    INFO(ConsoleOf(*machine_));
    REQUIRE(client.ok());
    client_ = *std::move(client);
  }
  ~AgentGuest() {
    connection_.reset();
    client_.reset();
    // The loop lets go of the connection, and must not be the last to have the
    // machine.
    while (machine_.use_count() > 1) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }

  agent::Client* client() { return client_.get(); }
  vmm::Machine& machine() { return *machine_; }

  absl::Status Ping() {
    std::promise<absl::Status> done;
    client_->Ping(Deadline(), [&done](absl::Status status) {
      done.set_value(std::move(status));
    });
    return done.get_future().get();
  }

  // busybox of this machine, which is one static program.
  void CopyBusyboxIn() {
    const absl::Status copied =
        agent::CopyIn(client(), "/bin/busybox", "/tmp/busybox", {}, Deadline());
    INFO(copied.ToString());
    REQUIRE(copied.ok());
    const auto installed = Exec({"/tmp/busybox", "sh", "-c",
                                 "/tmp/busybox mkdir /tmp/bin && "
                                 "/tmp/busybox --install -s /tmp/bin"});
    REQUIRE(installed.ok());
    REQUIRE(installed->report.exit_code == 0);
  }

  absl::StatusOr<agent::ExecOutcome> Exec(
      agent::ExecRequest request,
      std::chrono::steady_clock::time_point deadline = Deadline()) {
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
  absl::StatusOr<agent::ExecOutcome> Exec(
      std::vector<std::string> argv, const std::string& input = "",
      std::chrono::steady_clock::time_point deadline = Deadline()) {
    agent::ExecRequest request;
    request.argv = std::move(argv);
    request.stdin_data = input;
    return Exec(std::move(request), deadline);
  }
  // What a shell's commands write; its failure is text as well. `request` may
  // bring everything but argv.
  std::string Shell(const std::string& commands,
                    agent::ExecRequest request = {}) {
    request.argv = {"/tmp/busybox", "sh", "-c", commands};
    request.env.emplace_back("PATH=/tmp/bin");
    const auto outcome = Exec(std::move(request));
    if (!outcome.ok()) return outcome.status().ToString();
    return outcome->stdout_data + outcome->stderr_data + outcome->report.text;
  }

 private:
  static void AppendFile(const std::string& path, int to) {
    const auto from = OpenFile(path);
    std::vector<char> buffer(size_t{1} << 20);
    ssize_t got = 0;
    while ((got = ::read(from.get(), buffer.data(), buffer.size())) > 0) {
      REQUIRE(::write(to, buffer.data(), static_cast<size_t>(got)) == got);
    }
    REQUIRE(got == 0);
  }

  base::SystemClock clock_;
  std::unique_ptr<io::EventLoop> loop_;
  std::shared_ptr<vmm::Machine> machine_;
  std::unique_ptr<runtime::AgentConnection> connection_;
  std::shared_ptr<agent::Client> client_;
};

}  // namespace catnap::test

#endif  // CATNAP_TESTS_LINUX_AGENT_GUEST_H_
