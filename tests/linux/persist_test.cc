#include <atomic>
#include <catch2/catch.hpp>
#include <chrono>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "agent/client.h"
#include "agent/files.h"
#include "agent/process.h"
#include "base/clock.h"
#include "base/mutex.h"
#include "io/event_loop.h"
#include "linux/linux_guest.h"
#include "net/link.h"
#include "runtime/agent_connection.h"
#include "support/memory_disk.h"
#include "support/saved_machine.h"
#include "virtio/block/block.h"
#include "virtio/net/net.h"
#include "virtio/rng/rng.h"
#include "virtio/vsock/vsock.h"

// A real guest is saved, and goes on in another machine.

namespace catnap::vmm {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint64_t kMemoryBytes = 256 << 20;
constexpr int kPages = 4;

// Our end of the agent's connection, which can move to another machine's
// socket device. While it is at none, nothing gets through and nothing is lost.
class Peer final : public virtio::VsockHandler, public agent::ByteChannel {
 public:
  explicit Peer(virtio::VsockStreamId id) : id_(id) {}

  void At(virtio::Vsock* device) { device_ = device; }
  bool connected() const { return connected_; }
  virtio::VsockStreamId id() const { return id_; }
  agent::Client* client() { return client_.get(); }

  size_t Send(std::span<const uint8_t> bytes) override {
    virtio::Vsock* const device = device_;
    return device == nullptr ? 0 : device->Send(id_, bytes).value_or(0);
  }
  void OnConnected() override {
    client_ = std::make_unique<agent::Client>(this, &clock_,
                                              agent::Client::Options{});
    connected_ = true;
  }
  void OnData(std::span<const uint8_t> bytes) override {
    client_->OnReceive(bytes);
    device_.load()->Consumed(id_, bytes.size());
  }
  void OnWritable() override { client_->OnWritable(); }
  void OnClosed(const absl::Status& why) override {
    if (device_ != nullptr) client_->Close(why);
  }

 private:
  const virtio::VsockStreamId id_;
  base::SystemClock clock_;
  std::atomic<virtio::Vsock*> device_{nullptr};
  std::atomic<bool> connected_{false};
  std::unique_ptr<agent::Client> client_;
};

// A machine with all devices, and its agent.
class World {
 public:
  World(int vcpus, const std::string& command_line) {
    auto loop = io::EventLoop::Create({});
    REQUIRE(loop.ok());
    loop_ = *std::move(loop);
    disk_ = std::make_shared<test::MemoryDisk>(8 << 20);
    machine_ = test::MakeShell(
        {.memory_bytes = kMemoryBytes, .vcpus = vcpus, .device_pages = kPages});
    Attach(*machine_);
    const auto kernel = test::OpenFile(test::GuestFile("vmlinux"));
    const auto initramfs = test::OpenFile(test::GuestFile("agent.initramfs"));
    LaunchConfig launch;
    launch.linux_kernel = {
        .kernel_fd = kernel.get(),
        .initramfs_fd = initramfs.get(),
        .command_line = "console=ttyS0 panic=-1 quiet " + command_line};
    const absl::Status launched = machine_->Launch(std::move(launch));
    REQUIRE(launched.ok());
    REQUIRE(machine_->Start().ok());
    WaitForAgent();
    const absl::Status copied = agent::CopyIn(
        client(), "/bin/busybox", "/tmp/busybox", {}, test::Deadline());
    INFO(copied.ToString());
    REQUIRE(copied.ok());
    Sh("/tmp/busybox mkdir /tmp/bin; /tmp/busybox --install -s /tmp/bin");
  }
  ~World() {
    machine_->Stop();
    peer()->At(nullptr);
    peer()->client()->Close(absl::CancelledError("over"));
    machine_.reset();
  }

  Machine& machine() { return *machine_; }
  agent::Client* client() { return peer()->client(); }

  test::SavedGuest SaveAndDestroy() {
    test::SavedGuest saved = test::SaveGuest(*machine_);
    peer()->At(nullptr);
    machine_.reset();
    return saved;
  }

  // With `adopt` the agent's connection goes on; without, it makes another.
  void Restore(const test::SavedGuest& saved, bool adopt) {
    const std::shared_ptr<Peer> before = peer();
    if (!adopt) {
      before->client()->Close(absl::UnavailableError("another machine"));
      const base::MutexLock lock(&mutex_);
      peer_.reset();
    }
    machine_ = test::MakeShell(saved.config);
    Attach(*machine_);
    const absl::Status launched = test::LaunchSaved(*machine_, saved);
    INFO(launched.ToString());
    REQUIRE(launched.ok());
    const auto streams = sockets_->LoadedStreams();
    REQUIRE(streams.size() == 1);
    CHECK(streams.front() == before->id());
    if (adopt) {
      before->At(sockets_);
      REQUIRE(sockets_->Adopt(before->id(), before).ok());
    } else {
      sockets_->ResetTransport();
    }
    REQUIRE(machine_->Start().ok());
    if (!adopt) WaitForAgent();
  }

