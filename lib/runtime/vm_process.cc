#include "runtime/vm_process.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/status.h"
#include "catnap/errors.h"
#include "runtime/image_record.h"

namespace catnap::runtime {
namespace {

constexpr size_t kMaxCommandBytes = 200 << 10;  // argv and env, in one frame.
constexpr int kMaxSignal = 64;

size_t IndexOf(uint8_t channel) { return channel == agent::kStderr ? 1 : 0; }
uint8_t ChannelOf(size_t index) {
  return index == 1 ? agent::kStderr : agent::kStdout;
}

ExitReason ReasonFor(agent::ExitKind kind) {
  switch (kind) {
    case agent::ExitKind::kExited:
      return ExitReason::kExited;
    case agent::ExitKind::kSignaled:
      return ExitReason::kSignaled;
    case agent::ExitKind::kTimeout:
      return ExitReason::kTimeout;
    case agent::ExitKind::kMemoryLimit:
      return ExitReason::kMemoryLimit;
    case agent::ExitKind::kNotStarted:
      return ExitReason::kNotStarted;
  }
  return ExitReason::kInterrupted;
}

// The guest's numbers may be anything.
std::chrono::nanoseconds Nanoseconds(uint64_t count) {
  return std::chrono::nanoseconds(
      std::min<uint64_t>(count, std::numeric_limits<int64_t>::max()));
}

void Fill(const agent::ExitReport& report, ExecResult* result) {
  result->reason = ReasonFor(report.kind);
  result->exit_code = static_cast<int>(std::min(report.exit_code, 255u));
  result->signal =
      static_cast<int>(std::min<uint32_t>(report.signal, kMaxSignal));
  result->truncated |= report.truncated;
  result->wall = Nanoseconds(report.wall_ns);
  result->cpu = Nanoseconds(report.cpu_ns);
  result->max_rss_bytes = report.max_rss_bytes;
  if (report.kind == agent::ExitKind::kNotStarted &&
      result->stderr_data.empty()) {
    result->stderr_data = report.text;
  }
}

agent::ExecRequest RequestOf(const Vm& vm, const Command& command,
                             bool is_exec) {
  agent::ExecRequest request;
  request.argv = command.argv;
  request.env = vm.Environment(command.env);
  request.cwd = command.cwd.empty() ? vm.image().workdir : command.cwd;
  request.user = command.user.empty() ? vm.image().user : command.user;
  // What does not fit follows by VmProcess::Write(), so that stdin is closed
  // behind it when CloseStdin() says so.
  request.stdin_data =
      is_exec ? command.stdin_data
              : command.stdin_data.substr(0, agent::kMaxInlineData);
  request.stdin_open = !is_exec;
  if (command.pty.has_value()) {
    request.pty = agent::WindowSize{.rows = command.pty->rows,
                                    .columns = command.pty->cols};
  }
  request.memory_limit_bytes = command.memory_limit_bytes.value_or(0);
  request.timeout_ms = command.timeout.has_value()
                           ? static_cast<uint64_t>(command.timeout->count())
                           : 0;
  // What a handle reads is not bounded; what is collected is.
  if (is_exec) request.output_limit_bytes = command.max_output_bytes;
  request.report_start = !is_exec;
  return request;
}

absl::Status Detached() {
  return absl::CancelledError("the handle was detached from its process");
}

}  // namespace

absl::Status VmProcess::Check(const Command& command) {
  if (command.argv.empty()) {
    return absl::InvalidArgumentError(
        "Command::argv is empty, must name a program");
  }
  size_t bytes = 0;
  for (const std::string& word : command.argv) {
    if (word.find('\0') != std::string::npos) {
      return absl::InvalidArgumentError("Command::argv contains a zero byte");
    }
    bytes += word.size() + 1;
  }
  CATNAP_RETURN_IF_ERROR(CheckEnvironment("Command::env", command.env));
  if (command.argv.size() > agent::kMaxArguments || bytes > kMaxCommandBytes) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "Command::argv has {} words of {} bytes, at most {} words of "
                 "{} bytes are allowed; write more to a file",
                 command.argv.size(), bytes, agent::kMaxArguments,
                 kMaxCommandBytes);
  }
  for (const auto& [name, text] :
       {std::pair("cwd", &command.cwd), std::pair("user", &command.user)}) {
    if (text->size() >= agent::kMaxPathBytes ||
        text->find('\0') != std::string::npos) {
      return Error(absl::StatusCode::kInvalidArgument,
                   "Command::{} has {} bytes, must be less than {} without "
                   "zero bytes",
                   name, text->size(), agent::kMaxPathBytes);
    }
  }
  if (command.timeout.has_value() && command.timeout->count() <= 0) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "Command::timeout is {} ms, must be at least 1",
                 command.timeout->count());
  }
  if (command.memory_limit_bytes.has_value() &&
      *command.memory_limit_bytes == 0) {
    return absl::InvalidArgumentError(
        "Command::memory_limit_bytes is 0, must be at least 1");
  }
  return absl::OkStatus();
}

