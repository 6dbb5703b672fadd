#include "runtime/vm.h"

#include <system_error>
#include <utility>

#include "agent/log_lines.h"
#include "agent/messages.h"
#include "base/status.h"
#include "catnap/errors.h"
#include "runtime/application.h"

namespace catnap::runtime {
namespace {

// A guest whose agent does not come back in this time is as good as gone for a
// call.
constexpr auto kReconnect = std::chrono::seconds(10);
// For a boot without CallOptions::timeout: many times what the slowest host
// takes.
constexpr auto kLongestBoot = std::chrono::seconds(120);
// Through Connect(), ForwardPort() and services, all together.
constexpr size_t kMaxConnections = 1024;
constexpr double kGiB = 1024.0 * 1024 * 1024;

absl::Status Closed() {
  return WithReason(absl::CancelledError("the Host was closed"),
                    ErrorReason::kHostClosed);
}

}  // namespace

Vm::Vm(std::string id, std::shared_ptr<const ImageRecord> image,
       RunOptions options, VmEnvironment environment)
    : id_(std::move(id)),
      image_(std::move(image)),
      options_(std::move(options)),
      environment_(std::move(environment)),
      log_({.sink = environment_.log,
            .executor = environment_.executor,
            .vm_id = id_,
            .source = "vm"}) {}

Vm::~Vm() = default;

absl::Status Vm::Start(const agent::CallLimits& limits) {
  absl::Status status = Boot(limits);
  if (status.ok()) {
    const base::MutexLock lock(&mutex_);
    if (!ending_) {
      state_ = MicroVMState::kRunning;
      changed_.NotifyAll();
      return absl::OkStatus();
    }
    status = absl::UnavailableError(fmt::format("it ended: {}", text_));
  }
  status = Explain(std::move(status));
  const bool silent = ReasonOf(status) == ErrorReason::kAgentUnresponsive;
  End(silent ? TerminationReason::kAgentUnresponsive
             : TerminationReason::kRequested,
      fmt::format("it could not be started: {}",
                  std::string(status.message())));
  return status;
}

ServiceTable::OnConnection Vm::CallbackOf(
    std::shared_ptr<GuestService> service) const {
  return [service = std::move(service),
          handle = environment_.handle](base::UniqueFd connection) {
    const auto vm = handle();
    if (vm.ok()) {
      service->OnConnection(*vm, UniqueFd(connection.Release()));
    }
  };
}

absl::StatusOr<std::shared_ptr<ServiceTable>> Vm::MakeServices(
    const std::shared_ptr<Traffic>& traffic) const {
  ServiceTableOptions options;
  options.loop = environment_.loop;
  options.executor = environment_.executor;
  options.traffic = traffic;
  options.log = base::Logger({.sink = environment_.log,
                              .executor = environment_.executor,
                              .vm_id = id_,
                              .source = "service"});
  auto services = std::make_shared<ServiceTable>(std::move(options));
  for (const auto& [port, service] : options_.services) {
    CATNAP_RETURN_IF_ERROR(services->Set(port, CallbackOf(service)));
  }
  return services;
}

absl::Status Vm::Boot(const agent::CallLimits& limits) {
  const auto traffic = std::make_shared<Traffic>(environment_.clock);
  CATNAP_ASSIGN_OR_RETURN(auto services, MakeServices(traffic));
  GuestConfig config;
  config.services = services->listener();
  config.image = image_;
  config.directory = environment_.directory;
  config.disks = options_.disks;
  config.egress = options_.egress;
  config.tap = options_.tap;
  config.vm_id = id_;
  config.log = environment_.log;
  config.executor = environment_.executor;
  config.loop = environment_.loop;
  config.on_end = [self = weak_from_this()](const GuestEnd& end) {
    // On a vCPU's thread, which must not be the one that ends the guest.
    if (const auto vm = self.lock()) vm->EndSoon(end.reason, end.text);
  };
  {
    const base::MutexLock lock(&mutex_);
    if (ending_) return RefusalLocked();
    booting_ = true;  // End() waits: the factory goes with the Host.
  }
  auto made = environment_.factory->Start(std::move(config));
  // Before End() goes on, and with it the loop.
  if (!made.ok()) services.reset();
  std::shared_ptr<Guest> guest;
  {
    const base::MutexLock lock(&mutex_);
    if (made.ok()) {
      guest = guest_ = *std::move(made);
      relays_ = std::make_shared<RelayGroup>(environment_.loop, traffic,
                                             kMaxConnections);
      services_ = std::move(services);
      started_at_ = std::chrono::steady_clock::now();
    }
    booting_ = false;
    changed_.NotifyAll();
  }
  if (guest == nullptr) return made.status();
  agent::CallLimits within = limits;
  const Time latest = std::chrono::steady_clock::now() + kLongestBoot;
  if (!within.deadline.has_value()) within.deadline = latest;
  const std::stop_callback wake(within.stop, [&guest] { guest->Wake(); });
  const auto client = guest->WaitForClient(*within.deadline, [this, &within] {
    return within.stop.stop_requested() || !IsWanted();
  });
  if (!client.ok()) {
    if (within.stop.stop_requested()) {
      return absl::CancelledError("cancelled while the guest booted");
    }
    if (limits.deadline.has_value() &&
        std::chrono::steady_clock::now() >= *limits.deadline) {
      return absl::DeadlineExceededError(
          "the guest did not boot within CallOptions::timeout");
    }
    return client.status();
  }
  return StartApplication(limits);
}

absl::Status Vm::StartApplication(const agent::CallLimits& limits) {
  if (image_->application.empty()) return absl::OkStatus();
  return RunApplication(
      this,
      [self = weak_from_this()](const std::string& text) {
        if (const auto vm = self.lock()) vm->OnApplicationEnd(text);
      },
      limits);
}

void Vm::OnApplicationEnd(const std::string& text) {
  if (image_->on_app_exit == OnAppExit::kKeepRunning) {
    log_.Info("{}", text);
    return;
  }
  EndSoon(TerminationReason::kAppExited, text);
}

void Vm::EndSoon(TerminationReason reason, const std::string& text) {
  {
    const base::MutexLock lock(&mutex_);
    if (ending_) return;
    // Calls that fail from now on say why.
    if (reason_ == TerminationReason::kNone) {
      reason_ = reason;
      text_ = text;
    }
  }
  environment_.worker->Post(
      [self = shared_from_this(), reason, text] { self->End(reason, text); });
}

void Vm::End(TerminationReason reason, const std::string& text,
             bool host_closed) {
  std::shared_ptr<Guest> guest;
  std::shared_ptr<RelayGroup> relays;
  std::shared_ptr<ServiceTable> services;
  std::set<EndHook> hooks;
  {
    const base::MutexLock lock(&mutex_);
    host_closed_ |= host_closed;
    if (ending_) {
      while (state_ != MicroVMState::kTerminated) changed_.Wait(&mutex_);
      return;
    }
    ending_ = true;
    state_ = MicroVMState::kTerminating;
    if (reason_ == TerminationReason::kNone) {
      reason_ = reason;
      text_ = text;
    }
    changed_.NotifyAll();
    while (booting_) changed_.Wait(&mutex_);
    guest = guest_;
    relays.swap(relays_);
    services.swap(services_);
    hooks.swap(hooks_);
  }
  double vcpu_seconds = 0;
  if (guest != nullptr) {
    guest->Wake();
    // First, so that callbacks which wait for the guest return: the services'
    // end waits for those.
    guest->Stop();
    vcpu_seconds = guest->VcpuSeconds();
  }
  for (const EndHook& hook : hooks) (*hook)();
  if (relays != nullptr) relays->Close();
  services.reset();
  std::error_code error;
  std::filesystem::remove_all(environment_.directory, error);
  if (error) {
    log_.Warning("its directory {} could not be removed: {}",
                 environment_.directory.string(), error.message());
  }
  {
    const base::MutexLock lock(&mutex_);
    guest_.reset();
    last_vcpu_seconds_ = vcpu_seconds;
    ended_at_ = std::chrono::steady_clock::now();
    state_ = MicroVMState::kTerminated;
    changed_.NotifyAll();
  }
}

MicroVMState Vm::state() const {
  const base::MutexLock lock(&mutex_);
  return state_;
}

std::string Vm::state_reason() const {
  std::shared_ptr<Guest> guest;
  {
    const base::MutexLock lock(&mutex_);
    if (!text_.empty() || guest_ == nullptr) return text_;
    guest = guest_;
  }
  return guest->WaitsFor();
}

TerminationReason Vm::termination_reason() const {
  const base::MutexLock lock(&mutex_);
  // Until it is in that state it has not ended, though it is known why it will.
  return state_ == MicroVMState::kTerminating ||
                 state_ == MicroVMState::kTerminated
             ? reason_
             : TerminationReason::kNone;
}

std::optional<Vm::Time> Vm::ended_at() const {
  const base::MutexLock lock(&mutex_);
  return ended_at_;
}

absl::StatusOr<MicroVMState> Vm::WaitForState(MicroVMState wanted,
                                              Time deadline) {
  const base::MutexLock lock(&mutex_);
  for (;;) {
    if (state_ == wanted) return state_;
    // Each state but the last has the next ones before it.
    const bool can_come = state_ != MicroVMState::kTerminated &&
                          wanted != MicroVMState::kPending &&
                          wanted != MicroVMState::kSuspending &&
                          wanted != MicroVMState::kSuspended &&
                          (state_ != MicroVMState::kTerminating ||
                           wanted == MicroVMState::kTerminated) &&
                          (wanted != MicroVMState::kTerminating ||
                           state_ != MicroVMState::kTerminated);
    if (!can_come) {
      return absl::FailedPreconditionError(fmt::format(
          "MicroVM {} can no longer come to that state: {}", id_,
          text_.empty() ? "this version of the library never does" : text_));
    }
    if (!changed_.WaitUntil(&mutex_, deadline) &&
        std::chrono::steady_clock::now() >= deadline && state_ != wanted) {
      return absl::DeadlineExceededError(
          fmt::format("MicroVM {} did not come to that state in time", id_));
    }
  }
}

absl::Status Vm::WaitUntilStarted(const agent::CallLimits& limits) {
  const std::stop_callback wake(limits.stop, [this] {
    const base::MutexLock lock(&mutex_);
    changed_.NotifyAll();
  });
  const base::MutexLock lock(&mutex_);
  while (state_ == MicroVMState::kPending) {
    if (limits.stop.stop_requested()) {
      return absl::CancelledError("cancelled while another call starts it");
    }
    if (!limits.deadline.has_value()) {
      changed_.Wait(&mutex_);
    } else if (!changed_.WaitUntil(&mutex_, *limits.deadline) &&
               std::chrono::steady_clock::now() >= *limits.deadline) {
      return absl::DeadlineExceededError(
          "another call starts it, and has not within CallOptions::timeout");
    }
  }
  return state_ == MicroVMState::kRunning ? absl::OkStatus() : RefusalLocked();
}

Usage Vm::GetUsage() const {
  std::shared_ptr<Guest> guest;
  Usage usage;
  {
    const base::MutexLock lock(&mutex_);
    if (!started_at_.has_value()) return usage;
    const auto ran =
        ended_at_.value_or(std::chrono::steady_clock::now()) - *started_at_;
    usage.running = std::chrono::duration_cast<Millis>(ran);
    usage.memory_gib_seconds = static_cast<double>(image_->memory_bytes) /
                               kGiB *
                               std::chrono::duration<double>(ran).count();
    usage.vcpu_seconds = last_vcpu_seconds_;
    guest = guest_;
  }
  if (guest != nullptr) {
    usage.vcpu_seconds = guest->VcpuSeconds();
    usage.stored_bytes = guest->StoredBytes();
  }
  return usage;
}

absl::Status Vm::RefusalLocked() const {
  if (host_closed_) return Closed();
  return WithReason(absl::FailedPreconditionError(
                        fmt::format("MicroVM {} has ended: {}", id_, text_)),
                    ErrorReason::kVmTerminated);
}

bool Vm::IsWanted() const {
  const base::MutexLock lock(&mutex_);
  return reason_ == TerminationReason::kNone;
}

absl::StatusOr<std::shared_ptr<Guest>> Vm::RunningGuest() const {
  const base::MutexLock lock(&mutex_);
  if (ending_ || guest_ == nullptr) return RefusalLocked();
  return guest_;
}

absl::StatusOr<std::shared_ptr<agent::Client>> Vm::Client(
    const agent::CallLimits& limits) {
  CATNAP_ASSIGN_OR_RETURN(const std::shared_ptr<Guest> guest, RunningGuest());
  Time deadline = std::chrono::steady_clock::now() + kReconnect;
  if (limits.deadline.has_value()) {
    deadline = std::min(deadline, *limits.deadline);
  }
  const std::stop_callback wake(limits.stop, [&guest] { guest->Wake(); });
  auto client = guest->WaitForClient(deadline, [this, &limits] {
    return limits.stop.stop_requested() || !IsWanted();
  });
  if (client.ok()) return client;
  if (limits.stop.stop_requested()) return absl::CancelledError("cancelled");
  return Explain(client.status());
}

absl::StatusOr<std::shared_ptr<agent::Client>> Vm::ClientNow() {
  CATNAP_ASSIGN_OR_RETURN(const std::shared_ptr<Guest> guest, RunningGuest());
  auto client = guest->WaitForClient(Time(), nullptr);
  if (client.ok()) return client;
  return Explain(client.status());
}

bool Vm::EndedMeanwhile() const {
  const base::MutexLock lock(&mutex_);
  return reason_ != TerminationReason::kNone;
}

absl::Status Vm::Explain(absl::Status status) const {
  if (status.ok()) return status;
  const base::MutexLock lock(&mutex_);
  if (reason_ == TerminationReason::kNone) return status;
  // What the guest or the caller said before stands.
  const bool of_the_connection =
      status.code() == absl::StatusCode::kUnavailable ||
      status.code() == absl::StatusCode::kCancelled;
  if (!of_the_connection) return status;
  if (host_closed_) return Closed();
  return WithReason(absl::UnavailableError(fmt::format(
                        "MicroVM {} ended meanwhile: {}", id_, text_)),
                    ErrorReason::kVmTerminated);
}

absl::Status Vm::SetService(uint16_t port,
                            std::shared_ptr<GuestService> service) {
  std::shared_ptr<ServiceTable> services;
  {
    const base::MutexLock lock(&mutex_);
    if (ending_ || services_ == nullptr) return RefusalLocked();
    services = services_;
  }
  if (service != nullptr) {
    return services->Set(port, CallbackOf(std::move(service)));
  }
  services->Remove(port);
  return absl::OkStatus();
}

std::shared_ptr<RelayGroup> Vm::relays() const {
  const base::MutexLock lock(&mutex_);
  return relays_;
}

absl::AnyInvocable<size_t(uint8_t channel, std::span<const uint8_t> data)>
Vm::ApplicationOutput() const {
  if (options_.guest_log == nullptr) return nullptr;
  const auto lines = [this](const char* source, LogSeverity severity) {
    return agent::LogLines(base::Logger({.sink = options_.guest_log,
                                         .executor = environment_.executor,
                                         .vm_id = id_,
                                         .source = source}),
                           severity);
  };
  // Whoever holds them last ends them: lines without an end are not lost.
  struct Outputs {
    agent::LogLines out, err;
    ~Outputs() {
      out.End();
      err.End();
    }
  };
  const std::shared_ptr<Outputs> outputs(
      new Outputs{lines("app.stdout", LogSeverity::kInfo),
                  lines("app.stderr", LogSeverity::kInfo)});
  return [outputs](uint8_t channel, std::span<const uint8_t> data) {
    (channel == agent::kStderr ? outputs->err : outputs->out).Feed(data);
    return data.size();
  };
}

absl::Status Vm::SetEgress(const NetworkPolicy& policy) {
  CATNAP_ASSIGN_OR_RETURN(const std::shared_ptr<Guest> guest, RunningGuest());
  return guest->SetEgress(policy);
}

std::vector<std::string> Vm::Environment(
    const std::map<std::string, std::string>& more) const {
  std::map<std::string, std::string> all = more;
  all.insert(options_.env.begin(), options_.env.end());
  all.insert(image_->env.begin(), image_->env.end());
  std::vector<std::string> texts;
  texts.reserve(all.size());
  for (const auto& [name, value] : all) texts.push_back(name + "=" + value);
  return texts;
}

Vm::EndHook Vm::AddEndHook(std::function<void()> end) {
  auto hook = std::make_shared<std::function<void()>>(std::move(end));
  {
    const base::MutexLock lock(&mutex_);
    if (!ending_) {
      hooks_.insert(hook);
      return hook;
    }
  }
  (*hook)();
  return hook;
}

void Vm::RemoveEndHook(const EndHook& hook) {
  const base::MutexLock lock(&mutex_);
  hooks_.erase(hook);
}

}  // namespace catnap::runtime