  std::future<absl::StatusOr<agent::ExecOutcome>> Begin(
      const std::string& commands) {
    agent::ExecRequest request;
    request.argv = {"/tmp/busybox", "sh", "-c", "exec 2>&1; " + commands};
    request.env.emplace_back("PATH=/tmp/bin");
    auto done =
        std::make_shared<std::promise<absl::StatusOr<agent::ExecOutcome>>>();
    const auto stream =
        agent::Exec(client(), std::move(request), 1 << 20, test::Deadline(),
                    [done](absl::StatusOr<agent::ExecOutcome> outcome) {
                      done->set_value(std::move(outcome));
                    });
    REQUIRE(stream.ok());
    return done->get_future();
  }
  std::string Sh(const std::string& commands) {
    auto future = Begin(commands);
    // Deadlines are not brought: the peer has no timer.
    const bool came =
        future.wait_for(std::chrono::seconds(60)) == std::future_status::ready;
    INFO(test::ConsoleOf(*machine_));
    REQUIRE(came);
    const auto outcome = future.get();
    INFO(outcome.status().ToString());
    REQUIRE(outcome.ok());
    return outcome->stdout_data;
  }

 private:
  void Attach(Machine& machine) {
    memory::GuestMemory* const memory = &machine.memory();
    auto sockets =
        std::make_unique<virtio::Vsock>(virtio::VsockOptions{}, memory);
    sockets_ = sockets.get();
    sockets_->Listen(runtime::kAgentPort,
                     [this, device = sockets_](virtio::VsockStreamId id) {
                       auto peer = std::make_shared<Peer>(id);
                       peer->At(device);
                       const base::MutexLock lock(&mutex_);
                       peer_ = peer;
                       return peer;
                     });
    auto link = net::Link::Create({}, loop_.get());
    REQUIRE(link.ok());
    const auto attach = [&](int page, auto device) {
      REQUIRE(machine
                  .AttachVirtio(page, std::move(device), loop_.get(),
                                base::Logger())
                  .ok());
    };
    attach(0, std::move(sockets));
    attach(1, std::make_unique<virtio::Block>(disk_, virtio::BlockOptions{},
                                              memory));
    attach(2, std::make_unique<virtio::Rng>(virtio::RngOptions{}, memory));
    attach(3, std::make_unique<virtio::Net>(*std::move(link), memory));
  }

