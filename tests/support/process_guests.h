#ifndef CATNAP_TESTS_SUPPORT_PROCESS_GUESTS_H_
#define CATNAP_TESTS_SUPPORT_PROCESS_GUESTS_H_

#include <signal.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <iterator>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "agent/sleep.h"
#include "base/mutex.h"
#include "runtime/guest.h"
#include "support/running_agent.h"
#include "support/temporary_directory.h"

namespace catnap::testing {

// What tests make guests do.
struct GuestFaults {
  std::atomic<bool> suspend_fails{false};
  std::atomic<bool> resume_fails{false};
  std::atomic<bool> start_fails{false};
  std::atomic<bool> store_fails{false};
  // Suspend(), Resume(), Capture(), Settle() and Store() take as long, unless
  // stopped.
  std::atomic<int> delay_ms{0};
  std::atomic<int> suspends{0}, resumes{0}, starts{0}, captures{0};
  std::atomic<int> settles{0}, settled{0};  // Began, ended.
};

// A guest's memory: what a test puts there. Of its disk there is a file "disk"
// in its directory.
class ProcessMemory {
 public:
  std::string Get() {
    const base::MutexLock lock(&mutex_);
    return text_;
  }
  void Set(std::string text) {
    const base::MutexLock lock(&mutex_);
    text_ = std::move(text);
  }