VmProcess::VmProcess(std::shared_ptr<Vm> vm, const Command& command,
                     bool collects)
    : vm_(std::move(vm)),
      on_output_(command.on_output),
      collects_(collects),
      use_(vm_,
           command.counts_as_activity ? UseKind::kExec : UseKind::kUncounted),
      room_(command.max_output_bytes),
      callbacks_(vm_->environment().executor) {}

agent::ProcessEvents VmProcess::Events() {
  agent::ProcessEvents events;
  events.on_started = [self = shared_from_this()](const agent::Started& it) {
    self->OnStarted(it);
  };
  events.on_output = [self = shared_from_this()](
                         uint8_t channel, std::span<const uint8_t> data) {
    return self->OnOutput(channel, data);
  };
  events.on_exit =
      [self = shared_from_this()](absl::StatusOr<agent::ExitReport> report) {
        self->OnExit(std::move(report));
      };
  return events;
}

absl::Status VmProcess::Begin(const Command& command,
                              const agent::CallLimits& limits, bool is_exec) {
  CATNAP_RETURN_IF_ERROR(Check(command));
  // An asynchronous call must not wait; without one it is as quick.
  auto client = vm_->ClientNow();
  if (!client.ok() && !is_exec) client = vm_->Client(limits);
  if (!client.ok()) return client.status();
  {
    const base::MutexLock lock(&mutex_);
    client_ = *client;
  }
  // A handle's program does not end with the call that started it.
  auto process = agent::GuestProcess::Start(
      client->get(), RequestOf(*vm_, command, is_exec), Events(),
      is_exec ? limits : agent::CallLimits());
  if (!process.ok()) return vm_->Explain(process.status());
  Attached(*std::move(process));
  return absl::OkStatus();
}

void VmProcess::Attached(const std::shared_ptr<agent::GuestProcess>& process) {
  std::array<size_t, 2> consumed{};
  {
    const base::MutexLock lock(&mutex_);
    if (end_.has_value()) return;  // It was faster.
    process_ = process;
    consumed = std::exchange(to_consume_, {});
  }
  for (size_t i = 0; i < consumed.size(); ++i) {
    if (consumed[i] > 0) process->Consume(ChannelOf(i), consumed[i]);
  }
}

void VmProcess::Exec(std::shared_ptr<Vm> vm, const Command& command,
                     const agent::CallLimits& limits, ExecDone done) {
  const std::shared_ptr<VmProcess> self(
      new VmProcess(std::move(vm), command, /*collects=*/true));
  {
    const base::MutexLock lock(&self->mutex_);
    self->done_ = std::move(done);
  }
  absl::Status status = self->Begin(command, limits, /*is_exec=*/true);
  if (status.ok()) return;
  ExecDone failed;
  {
    const base::MutexLock lock(&self->mutex_);
    failed = std::exchange(self->done_, nullptr);
  }
  if (failed != nullptr) std::move(failed)(std::move(status));
}

absl::StatusOr<std::shared_ptr<VmProcess>> VmProcess::Start(
    std::shared_ptr<Vm> vm, const Command& command,
    const agent::CallLimits& limits) {
  const std::shared_ptr<VmProcess> self(
      new VmProcess(std::move(vm), command, /*collects=*/false));
  CATNAP_RETURN_IF_ERROR(self->Begin(command, limits, /*is_exec=*/false));
  absl::Status started = self->WaitUntilStarted(limits);
  if (started.ok() && command.stdin_data.size() > agent::kMaxInlineData) {
    const auto written = self->Write(
        std::string_view(command.stdin_data).substr(agent::kMaxInlineData),
        limits);
    // A program that ended without reading it all is no error.
    if (!absl::IsFailedPrecondition(written.status())) {
      started = written.status();
    }
  }
  if (!started.ok()) {
    self->Abandon();
    return started;
  }
  return self;
}

