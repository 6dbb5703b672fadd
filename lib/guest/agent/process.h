#ifndef CATNAP_LIB_GUEST_AGENT_PROCESS_H_
#define CATNAP_LIB_GUEST_AGENT_PROCESS_H_

#include <sys/resource.h>
#include <sys/types.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "agent/messages.h"
#include "guest/agent/cgroup.h"
#include "guest/agent/ended_processes.h"
#include "guest/agent/loop.h"
#include "guest/agent/server.h"

namespace catnap::guest {

class ProcessTable;

// A process that the agent started for the host: its pipes or terminal, its
// tree, its end. Lives until it has been reaped and told; outlives the stream
// that started it when the connection breaks.
class Process final : private Loop::Watcher {
 public:
  Process(ProcessTable* table, uint64_t id, const agent::ExecRequest& request);
  ~Process() override;

  // Returns what went wrong instead, as a report.
  std::optional<agent::ExitReport> Start(const agent::ExecRequest& request);

  // Output and report go to `stream` of `server` from now on.
  void Attach(Server* server, uint32_t stream);
  // Nobody listens any longer; the last output is kept. stdin ends.
  void Detach();
  void WriteStdin(Bytes data, bool end);
  void Control(const agent::ExecControl& control);
  void PumpOutput();
  void KillTree();
  void OnExit(int status, const rusage& usage);
  // Its time stands still meanwhile: what was frozen has not run.
  void OnFreeze();
  void OnThaw(std::chrono::nanoseconds frozen);

  pid_t pid() const { return pid_; }
  bool attached() const { return server_ != nullptr; }
  bool running() const { return !exited_; }
  bool application() const { return application_; }
  agent::ProcessEntry Entry() const { return {id_, pid_, argv_, application_}; }

 private:
  struct Output {
    int fd = -1;
    bool watched = false;
    std::string kept{};  // While nobody listens: the last bytes.
    // After the exit: what was in the pipe then, and is still to be sent.
    std::optional<size_t> left{};
  };

  void OnEvents(int fd, uint32_t events) override;
  std::optional<agent::ExitReport> OpenPipes(const agent::ExecRequest& request,
                                             std::array<int, 3>* ends);
  bool OpenTerminal(const agent::WindowSize& size, int* end);
  void Watch(Output* output);
  // False: the host takes no more of what was kept now.
  bool SendKept(uint8_t channel);
  void Pump(uint8_t channel);
  void Deliver(uint8_t channel, Bytes data);
  void CloseOutput(Output* output);
  void PumpStdin();
  void CloseStdin();
  void OnTimeout();
  bool IsDone(const Output& output) const;
  // Reports and ends, when nothing is left to wait for.
  void Conclude();

  ProcessTable* const table_;  // Not owned.
  const uint64_t id_;
  const std::vector<std::string> argv_;
  const bool application_;
  Server* server_ = nullptr;  // Null: nobody listens.
  uint32_t stream_ = 0;
  pid_t pid_ = -1;
  Cgroup cgroup_;
  const bool terminal_;
  int stdin_fd_ = -1;  // The terminal's master is in outputs_[0] as well.
  bool stdin_watched_ = false;
  std::string stdin_waiting_;
  bool stdin_end_ = false;
  std::array<Output, 2> outputs_;
  uint64_t output_room_;  // Of the limit.
  Loop::Time started_{};
  std::optional<Loop::TimerId> timer_;
  // While frozen, instead of the timer: what was left then.
  std::optional<std::chrono::nanoseconds> time_left_;
  bool timed_out_ = false;
  bool exited_ = false;
  bool grace_over_ = false;  // Of a terminal, after the exit.
  agent::ExitReport report_;
};

// All processes of this agent, and the one place that reaps. Thread-hostile, as
// the whole agent is.
class ProcessTable final : private Loop::Watcher {
 public:
  // `is_init`: the agent is process 1 and protected. REQUIRES: all signals are
  // blocked.
  ProcessTable(Loop* loop, const std::string& cgroup_root, bool is_init);
  ~ProcessTable() override;

  std::unique_ptr<Task> Exec(Server* server, uint32_t stream, Bytes request);
  std::unique_ptr<Task> AttachTo(Server* server, uint32_t stream,
                                 Bytes request);
  std::unique_ptr<Task> List(Server* server, uint32_t stream);

  Process* Find(uint64_t id);
  void Remove(uint64_t id);
  void KillAll();
  void OnFreeze();
  void OnThaw(std::chrono::nanoseconds frozen);
  // Destroys the processes that have ended. Between rounds of the loop.
  void DestroyEnded() { dead_.clear(); }
  // Reads and throws away what children that live on write, so that it does
  // not end them. Owns `fd`.
  void Drain(int fd);

  Loop* loop() const { return loop_; }
  CgroupPool* cgroups() { return &cgroups_; }
  EndedProcesses* ended() { return &ended_; }
  bool is_init() const { return is_init_; }
  int null_fd() const { return null_fd_; }

 private:
  void OnEvents(int fd, uint32_t events) override;
  bool ApplicationRuns();

  Loop* const loop_;  // Not owned.
  const bool is_init_;
  CgroupPool cgroups_;
  int signal_fd_;
  int null_fd_;
  uint64_t next_id_ = 1;
  uint64_t application_ = 0;  // The last one's id.
  std::unordered_map<uint64_t, std::unique_ptr<Process>> processes_;
  std::vector<std::unique_ptr<Process>> dead_;  // Until DestroyEnded().
  EndedProcesses ended_;
  size_t drained_ = 0;  // Descriptors.
};

}  // namespace catnap::guest

#endif  // CATNAP_LIB_GUEST_AGENT_PROCESS_H_
