#include <catch2/catch.hpp>
#include <chrono>
#include <cstdio>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "agent/files.h"
#include "agent/process.h"
#include "agent/sleep.h"
#include "base/mutex.h"
#include "linux/agent_guest.h"

namespace catnap::runtime {
namespace {

using namespace std::chrono_literals;
using test::AgentGuest;

// An emulated host is slow, and others may use its CPUs.
constexpr std::chrono::milliseconds kBound = 2s;

absl::StatusOr<agent::FreezeReport> FreezeNow(AgentGuest* guest,
                                              bool flush = false) {
  std::promise<absl::StatusOr<agent::FreezeReport>> done;
  agent::Freeze(guest->client(), {.bound = kBound, .flush = flush},
                test::Deadline(),
                [&done](absl::StatusOr<agent::FreezeReport> report) {
                  done.set_value(std::move(report));
                });
  return done.get_future().get();
}
absl::Status ThawNow(AgentGuest* guest) {
  std::promise<absl::Status> done;
  agent::Thaw(guest->client(), test::Deadline(), [&done](absl::Status status) {
    done.set_value(std::move(status));
  });
  return done.get_future().get();
}
absl::StatusOr<std::string> WakeNow(AgentGuest* guest,
                                    const agent::WakeOptions& options = {}) {
  std::promise<absl::StatusOr<std::string>> done;
  agent::Wake(guest->client(), options, test::Deadline(),
              [&done](absl::StatusOr<std::string> left_out) {
                done.set_value(std::move(left_out));
              });
  return done.get_future().get();
}

// A program of the guest whose output is looked at while it runs.
class Program {
 public:
  Program(AgentGuest* guest, agent::ExecRequest request) {
    agent::ProcessEvents events;
    events.on_output = [this](uint8_t, std::span<const uint8_t> data) {
      base::MutexLock lock(&mutex_);
      text_.append(data.begin(), data.end());
      return data.size();
    };
    events.on_exit = [this](const absl::StatusOr<agent::ExitReport>&) {
      ended_.set_value();
    };
    auto process = agent::GuestProcess::Start(
        guest->client(), std::move(request), std::move(events));
    REQUIRE(process.ok());
    process_ = *std::move(process);
  }
  ~Program() {
    process_->Kill();
    ended_.get_future().wait();
  }
  std::string text() const {
    base::MutexLock lock(&mutex_);
    return text_;
  }
  // Whether `part` is written in time.
  bool Writes(const std::string& part, std::chrono::milliseconds time = 20s) {
    const auto end = std::chrono::steady_clock::now() + time;
    while (text().find(part) == std::string::npos) {
      if (std::chrono::steady_clock::now() > end) return false;
      std::this_thread::sleep_for(1ms);
    }
    return true;
  }
  agent::GuestProcess* process() { return process_.get(); }