absl::StatusOr<std::shared_ptr<VmProcess>> VmProcess::Attach(
    std::shared_ptr<Vm> vm, uint64_t process_id) {
  CATNAP_ASSIGN_OR_RETURN(const auto client, vm->Client({}));
  const std::shared_ptr<VmProcess> self(
      new VmProcess(std::move(vm), Command(), /*collects=*/false));
  {
    const base::MutexLock lock(&self->mutex_);
    self->client_ = client;
  }
  auto process =
      agent::GuestProcess::Attach(client.get(), process_id, self->Events());
  if (!process.ok()) return self->vm_->Explain(process.status());
  self->Attached(*std::move(process));
  const absl::Status attached = self->WaitUntilStarted({});
  if (absl::IsUnimplemented(attached)) {  // What the agent says of it.
    return Error(absl::StatusCode::kNotFound,
                 "no process {} lives in MicroVM {}; ListProcesses() tells "
                 "which do",
                 process_id, self->vm_->id());
  }
  CATNAP_RETURN_IF_ERROR(attached);
  return self;
}

absl::Status VmProcess::WaitUntilStarted(const agent::CallLimits& limits) {
  const std::stop_callback wake(limits.stop, [this] {
    const base::MutexLock lock(&mutex_);
    changed_.NotifyAll();
  });
  const base::MutexLock lock(&mutex_);
  while (id_ == 0 && !end_.has_value()) {
    if (!WaitLocked(limits)) return WhyNoMoreLocked(limits);
  }
  return id_ == 0 && !end_->ok() ? end_->status() : absl::OkStatus();
}

bool VmProcess::WaitLocked(const agent::CallLimits& limits) {
  if (limits.stop.stop_requested()) return false;
  if (!limits.deadline.has_value()) {
    changed_.Wait(&mutex_);
    return true;
  }
  if (std::chrono::steady_clock::now() >= *limits.deadline) return false;
  changed_.WaitUntil(&mutex_, *limits.deadline);
  return true;
}

absl::Status VmProcess::WhyNoMoreLocked(const agent::CallLimits& limits) const {
  if (limits.stop.stop_requested()) return absl::CancelledError("cancelled");
  return absl::DeadlineExceededError("CallOptions::timeout has passed");
}

void VmProcess::OnStarted(const agent::Started& started) {
  const base::MutexLock lock(&mutex_);
  id_ = started.process_id;
  changed_.NotifyAll();
}

void VmProcess::AppendLocked(uint8_t channel, std::string_view data) {
  const size_t kept = std::min<uint64_t>(data.size(), room_);
  (IndexOf(channel) == 1 ? collected_.stderr_data : collected_.stdout_data)
      .append(data.substr(0, kept));
  room_ -= kept;
  collected_.truncated |= kept < data.size();
}

size_t VmProcess::OnOutput(uint8_t channel, std::span<const uint8_t> data) {
  const std::string_view text(reinterpret_cast<const char*>(data.data()),
                              data.size());
  if (on_output_ == nullptr) {
    const base::MutexLock lock(&mutex_);
    if (collects_) {
      AppendLocked(channel, text);
      return data.size();
    }
    channels_[IndexOf(channel)].waiting.append(text);
    changed_.NotifyAll();
    return 0;
  }
  size_t shown = 0;
  {
    const base::MutexLock lock(&mutex_);
    const uint64_t before = room_;
    AppendLocked(channel, text);
    shown = static_cast<size_t>(before - room_);
  }
  callbacks_.Post([self = shared_from_this(), channel, all = data.size(),
                   copy = std::string(text.substr(0, shown))] {
    if (!copy.empty()) {
      self->on_output_(
          channel == agent::kStderr ? Stream::kStderr : Stream::kStdout, copy);
    }
    self->Consume(channel, all);
  });
  return 0;
}

void VmProcess::Consume(uint8_t channel, size_t bytes) {
  std::shared_ptr<agent::GuestProcess> process;
  std::shared_ptr<agent::Client> client;
  {
    const base::MutexLock lock(&mutex_);
    if (end_.has_value()) return;
    process = process_;
    client = client_;
    if (process == nullptr) to_consume_[IndexOf(channel)] += bytes;
  }
  if (process != nullptr) process->Consume(channel, bytes);
}

