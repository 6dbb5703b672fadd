#ifndef CATNAP_TESTS_LINUX_GUEST_LOADS_H_
#define CATNAP_TESTS_LINUX_GUEST_LOADS_H_

#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <catch2/catch.hpp>
#include <charconv>
#include <chrono>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <utility>

#include "base/mutex.h"
#include "catnap/catnap.h"
#include "linux/host_network.h"
#include "support/tcp.h"

// What uses the devices of a guest all the time: each says how far it is, so
// that one which no longer gets on is found.
namespace catnap::test {

// Whether the program lives on.
inline bool Runs(Process& process) {
  return absl::IsDeadlineExceeded(
      process.Wait({.timeout = std::chrono::milliseconds(1)}).status());
}

// fio writes files of the guest's root disk and reads them back, past the page
// cache, and ends when a checksum is wrong or a request fails.
class DiskLoad {
 public:
  explicit DiskLoad(const MicroVM& vm) : vm_(vm) {
    Command command;
    command.argv = {
        "/bin/fio",          "--name=load",       "--directory=/tmp",
        "--size=1M",         "--bs=16k",          "--rw=randwrite",
        "--direct=1",        "--fsync=16",        "--iodepth=4",
        "--ioengine=libaio", "--verify=crc32c",   "--verify_fatal=1",
        "--loops=1000000",   "--rate_iops=20,20", "--thread",
        "--eta=never"};
    auto process = vm_.Start(command);
    INFO(process.status().ToString());
    REQUIRE(process.ok());
    process_ = *std::move(process);
    const auto all = vm_.ListProcesses();
    REQUIRE(all.ok());
    for (const ProcessInfo& one : *all) {
      if (one.id == process_->id()) io_of_ = OfProcess(one.guest_pid);
    }
    REQUIRE_FALSE(io_of_.empty());
  }

  // Bytes from and to the disk; in a copy of the guest too.
  uint64_t progress() const { return ProgressIn(vm_); }
  uint64_t ProgressIn(const MicroVM& vm) const {
    const auto io = vm.ReadFile(io_of_);
    if (!io.ok()) return 0;
    return Number(*io, "\nread_bytes: ") + Number(*io, "\nwrite_bytes: ");
  }

  // Ends it, and looks at what it says of all that it did.
  void CheckFine() {
    CHECK(Runs(*process_));
    CHECK(process_->Signal(SIGINT).ok());
    const auto result = process_->Wait({.timeout = std::chrono::seconds(60)});
    REQUIRE(result.ok());
    INFO(result->stdout_data << result->stderr_data);
    CHECK_THAT(result->stdout_data, Catch::Contains("err= 0"));
    CHECK(result->stderr_data.find("verify") == std::string::npos);
  }

 private:
  static std::string OfProcess(int pid) {
    return "/proc/" + std::to_string(pid) + "/io";
  }
  static uint64_t Number(const std::string& text, const std::string& before) {
    const size_t at = text.find(before);
    uint64_t number = 0;
    if (at != std::string::npos) {
      std::from_chars(text.data() + at + before.size(),
                      text.data() + text.size(), number);
    }
    return number;
  }

  const MicroVM vm_;
  std::unique_ptr<Process> process_;
  std::string io_of_;
};

// iperf3 in the guest sends to one on the host and receives from it, again and
// again.
class NetworkLoad {
 public:
  // The guest may reach HostNetwork::kAddress, in whose namespace this thread
  // is.
  explicit NetworkLoad(const MicroVM& vm) {
    std::array<const char*, 5> server{"iperf3", "-s", "-B",
                                      HostNetwork::kAddressText, nullptr};
    posix_spawn_file_actions_t actions;
    REQUIRE(::posix_spawn_file_actions_init(&actions) == 0);
    ::posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null",
                                       O_WRONLY, 0);
    const int spawned =
        ::posix_spawnp(&server_, server[0], &actions, nullptr,
                       const_cast<char* const*>(server.data()), environ);
    ::posix_spawn_file_actions_destroy(&actions);
    REQUIRE(spawned == 0);
    WaitForServer();

    // 15 s each: passt of Debian 12 resets a connection on which its server has
    // sent nothing for the first 24.
    Command command;
    command.argv = {"/bin/sh", "-c",
                    "while iperf3 -c " +
                        std::string(HostNetwork::kAddressText) +
                        " --bidir -t 15 -b 600K -l 4K -i 0.1 --forceflush "
                        "--pacing-timer 50000; "
                        "do :; done"};
    command.on_output = [this](Stream, std::string_view text) { Hear(text); };
    auto process = vm.Start(command);
    INFO(process.status().ToString());
    REQUIRE(process.ok());
    process_ = *std::move(process);
  }
  ~NetworkLoad() {
    process_.reset();
    ::kill(server_, SIGKILL);
    ::waitpid(server_, nullptr, 0);
  }
  NetworkLoad(const NetworkLoad&) = delete;
  NetworkLoad& operator=(const NetworkLoad&) = delete;

