#include <utility>

#include "agent/log_lines.h"
#include "agent/messages.h"
#include "agent/sleep.h"
#include "base/status.h"
#include "runtime/completion.h"
#include "runtime/guest_identity.h"
#include "runtime/network_policy.h"
#include "runtime/vm.h"

namespace catnap::runtime {
namespace {

// NAME=value.
std::vector<std::string> Texts(const std::map<std::string, std::string>& env) {
  std::vector<std::string> texts;
  texts.reserve(env.size());
  for (const auto& [name, value] : env) {
    texts.push_back(fmt::format("{}={}", name, value));
  }
  return texts;
}

}  // namespace

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

absl::StatusOr<std::shared_ptr<ServiceTable>> Vm::MakeServices() const {
  ServiceTableOptions options;
  options.loop = environment_.loop;
  options.executor = environment_.executor;
  options.traffic = activity_->services();
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

absl::Status Vm::SetService(uint16_t port,
                            std::shared_ptr<GuestService> service) {
  std::shared_ptr<ServiceTable> services;
  {
    const base::MutexLock lock(&mutex_);
    if (ending_ || host_closed_ || services_ == nullptr) return RefusalLocked();
    services = services_;
  }
  if (service != nullptr) {
    return services->Set(port, CallbackOf(std::move(service)));
  }
  services->Remove(port);
  return absl::OkStatus();
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
  CATNAP_RETURN_IF_ERROR(CompilePolicy(policy).status());
  std::shared_ptr<Guest> guest;
  {
    const base::MutexLock lock(&mutex_);
    if (ending_ || host_closed_) return RefusalLocked();
    egress_ = policy;
    guest = guest_;
  }
  if (guest != nullptr) CATNAP_RETURN_IF_ERROR(guest->SetEgress(policy));
  return SaveRecord();
}

std::vector<std::string> Vm::Environment(
    const std::map<std::string, std::string>& more) const {
  std::map<std::string, std::string> all = more;
  all.insert(options_.env.begin(), options_.env.end());
  all.insert(image_->env.begin(), image_->env.end());
  return Texts(all);
}

std::vector<std::string> Vm::OwnEnvironment() const {
  return Texts(options_.env);
}

absl::Status Vm::IntroduceGuest(const agent::CallLimits& limits) {
  const agent::CallLimits within = agent::Within(limits, kWakeLatest);
  CATNAP_ASSIGN_OR_RETURN(const auto client, Client(within));
  // A guest that is not frozen only takes what a wake brings.
  agent::WakeOptions options;
  CATNAP_RETURN_IF_ERROR(AddIdentity(id_, &options));
  options.env = OwnEnvironment();
  const Completion<absl::StatusOr<std::string>> taken;
  agent::Wake(client.get(), options, within,
              [taken](absl::StatusOr<std::string> left_out) {
                taken.Set(std::move(left_out));
              });
  CATNAP_ASSIGN_OR_RETURN(const std::string left_out, taken.Wait());
  if (!left_out.empty()) {
    log_.Warning("the guest did not take all of its identity: {}", left_out);
  }
  return absl::OkStatus();
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
