#ifndef CATNAP_TESTS_SUPPORT_PROCESS_GUESTS_H_
#define CATNAP_TESTS_SUPPORT_PROCESS_GUESTS_H_

#include <signal.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "runtime/guest.h"
#include "support/running_agent.h"

namespace catnap::testing {

// A guest without a machine: its agent is a process of this one's host.
class ProcessGuest final : public runtime::Guest {
 public:
  ProcessGuest(std::shared_ptr<RunningAgent> agent,
               std::function<void(runtime::GuestEnd)> on_end)
      : agent_(std::move(agent)),
        on_end_(std::move(on_end)),
        client_(agent_->client()) {}
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
  absl::StatusOr<runtime::StoredSizes> Suspend(
      const std::filesystem::path& /*directory*/,
      const runtime::StoreOptions& /*options*/) override {
    return absl::UnimplementedError("suspend");
  }
  absl::Status Resume(const std::filesystem::path& /*directory*/,
                      const agent::CallLimits& /*limits*/) override {
    return absl::UnimplementedError("resume");
  }
  absl::StatusOr<std::shared_ptr<runtime::CapturedGuest>> Capture(
      const agent::CallLimits& /*limits*/) override {
    return absl::UnimplementedError("capture");
  }

  // As if it had ended by itself.
  void EndWith(runtime::GuestEnd end) { on_end_(std::move(end)); }

 private:
  const std::shared_ptr<RunningAgent> agent_;
  const std::function<void(runtime::GuestEnd)> on_end_;
  agent::Client* const client_;
  std::atomic<bool> stopped_{false};
};

class ProcessGuestFactory final : public runtime::GuestFactory {
 public:
  explicit ProcessGuestFactory(std::string program)
      : program_(std::move(program)) {}

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
    auto agent = std::make_shared<RunningAgent>(program_, config.services);
    config.services->OnClient(
        std::shared_ptr<agent::Client>(agent, agent->client()));
    auto guest = std::make_unique<ProcessGuest>(agent, config.on_end);
    const base::MutexLock lock(&mutex_);
    agents_.push_back(std::move(agent));
    latest_ = guest.get();
    return guest;
  }

  // Of the guest started last. REQUIRES: it lives.
  ProcessGuest* latest() {
    const base::MutexLock lock(&mutex_);
    return latest_;
  }

 private:
  const std::string program_;
  base::Mutex mutex_;
  std::vector<std::shared_ptr<RunningAgent>> agents_ ABSL_GUARDED_BY(mutex_);
  ProcessGuest* latest_ ABSL_GUARDED_BY(mutex_) = nullptr;
};

}  // namespace catnap::testing

#endif  // CATNAP_TESTS_SUPPORT_PROCESS_GUESTS_H_