 private:
  base::Mutex mutex_;
  std::string text_ ABSL_GUARDED_BY(mutex_) = "fresh";
};

inline constexpr char kMemoryName[] = "memory";
inline constexpr char kDiskName[] = "disk";

// Sleeps, unless it is asked to stop.
inline absl::Status Delay(
    const GuestFaults& faults, const std::stop_token& stop,
    std::optional<std::chrono::steady_clock::time_point> deadline) {
  const auto end = std::chrono::steady_clock::now() +
                   std::chrono::milliseconds(faults.delay_ms);
  while (std::chrono::steady_clock::now() < end) {
    if (stop.stop_requested()) return absl::CancelledError("stopped");
    if (deadline.has_value() && std::chrono::steady_clock::now() >= *deadline) {
      return absl::DeadlineExceededError("late");
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return absl::OkStatus();
}

inline std::string ReadText(const std::filesystem::path& path) {
  std::ifstream in(path);
  std::string text;
  std::getline(in, text);
  return text;
}

inline absl::StatusOr<runtime::StoredSizes> WriteState(
    const std::filesystem::path& directory, const std::string& memory,
    const std::string& disk) {
  std::ofstream(directory / kMemoryName) << memory;
  std::ofstream(directory / kDiskName) << disk;
  return runtime::StoredSizes{.stored_bytes = memory.size() + disk.size(),
                              .own_bytes = memory.size()};
}

class ProcessCapture final : public runtime::CapturedGuest {
 public:
  ProcessCapture(std::string memory, std::string disk,
                 std::shared_ptr<GuestFaults> faults)
      : memory_(std::move(memory)),
        disk_(std::move(disk)),
        faults_(std::move(faults)) {}
  uint64_t own_bytes() const override { return memory_.size(); }
  absl::StatusOr<runtime::StoredSizes> Store(
      const std::filesystem::path& directory,
      const runtime::StoreOptions& options) override {
    const absl::Status waited = Delay(*faults_, options.stop, options.deadline);
    if (!waited.ok()) return waited;
    if (faults_->store_fails) return absl::ResourceExhaustedError("disk full");
    return WriteState(directory, memory_, disk_);
  }
  const std::string& memory() const { return memory_; }
  const std::string& disk() const { return disk_; }

 private:
  const std::string memory_;
  const std::string disk_;
  const std::shared_ptr<GuestFaults> faults_;
};

// A guest without a machine: its agent is a process of this one's host, which
// is stopped while the guest sleeps.
class ProcessGuest final : public runtime::Guest {
 public:
  ProcessGuest(std::shared_ptr<RunningAgent> agent,
               std::shared_ptr<const test::TemporaryDirectory> run,
               std::function<void(runtime::GuestEnd)> on_end,
               std::filesystem::path directory,
               std::shared_ptr<GuestFaults> faults)
      : agent_(std::move(agent)),
        run_(std::move(run)),
        on_end_(std::move(on_end)),
        client_(agent_->client()),
        directory_(std::move(directory)),
        faults_(std::move(faults)) {}
  ~ProcessGuest() override { Stop(); }

  absl::StatusOr<std::shared_ptr<agent::Client>> WaitForClient(
      std::chrono::steady_clock::time_point /*deadline*/,
      const std::function<bool()>& give_up) override {
    if (stopped_ || (give_up != nullptr && give_up())) {
      return absl::CancelledError("the guest was stopped");
    }
    return std::shared_ptr<agent::Client>(agent_, client_);
  }
  void Wake() override {}
  void Stop() override {
    if (stopped_.exchange(true)) return;
    ::kill(agent_->pid(), SIGKILL);
    client_->Close(absl::CancelledError("the guest was stopped"));
  }
  std::string ConsoleTail() const override { return "console"; }
  double VcpuSeconds() const override { return 1.5; }
  uint64_t StoredBytes() const override { return 4096; }
  std::string WaitsFor() const override { return ""; }
  absl::Status SetEgress(const NetworkPolicy& /*policy*/) override {
    return absl::OkStatus();
  }
  uint64_t OutboundFrames() const override { return frames_; }
  absl::StatusOr<runtime::StoredSizes> Suspend(
      const std::filesystem::path& directory,
      const runtime::StoreOptions& options) override {
    ++faults_->suspends;
    ::kill(agent_->pid(), SIGSTOP);
    absl::Status status = Delay(*faults_, options.stop, options.deadline);
    if (status.ok() && faults_->suspend_fails) {
      status = absl::ResourceExhaustedError("disk full");
    }
    if (!status.ok()) {
      ::kill(agent_->pid(), SIGCONT);
      return status;
    }
    return WriteState(directory, memory_.Get(),
                      ReadText(directory_ / kDiskName));
  }
  absl::Status Resume(const std::filesystem::path& directory,
                      const agent::CallLimits& limits) override {
    ++faults_->resumes;
    absl::Status waited = Delay(*faults_, limits.stop, limits.deadline);
    if (!waited.ok()) return waited;
    if (faults_->resume_fails ||
        ReadText(directory / kMemoryName) != memory_.Get()) {
      return absl::DataLossError("damaged");
    }
    ::kill(agent_->pid(), SIGCONT);
    return absl::OkStatus();
  }
  void Settle() override {
    ++faults_->settles;
    static_cast<void>(Delay(*faults_, {}, {}));
    ++faults_->settled;
  }
  absl::StatusOr<std::shared_ptr<runtime::CapturedGuest>> Capture(
      runtime::CaptureUse /*use*/, const agent::CallLimits& limits) override {
    ++faults_->captures;
    const absl::Status waited = Delay(*faults_, limits.stop, limits.deadline);
    if (!waited.ok()) return waited;
    if (faults_->suspend_fails) {
      return absl::FailedPreconditionError("cannot be frozen");
    }
    return std::make_shared<ProcessCapture>(
        memory_.Get(), ReadText(directory_ / kDiskName), faults_);
  }

  // As if it had ended by itself.
  void EndWith(runtime::GuestEnd end) { on_end_(std::move(end)); }
  ProcessMemory& memory() { return memory_; }
  void SetDisk(const std::string& text) {
    std::ofstream(directory_ / kDiskName) << text;
  }
  std::string disk() const { return ReadText(directory_ / kDiskName); }
  const std::filesystem::path& directory() const { return directory_; }
  void SendFrame() { ++frames_; }
  // What it shows its programs as /run/catnap/env; "none": there is none.
  std::string env() const {
    std::ifstream in(run_->File("env"));
    if (!in) return "none";
    return {std::istreambuf_iterator<char>(in), {}};
  }

 private:
  const std::shared_ptr<RunningAgent> agent_;
  const std::shared_ptr<const test::TemporaryDirectory> run_;
  const std::function<void(runtime::GuestEnd)> on_end_;
  agent::Client* const client_;
  const std::filesystem::path directory_;
  const std::shared_ptr<GuestFaults> faults_;
  ProcessMemory memory_;
  std::atomic<uint64_t> frames_{0};
  std::atomic<bool> stopped_{false};
};

class ProcessGuestFactory final : public runtime::GuestFactory {
 public:
  ProcessGuestFactory(std::string program, std::shared_ptr<GuestFaults> faults)
      : program_(std::move(program)), faults_(std::move(faults)) {}

  // As the real one, waits for the last user of each client: that may be a
  // handler on the very thread that the agent's end joins.
  ~ProcessGuestFactory() override {
    for (const auto& agent : agents_) {
      while (agent.use_count() > 1) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
    }
  }

  absl::StatusOr<std::unique_ptr<runtime::Guest>> Start(
      runtime::GuestConfig config) override {
    ++faults_->starts;
    if (faults_->start_fails) return absl::ResourceExhaustedError("no memory");
    auto run = std::make_shared<const test::TemporaryDirectory>();
    auto agent = std::make_shared<RunningAgent>(
        program_, RunningAgent::Options{.run_directory = run->path()},
        config.services);
    config.services->OnClient(
        std::shared_ptr<agent::Client>(agent, agent->client()));
    auto guest = std::make_unique<ProcessGuest>(
        agent, std::move(run), config.on_end, config.directory, faults_);
    {
      const base::MutexLock lock(&mutex_);
      agents_.push_back(agent);
      latest_ = guest.get();
    }
    if (config.origin.has_value()) {
      if (!std::filesystem::is_empty(config.directory)) {
        return absl::InternalError("the guest's directory is not empty");
      }
      if (const auto* captured =
              static_cast<ProcessCapture*>(config.origin->captured.get())) {
        guest->memory().Set(captured->memory());
        guest->SetDisk(captured->disk());
      } else {
        const auto& from = config.origin->directory;
        if (!std::filesystem::exists(from / kMemoryName)) {
          return absl::DataLossError("no memory in " + from.string());
        }
        guest->memory().Set(ReadText(from / kMemoryName));
        guest->SetDisk(ReadText(from / kDiskName));
      }
      const absl::Status running = StartApplication(*config.image, *agent);
      if (!running.ok()) return running;
      const absl::Status awake = WakePrograms(config.env, *agent);
      if (!awake.ok()) return awake;
    } else if (!std::filesystem::exists(config.directory / kDiskName)) {
      guest->SetDisk("image");
    }
    if (config.on_prepared != nullptr) {
      const absl::Status prepared = config.on_prepared();
      if (!prepared.ok()) return prepared;
    }
    return guest;
  }
  absl::StatusOr<std::string> Identity() override { return std::string("a"); }
  absl::Status Verify(const runtime::ImageRecord& /*image*/,
                      const std::filesystem::path& directory,
                      const agent::CallLimits& /*limits*/) override {
    if (!ReadText(directory / kMemoryName).empty()) return absl::OkStatus();
    return absl::DataLossError("no memory");
  }
  absl::Status Prewarm(const runtime::ImageRecord& /*image*/,
                       int count) override {
    prewarmed_ += count;
    return absl::OkStatus();
  }
  int prewarmed() const { return prewarmed_; }

  // Of the guest started last. REQUIRES: it lives.
  ProcessGuest* latest() {
    const base::MutexLock lock(&mutex_);
    return latest_;
  }

 private:
  // As if it ran since the state was stored.
  static absl::Status StartApplication(const runtime::ImageRecord& image,
                                       RunningAgent& agent) {
    if (image.application.empty()) return absl::OkStatus();
    agent::ExecRequest request;
    request.argv = image.application;
    for (const auto& [name, value] : image.env) {
      request.env.push_back(std::string(name).append("=").append(value));
    }
    request.cwd = image.workdir;
    request.application = true;
    request.report_start = true;
    auto started = std::make_shared<std::promise<void>>();
    auto waits = started->get_future();
    agent::ProcessEvents events;
    events.on_started = [started](const agent::Started& /*it*/) {
      started->set_value();
    };
    const auto process = agent::GuestProcess::Start(
        agent.client(), std::move(request), std::move(events));
    if (!process.ok()) return process.status();
    if (waits.wait_for(std::chrono::seconds(30)) != std::future_status::ready) {
      return absl::UnavailableError("the application did not start");
    }
    (*process)->Detach();
    return absl::OkStatus();
  }

  static absl::Status WakePrograms(std::vector<std::string> env,
                                   RunningAgent& agent) {
    agent::WakeOptions options;
    options.env = std::move(env);
    auto awake = std::make_shared<std::promise<absl::Status>>();
    auto waits = awake->get_future();
    agent::Wake(agent.client(), options, {},
                [awake](const absl::StatusOr<std::string>& left_out) {
                  awake->set_value(left_out.status());
                });
    return waits.get();
  }

  const std::string program_;
  const std::shared_ptr<GuestFaults> faults_;
  std::atomic<int> prewarmed_{0};
  base::Mutex mutex_;
  std::vector<std::shared_ptr<RunningAgent>> agents_ ABSL_GUARDED_BY(mutex_);
  ProcessGuest* latest_ ABSL_GUARDED_BY(mutex_) = nullptr;
};

}  // namespace catnap::testing

#endif  // CATNAP_TESTS_SUPPORT_PROCESS_GUESTS_H_
