#include "guest.h"

#include <fcntl.h>

#include <cstdio>
#include <cstdlib>
#include <future>
#include <thread>
#include <utility>

#include "agent/files.h"
#include "agent/process.h"
#include "base/unique_fd.h"

namespace catnap::bench {
namespace {

base::UniqueFd OpenGuestFile(const char* name) {
  const std::string path = std::string(CATNAP_GUEST_DIR) + "/" + name;
  base::UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) Check(path.c_str(), absl::NotFoundError("cannot open"));
  return fd;
}

}  // namespace

std::chrono::steady_clock::time_point Soon() {
  return std::chrono::steady_clock::now() + std::chrono::minutes(5);
}

Guest::Guest(const std::shared_ptr<const kvm::System>& system,
             io::EventLoop* loop, uint64_t memory_bytes,
             vmm::GuestDevices devices) {
  auto machine = vmm::Machine::CreateShell(
      system, {.memory_bytes = memory_bytes,
               .vcpus = 1,
               .device_pages = vmm::DevicePages(devices)});
  Check("shell", machine.status());
  machine_ = *std::move(machine);
  auto sockets = vmm::AttachGuestDevices(machine_.get(), std::move(devices),
                                         loop, base::Logger());
  Check("devices", sockets.status());
  sockets_ = *sockets;
  connection_ = std::make_unique<runtime::AgentConnection>(
      std::shared_ptr<vmm::GuestSockets>(machine_, sockets_), loop, &clock_);
  const auto kernel = OpenGuestFile("vmlinux");
  const auto initramfs = OpenGuestFile("agent.initramfs");
  vmm::LaunchConfig launch;
  launch.linux_kernel = {.kernel_fd = kernel.get(),
                         .initramfs_fd = initramfs.get(),
                         .command_line = "console=ttyS0 panic=-1 quiet"};
  Check("launch", machine_->Launch(std::move(launch)));
  Check("start", machine_->Start());
  auto client = connection_->WaitForClient(Soon());
  Check("agent", client.status());
  client_ = *std::move(client);
}

Guest::~Guest() {
  connection_.reset();
  client_.reset();
  // The loop lets go of the connection, and must not be the last to have the
  // machine.
  while (machine_.use_count() > 1) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

void Guest::Ping() {
  std::promise<absl::Status> done;
  client_->Ping(Soon(), [&done](absl::Status status) {
    done.set_value(std::move(status));
  });
  Check("ping", done.get_future().get());
}

std::string Guest::Exec(std::vector<std::string> argv) {
  agent::ExecRequest request;
  request.argv = std::move(argv);
  std::promise<absl::StatusOr<agent::ExecOutcome>> done;
  const auto stream =
      agent::Exec(client_.get(), std::move(request), 1 << 20, Soon(),
                  [&done](absl::StatusOr<agent::ExecOutcome> outcome) {
                    done.set_value(std::move(outcome));
                  });
  Check("exec", stream.status());
  auto outcome = done.get_future().get();
  Check("exec", outcome.status());
  if (outcome->report.kind != agent::ExitKind::kExited ||
      outcome->report.exit_code != 0) {
    Check("exec", absl::InternalError(
                      "the program failed: " + outcome->report.text + "\n" +
                      outcome->stdout_data + outcome->stderr_data));
  }
  return outcome->stdout_data;
}

void Guest::CopyIn(const std::string& from, const std::string& to) {
  Check("copy in", agent::CopyIn(client_.get(), from, to, {}, Soon()));
}

}  // namespace catnap::bench