void VmProcess::OnExit(absl::StatusOr<agent::ExitReport> report) {
  std::shared_ptr<agent::GuestProcess> process;
  std::shared_ptr<agent::Client> client;
  VmUse use;
  const bool vm_ended = !report.ok() && vm_->EndedMeanwhile();
  absl::StatusOr<ExecResult> end = ExecResult();
  {
    const base::MutexLock lock(&mutex_);
    if (report.ok()) {
      Fill(*report, &collected_);
      end = ExecResult();
    } else if (vm_ended && ReasonOf(vm_->Explain(report.status())) !=
                               ErrorReason::kHostClosed) {
      collected_.reason = ExitReason::kVmTerminated;
      end = ExecResult();
    } else {
      end = detached_ ? Detached() : vm_->Explain(report.status());
    }
    end_ = std::move(end);
    use = std::move(use_);
    process.swap(process_);
    client.swap(client_);
    changed_.NotifyAll();
  }
  // Behind what is still to be shown.
  if (on_output_ != nullptr) {
    callbacks_.Post([self = shared_from_this()] { self->TellEnd(); });
  } else {
    TellEnd();
  }
}

void VmProcess::TellEnd() {
  ExecDone done;
  absl::StatusOr<ExecResult> result = ExecResult();
  {
    const base::MutexLock lock(&mutex_);
    done = std::exchange(done_, nullptr);
    if (done == nullptr) return;
    result = end_->ok() ? absl::StatusOr<ExecResult>(std::move(collected_))
                        : std::move(*end_);
  }
  std::move(done)(std::move(result));
}

absl::Status VmProcess::Wake(const agent::CallLimits& limits) {
  {
    const base::MutexLock lock(&mutex_);
    if (end_.has_value()) return absl::OkStatus();
  }
  return vm_->Awake(limits);
}

absl::Status VmProcess::WakeSoon() {
  {
    const base::MutexLock lock(&mutex_);
    if (end_.has_value()) return absl::OkStatus();
  }
  return vm_->WakeSoon();
}

uint64_t VmProcess::id() const {
  const base::MutexLock lock(&mutex_);
  return id_;
}

std::shared_ptr<agent::GuestProcess> VmProcess::process() const {
  const base::MutexLock lock(&mutex_);
  return process_;
}

absl::StatusOr<size_t> VmProcess::Write(std::string_view data,
                                        const agent::CallLimits& limits) {
  // The agent's window opens without telling us; this often is soon enough.
  constexpr auto kLookAgain = std::chrono::milliseconds(2);
  std::span<const uint8_t> left(reinterpret_cast<const uint8_t*>(data.data()),
                                data.size());
  CATNAP_RETURN_IF_ERROR(Wake(limits));
  while (!left.empty()) {
    std::shared_ptr<agent::GuestProcess> to;
    std::shared_ptr<agent::Client> client;
    {
      const base::MutexLock lock(&mutex_);
      if (end_.has_value()) {
        return end_->ok() ? absl::FailedPreconditionError(
                                "stdin is closed: the process has ended")
                          : end_->status();
      }
      to = process_;
      client = client_;
    }
    if (to == nullptr) return absl::FailedPreconditionError("stdin is closed");
    CATNAP_ASSIGN_OR_RETURN(const size_t taken, to->Write(left, false));
    left = left.subspan(taken);
    if (left.empty()) break;
    const base::MutexLock lock(&mutex_);
    if (limits.stop.stop_requested() ||
        (limits.deadline.has_value() &&
         std::chrono::steady_clock::now() >= *limits.deadline)) {
      return WhyNoMoreLocked(limits);
    }
    changed_.WaitUntil(&mutex_, std::chrono::steady_clock::now() + kLookAgain);
  }
  return data.size();
}

absl::Status VmProcess::CloseStdin() {
  std::shared_ptr<agent::GuestProcess> to;
  std::shared_ptr<agent::Client> client;
  {
    const base::MutexLock lock(&mutex_);
    to = process_;
    client = client_;
  }
  if (to == nullptr) return absl::OkStatus();
  CATNAP_RETURN_IF_ERROR(WakeSoon());
  const auto closed = to->Write({}, true);
  // It was closed before.
  if (absl::IsFailedPrecondition(closed.status())) return absl::OkStatus();
  return closed.status();
}