  std::shared_ptr<Peer> peer() {
    const base::MutexLock lock(&mutex_);
    return peer_;
  }
  void WaitForAgent() {
    const auto deadline = test::Deadline();
    while (peer() == nullptr || !peer()->connected()) {
      INFO(test::ConsoleOf(*machine_));
      REQUIRE(Clock::now() < deadline);
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  }

  std::unique_ptr<io::EventLoop> loop_;
  std::shared_ptr<test::MemoryDisk> disk_;
  virtio::Vsock* sockets_ = nullptr;  // The machine's.
  base::Mutex mutex_;
  std::shared_ptr<Peer> peer_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<Machine> machine_;
};

double Uptime(World& world) { return std::stod(world.Sh("cat /proc/uptime")); }

int64_t Count(World& world) {
  // The file may be empty for a moment.
  for (int i = 0; i < 50; ++i) {
    const std::string text = world.Sh("cat /tmp/count");
    if (!text.empty() && text.back() == '\n') return std::stoll(text);
  }
  return -1;
}

// Whatever Linux says when time or a processor went wrong.
void CheckKernelIsContent(World& world) {
  const std::string log = world.Sh("dmesg");
  INFO(log);
  for (const char* bad :
       {"lockup", "unstable", "rcu_sched", "rcu: INFO", "backwards", "BUG",
        "WARNING", "NETDEV WATCHDOG", "I/O error", "hung"}) {
    CHECK_THAT(log, !Catch::Contains(bad));
  }
}

void CheckDevicesWork(World& world, const std::string& text) {
  CHECK(world.Sh("echo " + text +
                 " | dd of=/dev/vda bs=4096 conv=sync,fsync seek=7 2>/dev/null;"
                 "echo 3 > /proc/sys/vm/drop_caches;"
                 "dd if=/dev/vda bs=4096 skip=7 count=1 2>/dev/null | tr -d "
                 "'\\000'") == text + "\n");
  CHECK(world.Sh("dd if=/dev/hwrng bs=16 count=1 2>/dev/null | wc -c") ==
        "16\n");
  CHECK_THAT(world.Sh("ping -c 1 -W 20 10.233.117.1; echo code=$?"),
             Catch::Contains("code=0"));
}

void SaveAndGoOn(int vcpus, bool tsc, bool adopt) {
  // Where a host is emulated, Linux finds at its boot that the processors' TSCs
  // differ, unless it is told not to look.
  World world(vcpus, !tsc        ? ""
                     : vcpus > 1 ? "clocksource=tsc tsc=reliable"
                                 : "clocksource=tsc");
  CHECK(world.Sh("cat /sys/devices/system/clocksource/clocksource0/"
                 "current_clocksource") == (tsc ? "tsc\n" : "kvm-clock\n"));
  CHECK(world.Sh("nproc") == std::to_string(vcpus) + "\n");
  CheckDevicesWork(world, "before");
  world.Sh("dmesg -c > /dev/null");  // What the boot said.
  world.Sh(
      "(i=0; while :; do i=$((i+1)); echo $i > /tmp/count; done) "
      "</dev/null >/dev/null 2>&1 & echo $! > /tmp/pid");
  std::string since;
  for (int round = 0; round < 2; ++round) {
    const int64_t count = Count(world);
    const double uptime = Uptime(world);
    auto running = world.Begin("sleep 1; echo over");
    const auto asked = Clock::now();
    const test::SavedGuest saved = world.SaveAndDestroy();
    std::this_thread::sleep_for(std::chrono::seconds(3));
    const auto slept = std::chrono::duration<double>(Clock::now() - asked);
    world.Restore(saved, adopt);
    const auto went = std::chrono::duration<double>(Clock::now() - asked);

    // What was under way goes on, or ended with the connection.
    REQUIRE(running.wait_for(std::chrono::seconds(60)) ==
            std::future_status::ready);
    const auto outcome = running.get();
    CHECK(outcome.ok() == adopt);
    if (outcome.ok()) CHECK(outcome->stdout_data == "over\n");

    const double after = Uptime(world);
    const auto all = std::chrono::duration<double>(Clock::now() - asked);
    CHECK(after > uptime);
    // The time in which it did not run does not count.
    CHECK(after - uptime < all.count() - 2.9);
    INFO("slept " << slept.count() << " launched by " << went.count());
    const int64_t counted = Count(world);
    CHECK(counted > count);
    CHECK(Count(world) > counted);
    CHECK(world.Sh("kill -0 $(cat /tmp/pid) && echo lives") == "lives\n");
    CheckDevicesWork(world, "round" + std::to_string(round));
  }
  // Long enough for the watchdogs of clocks and of processors.
  world.Sh("sleep 3");
  CheckKernelIsContent(world);
  CHECK(world.Sh("cat /sys/devices/system/clocksource/clocksource0/"
                 "current_clocksource") == (tsc ? "tsc\n" : "kvm-clock\n"));
}

TEST_CASE("A saved Linux guest goes on with its connection") {
  SaveAndGoOn(1, /*tsc=*/false, /*adopt=*/true);
}

TEST_CASE("A saved Linux guest with clock source tsc makes a new connection") {
  SaveAndGoOn(1, /*tsc=*/true, /*adopt=*/false);
}

TEST_CASE("A saved Linux guest with two processors makes a new connection") {
  SaveAndGoOn(2, /*tsc=*/false, /*adopt=*/false);
}

TEST_CASE("A saved Linux guest with two processors and clock source tsc") {
  SaveAndGoOn(2, /*tsc=*/true, /*adopt=*/true);
}

TEST_CASE("A Linux guest that was saved in passing notices nothing") {
  World world(2, "");
  world.Sh("dmesg -c > /dev/null");
  world.Sh(
      "(i=0; while :; do i=$((i+1)); echo $i > /tmp/count; done) "
      "</dev/null >/dev/null 2>&1 &");
  for (int i = 0; i < 20; ++i) {
    REQUIRE(world.machine().Pause().ok());
    REQUIRE(world.machine().Save().ok());
    REQUIRE(world.machine().Start().ok());
    const int64_t count = Count(world);
    CHECK(Count(world) > count);
  }
  CheckDevicesWork(world, "after");
  CheckKernelIsContent(world);
}

}  // namespace
}  // namespace catnap::vmm
