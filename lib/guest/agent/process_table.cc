#include <fcntl.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <utility>

#include "guest/agent/process.h"
#include "state/encoder.h"

namespace catnap::guest {
namespace {

constexpr size_t kMaxDrained = 256;
// Of a process's arguments in a list, whose whole has to fit a frame.
constexpr size_t kListedBytes = 200;

// Joins a stream with its process.
class ExecTask final : public Task {
 public:
  ExecTask(ProcessTable* table, Server* server, uint64_t id)
      : table_(table), server_(server), id_(id) {}

  void OnData(uint8_t channel, Bytes data, bool end) override {
    Process* const process = table_->Find(id_);
    if (process != nullptr && channel == agent::kStdin) {
      process->WriteStdin(data, end);
    }
  }
  void OnMessage(agent::Fields fields) override {
    agent::ExecControl control;
    Process* const process = table_->Find(id_);
    if (process == nullptr || !Decode(fields, &control)) return;
    kill_ = kill_ && !control.detach;
    process->Control(control);
  }
  void OnWritable() override {
    Process* const process = table_->Find(id_);
    if (process != nullptr) process->PumpOutput();
  }
  void OnReset() override {
    Process* const process = table_->Find(id_);
    if (process == nullptr) return;
    // A host that is gone comes back; one that cancels does not want it.
    if (kill_ && server_->ok()) process->KillTree();
    process->Detach();
  }

 private:
  ProcessTable* const table_;  // Not owned.
  Server* const server_;       // Not owned.
  const uint64_t id_;
  bool kill_ = true;
};

// Throws away what a descriptor gives, until its end.
class Drainer final : public Loop::Watcher {
 public:
  Drainer(Loop* loop, size_t* count) : loop_(loop), count_(count) {}
  void OnEvents(int fd, uint32_t /*events*/) override {
    std::array<uint8_t, 4096> buffer;
    const ssize_t got = read(fd, buffer.data(), buffer.size());
    if (got > 0 || (got < 0 && (errno == EAGAIN || errno == EINTR))) return;
    loop_->Remove(fd);
    close(fd);
    --*count_;
    delete this;
  }

 private:
  Loop* const loop_;
  size_t* const count_;
};

}  // namespace

ProcessTable::ProcessTable(Loop* loop, const std::string& cgroup_root,
                           bool is_init)
    : loop_(loop), is_init_(is_init), cgroups_(cgroup_root) {
  sigset_t child;
  sigemptyset(&child);
  sigaddset(&child, SIGCHLD);
  signal_fd_ = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
  null_fd_ = open("/dev/null", O_RDWR | O_CLOEXEC);
  // Orphans come to us, as they do to process 1.
  prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
  loop_->Add(signal_fd_, EPOLLIN, this);
}

ProcessTable::~ProcessTable() {
  loop_->Remove(signal_fd_);
  close(signal_fd_);
  close(null_fd_);
}

Process* ProcessTable::Find(uint64_t id) {
  const auto at = processes_.find(id);
  return at == processes_.end() ? nullptr : at->second.get();
}

void ProcessTable::Remove(uint64_t id) {
  const auto at = processes_.find(id);
  if (at == processes_.end()) return;
  dead_.push_back(std::move(at->second));  // Its code is on the stack.
  processes_.erase(at);
}

void ProcessTable::KillAll() {
  for (const auto& [id, process] : processes_) process->KillTree();
}

void ProcessTable::OnFreeze() {
  for (const auto& [id, process] : processes_) process->OnFreeze();
}

void ProcessTable::OnThaw(std::chrono::nanoseconds frozen) {
  for (const auto& [id, process] : processes_) process->OnThaw(frozen);
}

void ProcessTable::Drain(int fd) {
  auto drainer = std::make_unique<Drainer>(loop_, &drained_);
  if (drained_ >= kMaxDrained || !loop_->Add(fd, EPOLLIN, drainer.get())) {
    close(fd);
    return;
  }
  ++drained_;
  // It deletes itself at the descriptor's end.
  static_cast<void>(drainer.release());
}

void ProcessTable::OnEvents(int fd, uint32_t /*events*/) {
  signalfd_siginfo info;
  while (read(fd, &info, sizeof(info)) > 0) {
  }
  // One signal may stand for many children.
  int status = 0;
  rusage usage{};
  for (;;) {
    const pid_t pid = wait4(-1, &status, WNOHANG, &usage);
    if (pid <= 0) return;
    for (const auto& [id, process] : processes_) {
      if (process->pid() == pid) {
        process->OnExit(status, usage);  // Changes the table.
        break;
      }
    }
  }
}

bool ProcessTable::ApplicationRuns() {
  const Process* const application = Find(application_);
  return application != nullptr && application->running();
}

std::unique_ptr<Task> ProcessTable::Exec(Server* server, uint32_t stream,
                                         Bytes request) {
  agent::ExecRequest exec;
  if (!Decode(request, &exec)) {
    server->Refuse(stream, agent::ResetCode::kProtocol, "malformed request");
    return nullptr;
  }
  if (exec.application && ApplicationRuns()) {
    agent::ExitReport refused;
    refused.kind = agent::ExitKind::kNotStarted;
    refused.exit_code = 126;
    refused.text = "the application runs already";
    server->Finish(stream, Encode(refused));
    return nullptr;
  }
  const uint64_t id = next_id_++;
  auto process = std::make_unique<Process>(this, id, exec);
  const std::optional<agent::ExitReport> failure = process->Start(exec);
  if (failure.has_value()) {
    server->Finish(stream, Encode(*failure));
    return nullptr;
  }
  if (exec.report_start) {
    server->SendMessage(stream, Encode(agent::Started{id, process->pid()}));
  }
  process->Attach(server, stream);
  if (exec.application) application_ = id;
  processes_.emplace(id, std::move(process));
  return std::make_unique<ExecTask>(this, server, id);
}

std::unique_ptr<Task> ProcessTable::AttachTo(Server* server, uint32_t stream,
                                             Bytes request) {
  agent::Started wanted;
  if (!Decode(request, &wanted)) {
    server->Refuse(stream, agent::ResetCode::kProtocol, "malformed request");
    return nullptr;
  }
  Process* const process = Find(wanted.process_id);
  if (process == nullptr) {
    auto task = ended_.AttachTo(server, stream, wanted.process_id);
    if (task != nullptr) return task;
    server->Refuse(stream, agent::ResetCode::kUnknown, "no such process");
    return nullptr;
  }
  if (process->attached()) {
    server->Refuse(stream, agent::ResetCode::kRefused, "attached already");
    return nullptr;
  }
  const agent::ProcessEntry entry = process->Entry();
  server->SendMessage(
      stream, Encode(agent::Started{entry.process_id, entry.guest_pid}));
  process->Attach(server, stream);
  return std::make_unique<ExecTask>(this, server, wanted.process_id);
}

std::unique_ptr<Task> ProcessTable::List(Server* server, uint32_t stream) {
  agent::Encoded bytes;
  state::StateEncoder out(&bytes);
  for (const auto& [id, process] : processes_) {
    if (!process->running()) continue;
    agent::ProcessEntry entry = process->Entry();
    size_t room = kListedBytes;
    for (size_t i = 0; i < entry.argv.size(); ++i) {
      if (entry.argv[i].size() + 8 > room) {
        entry.argv.resize(i);
        break;
      }
      room -= entry.argv[i].size() + 8;
    }
    out.Bytes(1, Encode(entry));
    if (bytes.size() > agent::kMaxBodyBytes - 1024) break;
  }
  server->Finish(stream, bytes);
  return nullptr;
}

}  // namespace catnap::guest