 private:
  mutable base::Mutex mutex_;
  std::string text_ ABSL_GUARDED_BY(mutex_);
  std::promise<void> ended_;
  std::shared_ptr<agent::GuestProcess> process_;
};

void CopyProbeIn(AgentGuest* guest) {
  const absl::Status copied = agent::CopyIn(guest->client(), CATNAP_WAKE_PROBE,
                                            "/tmp/probe", {}, test::Deadline());
  INFO(copied.ToString());
  REQUIRE(copied.ok());
}

agent::ExecRequest Probe(const std::string& what) {
  agent::ExecRequest request;
  request.argv = {"/tmp/probe", what};
  return request;
}

int64_t Milliseconds(std::chrono::nanoseconds time) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(time).count();
}

TEST_CASE("A freeze stops all programs of a guest, and a thaw lets them go") {
  AgentGuest guest(/*vcpus=*/2);
  guest.CopyBusyboxIn();
  // One of them in a control group of its own making.
  agent::ExecRequest request;
  request.argv = {"/tmp/busybox", "sh", "-c",
                  "mkdir /sys/fs/cgroup/mine; "
                  "count() { i=0; while :; do i=$((i+1)); echo $i >$1; done; };"
                  "(echo 0 >/sys/fs/cgroup/mine/cgroup.procs; count /tmp/a) & "
                  "count /tmp/b"};
  request.env = {"PATH=/tmp/bin"};
  Program counters(&guest, request);
  const auto read = [&guest](const std::string& path) {
    std::promise<absl::StatusOr<std::string>> done;
    agent::ReadFile(guest.client(), path, 100, test::Deadline(),
                    [&done](absl::StatusOr<std::string> text) {
                      done.set_value(std::move(text));
                    });
    return done.get_future().get();
  };
  while (!read("/tmp/a").ok() || !read("/tmp/b").ok()) {
    std::this_thread::sleep_for(10ms);
  }
  std::vector<int64_t> freezes;
  for (int i = 0; i < 5; ++i) {
    const auto start = std::chrono::steady_clock::now();
    const auto report = FreezeNow(&guest, /*flush=*/i == 0);
    const auto round_trip = std::chrono::steady_clock::now() - start;
    INFO(report.status().ToString());
    REQUIRE(report.ok());
    CHECK(report->freeze <= kBound);
    std::printf(
        "freeze of 2 spinners: %.2f ms in the guest (flush %.2f), "
        "%.2f ms to the host\n",
        static_cast<double>(report->freeze.count()) / 1e6,
        static_cast<double>(report->flush.count()) / 1e6,
        static_cast<double>(round_trip.count()) / 1e6);
    // A file is read by the agent itself, but only when nothing is frozen.
    const auto cpu = guest.machine().vcpu_time();
    std::this_thread::sleep_for(300ms);
    // Two spinners would have taken twice this, on one CPU of the host half.
    CHECK(Milliseconds(guest.machine().vcpu_time() - cpu) < 100);
    CHECK(ThawNow(&guest).ok());
    const auto before_a = read("/tmp/a");
    const auto before_b = read("/tmp/b");
    bool counts = false;
    for (int wait = 0; wait < 500 && !counts; ++wait) {
      std::this_thread::sleep_for(10ms);
      const auto a = read("/tmp/a");
      const auto b = read("/tmp/b");
      counts = a.ok() && b.ok() && *a != *before_a && *b != *before_b;
    }
    CHECK(counts);
  }
}

TEST_CASE("After a wake no program sees the old time") {
  AgentGuest guest(/*vcpus=*/2);
  guest.CopyBusyboxIn();
  CopyProbeIn(&guest);
  CHECK(guest.Shell("date -s '2020-01-01 00:00:00' >/dev/null").empty());
  Program first(&guest, Probe("clock"));
  Program second(&guest, Probe("clock"));
  Program watcher(&guest, Probe("watch"));
  REQUIRE(first.Writes("ready\n"));
  REQUIRE(second.Writes("ready\n"));
  REQUIRE(watcher.Writes("ready\n"));
  const auto frozen = FreezeNow(&guest);
  INFO(frozen.status().ToString());
  REQUIRE(frozen.ok());
  std::this_thread::sleep_for(3s);
  const auto start = std::chrono::steady_clock::now();
  const auto woken = WakeNow(&guest, {.generation = 0xabc});
  const auto took = std::chrono::steady_clock::now() - start;
  INFO(woken.status().ToString());
  REQUIRE(woken.ok());
  CHECK(woken->empty());
  std::printf("wake: %.2f ms to the host\n",
              static_cast<double>(took.count()) / 1e6);
  CHECK(watcher.Writes("0000000000000abc\n"));
  for (Program* const program : {&first, &second}) {
    REQUIRE(program->Writes("0000000000000abc "));
    // The count of wrong ones ends the line.
    REQUIRE(program->Writes(" 0\n"));
    const std::string text = program->text();
    INFO(text);
    const size_t at = text.find("0000000000000abc ");
    const int64_t offset = std::stoll(text.substr(at + 17));
    CHECK(offset > 0);
  }
  // The guest's clock against this host's, read with nothing in between but
  // the way there and back.
  int64_t best = INT64_MAX;
  for (int i = 0; i < 5; ++i) {
    const auto now = [] {
      return std::chrono::system_clock::now().time_since_epoch();
    };
    const auto before = now();
    CHECK(guest.Shell("echo x >/tmp/stamp").empty());
    const auto after = now();
    std::promise<absl::StatusOr<agent::FileEntry>> done;
    agent::Stat(guest.client(), "/tmp/stamp", test::Deadline(),
                [&done](absl::StatusOr<agent::FileEntry> entry) {
                  done.set_value(std::move(entry));
                });
    const auto entry = done.get_future().get();
    REQUIRE(entry.ok());
    const auto mtime = std::chrono::nanoseconds(entry->mtime_ns);
    // File times are those of the last tick, up to 4 ms ago.
    const int64_t early = Milliseconds(before - mtime);
    const int64_t late = Milliseconds(mtime - after);
    best = std::min(best, std::max({early, late, int64_t{0}}));
  }
  std::printf("clock after the wake: off by at most %lld ms beyond an exec\n",
              static_cast<long long>(best));  // NOLINT
  CHECK(best <= 50);
}

TEST_CASE("A copy loses its connections with others, and nothing else") {
  AgentGuest guest(/*vcpus=*/2);
  guest.CopyBusyboxIn();
  CopyProbeIn(&guest);
  CHECK(guest
            .Shell("ip link set dummy0 up && "
                   "ip addr add 192.0.2.1/24 dev dummy0 && "
                   "ip -6 addr add 2001:db8::1/64 dev dummy0 && "
                   "mkdir -p /etc")
            .empty());
  agent::ExecRequest request = Probe("sockets");
  request.stdin_open = true;
  Program sockets(&guest, request);
  const bool ready = sockets.Writes("ready\n");
  INFO(sockets.text());
  REQUIRE(ready);
  request = {};
  request.argv = {"/tmp/busybox", "sh", "-c", "read line; echo got $line"};
  request.pty = agent::WindowSize{};
  request.stdin_open = true;
  Program terminal(&guest, request);

  // An ordinary wake keeps all of them.
  REQUIRE(FreezeNow(&guest).ok());
  REQUIRE(WakeNow(&guest).ok());
  std::this_thread::sleep_for(300ms);
  CHECK(sockets.text() == "ready\n");

  REQUIRE(FreezeNow(&guest).ok());
  agent::WakeOptions options;
  options.is_copy = true;
  options.hostname = "fork-7";
  options.machine_id =
      agent::MachineId{0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef,
                       0,    0,    0,    0,    0,    0,    0,    0xff};
  options.env = {"NAME=a b"};
  const auto start = std::chrono::steady_clock::now();
  const auto woken = WakeNow(&guest, options);
  std::printf(
      "wake of a copy with 3 connections: %.2f ms to the host\n",
      static_cast<double>((std::chrono::steady_clock::now() - start).count()) /
          1e6);
  INFO(woken.status().ToString());
  REQUIRE(woken.ok());
  CHECK(woken->empty());
  CHECK(sockets.Writes("outside v4 ECONNABORTED\n", 1s));
  CHECK(sockets.Writes("outside v6 ECONNABORTED\n", 1s));
  CHECK(sockets.Writes("outside udp ECONNABORTED\n", 1s));
  REQUIRE(sockets.process()->Write({}, true).ok());
  CHECK(sockets.Writes("deleted file lives\n"));
  for (const char* lives :
       {"loopback lives\n", "own address lives\n", "loopback v6 lives\n",
        "pipe lives\n", "listener lives\n"}) {
    INFO(sockets.text());
    CHECK(sockets.text().find(lives) != std::string::npos);
  }
  const std::string line = "on\n";
  REQUIRE(
      terminal.process()
          ->Write({reinterpret_cast<const uint8_t*>(line.data()), line.size()},
                  false)
          .ok());
  CHECK(terminal.Writes("got on"));
  CHECK(guest.Shell("hostname; cat /etc/machine-id; . /run/catnap/env; "
                    "echo $NAME; ls -l /run/catnap/generation | cut -c1-10") ==
        "fork-7\n0123456789abcdef00000000000000ff\na b\n-rw-r--r--\n");
  CHECK(guest.Shell("cd /run/catnap/lib && ls python/* node/* openssl/* && "
                    "touch python/x 2>&1 | grep -o Read-only") ==
        "node/catnap_reseed.js\nopenssl/libcatnap_reseed.so\n"
        "python/catnap_reseed.py\npython/sitecustomize.py\nRead-only\n");
  // Where it cannot be written, it is covered.
  CHECK(guest
            .Shell("mount -t tmpfs none /etc; echo old >/etc/machine-id; "
                   "mount -o remount,ro /etc")
            .empty());
  for (const uint8_t last : {uint8_t{1}, uint8_t{2}}) {
    options.machine_id->back() = last;
    REQUIRE(WakeNow(&guest, options).ok());
    CHECK(guest.Shell("cat /etc/machine-id") ==
          "0123456789abcdef000000000000000" + std::to_string(last) + "\n");
  }
  CHECK(guest.Shell("mount | grep -c machine-id") == "1\n");
}

}  // namespace
}  // namespace catnap::runtime