absl::StatusOr<size_t> VmProcess::Read(Stream stream, std::span<char> into,
                                       const agent::CallLimits& limits) {
  if (on_output_ != nullptr) {
    return absl::FailedPreconditionError(
        "Command::on_output takes the output of this process");
  }
  const size_t index = stream == Stream::kStderr ? 1 : 0;
  const std::stop_callback wake(limits.stop, [this] {
    const base::MutexLock lock(&mutex_);
    changed_.NotifyAll();
  });
  size_t taken = 0;
  bool waits = false;
  {
    const base::MutexLock lock(&mutex_);
    waits = channels_[index].waiting.empty() && !collects_ && !into.empty();
  }
  // Who sleeps writes nothing.
  if (waits) CATNAP_RETURN_IF_ERROR(Wake(limits));
  {
    const base::MutexLock lock(&mutex_);
    std::string& waiting = channels_[index].waiting;
    while (waiting.empty() && !end_.has_value() && !collects_) {
      if (into.empty()) return 0;
      if (!WaitLocked(limits)) return WhyNoMoreLocked(limits);
    }
    if (collects_) {
      return absl::FailedPreconditionError(
          "Wait() takes the output of this process");
    }
    if (waiting.empty() && !end_->ok()) return end_->status();
    taken = std::min(into.size(), waiting.size());
    std::copy_n(waiting.begin(), taken, into.begin());
    waiting.erase(0, taken);
  }
  if (taken > 0) Consume(ChannelOf(index), taken);
  return taken;
}

absl::Status VmProcess::Signal(int signal) {
  if (signal < 1 || signal > kMaxSignal) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "signal is {}, must be 1 to {}", signal, kMaxSignal);
  }
  std::shared_ptr<agent::GuestProcess> to;
  std::shared_ptr<agent::Client> client;
  {
    const base::MutexLock lock(&mutex_);
    if (end_.has_value() && !end_->ok()) return end_->status();
    to = process_;
    client = client_;
  }
  if (to == nullptr) return absl::OkStatus();
  CATNAP_RETURN_IF_ERROR(WakeSoon());
  to->Signal(signal);
  return absl::OkStatus();
}

absl::Status VmProcess::Resize(PtySize size) {
  std::shared_ptr<agent::GuestProcess> to;
  std::shared_ptr<agent::Client> client;
  {
    const base::MutexLock lock(&mutex_);
    if (end_.has_value() && !end_->ok()) return end_->status();
    to = process_;
    client = client_;
  }
  if (to == nullptr) return absl::OkStatus();
  CATNAP_RETURN_IF_ERROR(WakeSoon());
  to->Resize({.rows = size.rows, .columns = size.cols});
  return absl::OkStatus();
}

absl::StatusOr<ExecResult> VmProcess::Wait(const agent::CallLimits& limits) {
  const std::stop_callback wake(limits.stop, [this] {
    const base::MutexLock lock(&mutex_);
    changed_.NotifyAll();
  });
  std::array<size_t, 2> taken{};
  {
    const base::MutexLock lock(&mutex_);
    if (!collects_ && on_output_ == nullptr) {
      collects_ = true;
      for (size_t i = 0; i < channels_.size(); ++i) {
        std::string waiting = std::exchange(channels_[i].waiting, {});
        AppendLocked(ChannelOf(i), waiting);
        taken[i] = waiting.size();
      }
      changed_.NotifyAll();
    }
  }
  for (size_t i = 0; i < taken.size(); ++i) {
    if (taken[i] > 0) Consume(ChannelOf(i), taken[i]);
  }
  CATNAP_RETURN_IF_ERROR(Wake(limits));
  const base::MutexLock lock(&mutex_);
  while (!end_.has_value()) {
    if (!WaitLocked(limits)) return WhyNoMoreLocked(limits);
  }
  if (!end_->ok()) return end_->status();
  return collected_;
}

void VmProcess::Detach() {
  std::shared_ptr<agent::GuestProcess> to;
  std::shared_ptr<agent::Client> client;
  {
    const base::MutexLock lock(&mutex_);
    detached_ = true;
    to = process_;
    client = client_;
  }
  if (to != nullptr) to->Detach();
}

void VmProcess::Abandon() {
  std::shared_ptr<agent::GuestProcess> to;
  std::shared_ptr<agent::Client> client;
  {
    const base::MutexLock lock(&mutex_);
    to = process_;
    client = client_;
  }
  callbacks_.Cancel();
  if (to != nullptr) to->Kill();
}

}  // namespace catnap::runtime
