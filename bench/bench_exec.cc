#include <fcntl.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <future>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "agent/files.h"
#include "agent/process.h"
#include "base/clock.h"
#include "base/unique_fd.h"
#include "harness.h"
#include "io/event_loop.h"
#include "kvm/system.h"
#include "runtime/agent_connection.h"
#include "virtio/vsock/vsock.h"
#include "vmm/machine.h"

// Round trips into a running guest; README.md says what the clocks cover.

namespace catnap::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kDefaultSamples = 200;
constexpr int kWarmUp = 20;
constexpr const char* kProgram = "/tmp/spawn_floor";

void Check(const char* what, const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "bench_exec: %s: %s\n", what, status.ToString().c_str());
  std::_Exit(1);  // Threads run.
}

Clock::time_point Soon() { return Clock::now() + std::chrono::minutes(2); }

base::UniqueFd OpenGuestFile(const char* name) {
  const std::string path = std::string(CATNAP_GUEST_DIR) + "/" + name;
  base::UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) Check(path.c_str(), absl::NotFoundError("cannot open"));
  return fd;
}

void Ping(agent::Client* client) {
  std::promise<absl::Status> done;
  client->Ping(Soon(), [&done](absl::Status status) {
    done.set_value(std::move(status));
  });
  Check("ping", done.get_future().get());
}

std::string Exec(agent::Client* client, std::vector<std::string> argv) {
  agent::ExecRequest request;
  request.argv = std::move(argv);
  std::promise<absl::StatusOr<agent::ExecOutcome>> done;
  const auto stream =
      agent::Exec(client, std::move(request), 1 << 20, Soon(),
                  [&done](absl::StatusOr<agent::ExecOutcome> outcome) {
                    done.set_value(std::move(outcome));
                  });
  Check("exec", stream.status());
  auto outcome = done.get_future().get();
  Check("exec", outcome.status());
  if (outcome->report.kind != agent::ExitKind::kExited ||
      outcome->report.exit_code != 0) {
    Check("exec",
          absl::InternalError("the program failed: " + outcome->report.text));
  }
  return outcome->stdout_data;
}

int Run(Report& report) {
  auto system = kvm::System::Open();
  Check("open KVM", system.status());
  auto loop = io::EventLoop::Create({});
  Check("event loop", loop.status());
  auto machine = vmm::Machine::CreateShell(
      *system, {.memory_bytes = 256 << 20, .vcpus = 1, .device_pages = 1});
  Check("shell", machine.status());
  auto device = std::make_unique<virtio::Vsock>(virtio::VsockOptions{},
                                                &(*machine)->memory());
  vmm::GuestSockets* const sockets = device.get();
  Check("vsock", (*machine)->AttachVirtio(0, std::move(device), loop->get(),
                                          base::Logger()));
  base::SystemClock clock;
  // The machine outlives the connection.
  runtime::AgentConnection connection(
      std::shared_ptr<vmm::GuestSockets>(std::shared_ptr<void>(), sockets),
      loop->get(), &clock);
  const auto kernel = OpenGuestFile("vmlinux");
  const auto initramfs = OpenGuestFile("agent.initramfs");
  vmm::LaunchConfig launch;
  launch.linux_kernel = {.kernel_fd = kernel.get(),
                         .initramfs_fd = initramfs.get(),
                         .command_line = "console=ttyS0 panic=-1 quiet"};
  Check("launch", (*machine)->Launch(std::move(launch)));
  Check("start", (*machine)->Start());
  auto connected = connection.WaitForClient(Soon());
  Check("agent", connected.status());
  agent::Client* const client = connected->get();
  Check("copy the program",
        agent::CopyIn(client, CATNAP_SPAWN_FLOOR, kProgram, {}, Soon()));

  for (int i = 0; i < kWarmUp; ++i) {
    Ping(client);
    Exec(client, {kProgram});
  }
  const auto measure = [&](const char* name, const auto& call) {
    const uint64_t exits = (*machine)->user_exits();
    for (int i = 0; i < report.options().samples; ++i) {
      const auto start = Clock::now();
      call();
      report.AddMicros(name, Clock::now() - start);
    }
    report.Add(std::string(name) + "_user_exits", "count",
               static_cast<double>((*machine)->user_exits() - exits));
  };
  measure("exec/ping", [client] { Ping(client); });
  measure("exec/true", [client] { Exec(client, {kProgram}); });
  for (int i = 0; i < 5; ++i) {
    const std::string median = Exec(client, {kProgram, kProgram, "200"});
    report.Add("exec/in_guest_posix_spawn", "us",
               std::strtod(median.c_str(), nullptr) / 1000);
  }
  report.Add("exec/true_to_floor", "ratio",
             report.Median("exec/true") /
                 (1.5 * report.Median("exec/in_guest_posix_spawn") +
                  2 * report.Median("exec/ping")));
  return report.Finish();
}

}  // namespace
}  // namespace catnap::bench

int main(int argc, char** argv) {
  catnap::bench::Report report(
      catnap::bench::ParseOptions(argc, argv, catnap::bench::kDefaultSamples));
  return catnap::bench::Run(report);
}
