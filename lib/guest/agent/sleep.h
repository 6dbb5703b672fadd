#ifndef CATNAP_LIB_GUEST_AGENT_SLEEP_H_
#define CATNAP_LIB_GUEST_AGENT_SLEEP_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "agent/messages.h"
#include "guest/agent/freezer.h"
#include "guest/agent/loop.h"
#include "guest/agent/process.h"
#include "guest/agent/run_files.h"
#include "guest/agent/server.h"

namespace catnap::guest {

// Freezes the guest's programs for the host and wakes them: the state outlives
// connections, since a machine that was restored has a new one. What would need
// a program to run, or a file that a program serves, is held meanwhile.
class Sleep final : private Loop::Watcher {
 public:
  // Makes the task of a held request, as Server::Factory.
  using Resume = std::function<std::unique_ptr<Task>(
      Server* server, uint32_t stream, agent::Kind kind, Bytes request)>;

  // `processes` must outlive this. `run_directory` is where RunFiles are. Only
  // process 1 changes the machine (`cgroup_root`, clock, identity).
  Sleep(ProcessTable* processes, const std::string& cgroup_root,
        const std::string& run_directory);
  ~Sleep() override;

  std::unique_ptr<Task> Freeze(Server* server, uint32_t stream, Bytes request);
  std::unique_ptr<Task> Wake(Server* server, uint32_t stream, Bytes request);
  std::unique_ptr<Task> Thaw(Server* server, uint32_t stream);
  // Says what the monotonic clock shows.
  static std::unique_ptr<Task> Clock(Server* server, uint32_t stream);

  // Whether a request of this kind is to be given to Hold() now.
  bool Holds(agent::Kind kind) const;
  // The request's task, which starts with the thaw.
  std::unique_ptr<Task> Hold(Server* server, uint32_t stream, agent::Kind kind,
                             Bytes request, Resume resume);

 private:
  class FreezeTask;
  class HeldTask;
  enum class State : uint8_t { kRunning, kFlushing, kFreezing, kFrozen };
  // A freeze that is to be answered.
  struct Waiter {
    Server* server;
    uint32_t stream;
  };

  void OnEvents(int fd, uint32_t events) override;
  static void* Flush(void* sleep);
  // False: there is no thread for it.
  bool StartFlush();
  void StartFreeze();
  void LookAgain();
  void Answer(const agent::SleepResult& result);
  // Lets all run, with whoever waits for a freeze told why, but nothing that is
  // held.
  void Release();
  void StartHeld();
  // The host wants its freeze no longer.
  void Withdraw(uint32_t stream);
  // "" or what failed, for which the machine must not run on; `left_out` gets
  // what it can do without.
  int Apply(const agent::WakeRequest& request, std::string* failed,
            std::string* left_out);

  ProcessTable* const processes_;  // Not owned.
  Loop* const loop_;               // Not owned.
  const std::string run_directory_;
  Freezer freezer_;
  RunFiles files_;
  State state_ = State::kRunning;
  std::vector<Waiter> waiters_;
  std::chrono::milliseconds bound_{};
  Loop::Time flush_started_{}, freeze_started_{};
  std::chrono::nanoseconds flush_took_{};
  std::chrono::microseconds pause_{};  // Until LookAgain().
  std::optional<Loop::TimerId> timer_;
  int flushed_fd_;            // An eventfd: the thread is done.
  bool flushing_ = false;     // The thread runs.
  bool flush_again_ = false;  // It was started for a freeze that is over.
  std::list<HeldTask*> held_;
};

}  // namespace catnap::guest

#endif  // CATNAP_LIB_GUEST_AGENT_SLEEP_H_