  // Intervals in which bytes were sent, and received.
  uint32_t sent() const { return sent_; }
  uint32_t received() const { return received_; }

  void CheckFine() { CHECK(Runs(*process_)); }

  // For people: what the client said last.
  std::string last() const {
    const base::MutexLock lock(&mutex_);
    return last_;
  }

 private:
  // Without a connection, which it would take for a client.
  static void WaitForServer() {
    constexpr const char* kListens = ":1451 00000000:0000 0A ";  // Port 5201.
    for (int i = 0; i < 1000; ++i) {
      std::ifstream file("/proc/thread-self/net/tcp");
      const std::string sockets{std::istreambuf_iterator<char>(file), {}};
      if (sockets.find(kListens) != std::string::npos) return;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    FAIL("iperf3 does not listen");
  }

  // Lines are "[  5][TX-C]   0.00-0.20   sec  16.0 KBytes ..."
  void Hear(std::string_view text) {
    const base::MutexLock lock(&mutex_);
    line_ += text;
    for (size_t end = 0; (end = line_.find('\n')) != std::string::npos;) {
      last_ = line_.substr(0, end);
      line_.erase(0, end + 1);
      const size_t at = last_.find(" sec ");
      if (at == std::string::npos) continue;
      const size_t number = last_.find_first_not_of(' ', at + 5);
      if (number == std::string::npos ||
          last_.compare(number, 5, "0.00 ") == 0) {
        continue;
      }
      if (last_.find("[TX-C]") != std::string::npos) ++sent_;
      if (last_.find("[RX-C]") != std::string::npos) ++received_;
    }
  }

  pid_t server_ = -1;
  mutable base::Mutex mutex_;
  std::string line_ ABSL_GUARDED_BY(mutex_);
  std::string last_ ABSL_GUARDED_BY(mutex_);
  std::atomic<uint32_t> sent_{0};
  std::atomic<uint32_t> received_{0};
  std::unique_ptr<Process> process_;
};

// Sends patterns through a program of the guest and back, over vsock, and
// compares every byte.
class EchoLoad {
 public:
  explicit EchoLoad(const MicroVM& vm) {
    Command command;
    command.argv = {"/bin/cat"};
    auto process = vm.Start(command);
    INFO(process.status().ToString());
    REQUIRE(process.ok());
    process_ = *std::move(process);
    thread_ = std::thread([this] { Run(); });
  }
  ~EchoLoad() {
    stop_ = true;
    thread_.join();
  }
  EchoLoad(const EchoLoad&) = delete;
  EchoLoad& operator=(const EchoLoad&) = delete;

  uint32_t rounds() const { return rounds_; }
  void CheckFine() const { CHECK_FALSE(failed_); }
  // Returns between two rounds; none begins until GoOn().
  void Rest() {
    rest_ = true;
    const base::MutexLock lock(&round_);
  }
  void GoOn() { rest_ = false; }

 private:
  void Run() {
    while (!stop_ && !failed_) {
      // Others want the CPU as well.
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      if (rest_) continue;
      const base::MutexLock lock(&round_);
      if (Once()) {
        ++rounds_;
      } else {
        failed_ = true;
      }
    }
  }
  bool Once() {
    std::string sent(4096, '\0');
    for (size_t i = 0; i < sent.size(); ++i) {
      sent[i] = static_cast<char>(i * 31 + rounds_);
    }
    if (!process_->Write(sent).ok()) return false;
    std::string back;
    std::array<char, 4096> buffer{};
    while (back.size() < sent.size()) {
      const auto got = process_->Read(Stream::kStdout, buffer);
      if (!got.ok() || *got == 0) return false;
      back.append(buffer.data(), *got);
    }
    return back == sent;
  }

  std::unique_ptr<Process> process_;
  base::Mutex round_;
  std::atomic<bool> rest_{false};
  std::atomic<bool> stop_{false};
  std::atomic<bool> failed_{false};
  std::atomic<uint32_t> rounds_{0};
  std::thread thread_;
};

}  // namespace catnap::test

#endif  // CATNAP_TESTS_LINUX_GUEST_LOADS_H_
