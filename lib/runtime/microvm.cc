#include "catnap/microvm.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "agent/files.h"
#include "agent/process.h"
#include "base/status.h"
#include "catnap/errors.h"
#include "catnap/host.h"
#include "catnap/snapshot.h"
#include "runtime/completion.h"
#include "runtime/host_core.h"
#include "runtime/vm.h"
#include "runtime/vm_ports.h"
#include "runtime/vm_process.h"

namespace catnap {
namespace {

using runtime::Completion;
using runtime::LimitsOf;
using runtime::UseKind;
using runtime::Vm;
using runtime::VmHandle;
using runtime::VmProcess;
using runtime::VmUse;

// For calls that take no CallOptions.
constexpr auto kShortCall = std::chrono::seconds(30);
constexpr int kModeBits = 07777;

const std::string& Empty() {
  static const std::string empty;
  return empty;
}

// What every call with the agent begins with: the guest is awake, and stays so
// until this goes (unless somebody suspends it explicitly).
struct AgentCall {
  std::shared_ptr<Vm> vm;
  VmUse use;
  std::shared_ptr<agent::Client> client;
  agent::CallLimits limits;
};

absl::StatusOr<AgentCall> Begin(const MicroVM& handle, const CallOptions& call,
                                UseKind kind = UseKind::kFiles) {
  AgentCall made;
  CATNAP_ASSIGN_OR_RETURN(made.vm, runtime::HostCore::VmOf(handle));
  CATNAP_ASSIGN_OR_RETURN(made.limits, LimitsOf(call));
  made.use = VmUse(made.vm, kind);
  CATNAP_RETURN_IF_ERROR(made.vm->Awake(made.limits));
  CATNAP_ASSIGN_OR_RETURN(made.client, made.vm->Client(made.limits));
  return made;
}

absl::StatusOr<AgentCall> BeginShort(const MicroVM& handle,
                                     UseKind kind = UseKind::kFiles) {
  return Begin(handle,
               {.timeout = std::chrono::duration_cast<Millis>(kShortCall)},
               kind);
}

UseKind KindOf(const Command& command) {
  return command.counts_as_activity ? UseKind::kExec : UseKind::kUncounted;
}

absl::Status CheckPath(std::string_view path) {
  if (!path.empty() && path.size() <= agent::kMaxPathBytes &&
      path.find('\0') == std::string_view::npos) {
    return absl::OkStatus();
  }
  return Error(absl::StatusCode::kInvalidArgument,
               "a path in the guest has {} bytes, must be 1 to {} without zero "
               "bytes",
               path.size(), agent::kMaxPathBytes);
}

absl::Status CheckMode(int mode) {
  if (mode >= 0 && mode <= kModeBits) return absl::OkStatus();
  return Error(absl::StatusCode::kInvalidArgument,
               "mode is {:#o}, must be 0 to {:#o}", mode, kModeBits);
}

FileInfo InfoOf(agent::FileEntry entry) {
  FileInfo info;
  info.name = std::move(entry.path);
  if (const size_t slash = info.name.rfind('/');
      slash != std::string::npos && slash + 1 < info.name.size()) {
    info.name.erase(0, slash + 1);
  }
  info.size = entry.size;
  info.mode = entry.mode;
  info.uid = entry.uid;
  info.gid = entry.gid;
  info.mtime = std::chrono::system_clock::time_point(
      std::chrono::duration_cast<std::chrono::system_clock::duration>(
          std::chrono::nanoseconds(entry.mtime_ns)));
  info.link_target = std::move(entry.link);
  return info;
}

agent::TreeLimits LimitsOfTree(const CopyLimits& limits) {
  return {.max_bytes = limits.max_bytes, .max_files = limits.max_files};
}

// A public Process over a VmProcess.
class ProcessHandle final : public Process {
 public:
  explicit ProcessHandle(std::shared_ptr<VmProcess> process)
      : process_(std::move(process)) {}
  ~ProcessHandle() override { process_->Abandon(); }

  uint64_t id() const override { return process_->id(); }
  absl::StatusOr<size_t> Write(std::string_view data,
                               CallOptions call) override {
    CATNAP_ASSIGN_OR_RETURN(const auto limits, LimitsOf(call));
    return process_->Write(data, limits);
  }
  absl::Status CloseStdin() override { return process_->CloseStdin(); }
  absl::StatusOr<size_t> Read(Stream stream, std::span<char> into,
                              CallOptions call) override {
    CATNAP_ASSIGN_OR_RETURN(const auto limits, LimitsOf(call));
    return process_->Read(stream, into, limits);
  }
  absl::Status Signal(int signal) override { return process_->Signal(signal); }
  absl::Status Resize(PtySize size) override { return process_->Resize(size); }
  absl::StatusOr<ExecResult> Wait(CallOptions call) override {
    CATNAP_ASSIGN_OR_RETURN(const auto limits, LimitsOf(call));
    return process_->Wait(limits);
  }
  void Detach() override { process_->Detach(); }

 private:
  const std::shared_ptr<VmProcess> process_;
};

// Calls `start` with a completion and waits for it.
template <typename T, typename Starter>
T Await(Starter start) {
  const Completion<T> completion;
  start([completion](T value) { completion.Set(std::move(value)); });
  return completion.Wait();
}

}  // namespace

Forward::Forward(std::unique_ptr<runtime::ForwardHandle> handle)
    : handle_(std::move(handle)) {}
Forward::Forward(Forward&& other) noexcept = default;
Forward& Forward::operator=(Forward&& other) noexcept = default;
Forward::~Forward() = default;
HostAddress Forward::address() const {
  return handle_ == nullptr ? HostAddress{} : handle_->address();
}

KeepAlive::KeepAlive() = default;
KeepAlive::KeepAlive(std::unique_ptr<runtime::VmHold> hold)
    : hold_(std::move(hold)) {}
KeepAlive::KeepAlive(KeepAlive&& other) noexcept = default;
KeepAlive& KeepAlive::operator=(KeepAlive&& other) noexcept = default;
KeepAlive::~KeepAlive() = default;

MicroVM::MicroVM() = default;
MicroVM::~MicroVM() = default;
MicroVM::MicroVM(const MicroVM& other) = default;
MicroVM& MicroVM::operator=(const MicroVM& other) = default;
MicroVM::MicroVM(MicroVM&& other) noexcept = default;
MicroVM& MicroVM::operator=(MicroVM&& other) noexcept = default;
MicroVM::MicroVM(std::shared_ptr<VmHandle> handle)
    : handle_(std::move(handle)) {}

bool operator==(const MicroVM& a, const MicroVM& b) {
  if (a.handle_ == nullptr || b.handle_ == nullptr) {
    return a.handle_ == b.handle_;
  }
  return a.handle_->vm() == b.handle_->vm();
}

absl::StatusOr<MicroVM> MicroVM::Run(Host& host, const Image& image,
                                     RunOptions options, CallOptions call) {
  return runtime::HostCore::Of(host).Run(image, std::move(options), call);
}

const std::string& MicroVM::id() const {
  return handle_ == nullptr ? Empty() : handle_->vm()->id();
}
MicroVMState MicroVM::state() const {
  return handle_ == nullptr ? MicroVMState::kTerminated
                            : handle_->vm()->state();
}
std::string MicroVM::state_reason() const {
  return handle_ == nullptr ? "an empty handle" : handle_->vm()->state_reason();
}
TerminationReason MicroVM::termination_reason() const {
  return handle_ == nullptr ? TerminationReason::kNone
                            : handle_->vm()->termination_reason();
}

absl::Status MicroVM::Suspend(CallOptions call) const {
  CATNAP_ASSIGN_OR_RETURN(const auto vm, runtime::HostCore::VmOf(*this));
  CATNAP_ASSIGN_OR_RETURN(const auto limits, LimitsOf(call));
  return vm->Suspend(limits, "Suspend() was called");
}

absl::Status MicroVM::Resume(CallOptions call) const {
  CATNAP_ASSIGN_OR_RETURN(const auto vm, runtime::HostCore::VmOf(*this));
  CATNAP_ASSIGN_OR_RETURN(const auto limits, LimitsOf(call));
  return vm->Resume(limits);
}

absl::Status MicroVM::SetIdlePolicy(std::optional<IdlePolicy> policy) const {
  CATNAP_ASSIGN_OR_RETURN(const auto vm, runtime::HostCore::VmOf(*this));
  return vm->SetIdlePolicy(policy);
}

absl::StatusOr<MicroVM> MicroVM::Restore(Host& host, const Snapshot& snapshot,
                                         RunOptions options, CallOptions call) {
  return runtime::HostCore::Of(host).Restore(snapshot, std::move(options),
                                             call);
}

absl::StatusOr<Snapshot> MicroVM::TakeSnapshot(SnapshotOptions options,
                                               CallOptions call) const {
  CATNAP_ASSIGN_OR_RETURN(const auto core, runtime::HostCore::OfVm(*this));
  return core->TakeSnapshot(handle_->vm().get(), options, call);
}

absl::StatusOr<std::vector<MicroVM>> MicroVM::Fork(int count,
                                                   RunOptions options,
                                                   CallOptions call) const {
  if (count < 1) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "count is {}, must be at least 1", count);
  }
  if (count > 1 && !options.id.empty()) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "id is \"{}\", must be empty for {} forks; ForkEach() takes "
                 "one for each",
                 options.id, count);
  }
  CATNAP_ASSIGN_OR_RETURN(const auto core, runtime::HostCore::OfVm(*this));
  constexpr int kMost = 5000;  // More than ForkEach() takes.
  return core->ForkEach(
      handle_->vm().get(),
      std::vector<RunOptions>(static_cast<size_t>(std::min(count, kMost)),
                              options),
      call);
}

absl::StatusOr<std::vector<MicroVM>> MicroVM::ForkEach(
    std::span<const RunOptions> children, CallOptions call) const {
  CATNAP_ASSIGN_OR_RETURN(const auto core, runtime::HostCore::OfVm(*this));
  return core->ForkEach(
      handle_->vm().get(),
      std::vector<RunOptions>(children.begin(), children.end()), call);
}

KeepAlive MicroVM::Hold(std::string reason) const {
  if (handle_ == nullptr) return {};
  return KeepAlive(
      std::make_unique<runtime::VmHold>(handle_->vm(), std::move(reason)));
}

absl::Status MicroVM::Terminate(CallOptions call) const {
  CATNAP_ASSIGN_OR_RETURN(const auto vm, runtime::HostCore::VmOf(*this));
  CATNAP_RETURN_IF_ERROR(LimitsOf(call).status());
  vm->End(TerminationReason::kRequested, "Terminate() was called");
  return absl::OkStatus();
}

absl::StatusOr<MicroVMState> MicroVM::WaitForState(MicroVMState state,
                                                   Millis timeout) const {
  CATNAP_ASSIGN_OR_RETURN(const auto vm, runtime::HostCore::VmOf(*this));
  CATNAP_ASSIGN_OR_RETURN(const auto limits, LimitsOf({.timeout = timeout}));
  return vm->WaitForState(state, *limits.deadline);
}

absl::Status MicroVM::SetEgress(NetworkPolicy policy) const {
  CATNAP_ASSIGN_OR_RETURN(const auto vm, runtime::HostCore::VmOf(*this));
  return vm->SetEgress(policy);
}

absl::Status MicroVM::SetService(uint16_t port,
                                 std::shared_ptr<GuestService> service) const {
  CATNAP_ASSIGN_OR_RETURN(const auto vm, runtime::HostCore::VmOf(*this));
  return vm->SetService(port, std::move(service));
}

absl::StatusOr<ExecResult> MicroVM::Exec(const Command& command,
                                         CallOptions call) const {
  CATNAP_ASSIGN_OR_RETURN(AgentCall begun, Begin(*this, call, KindOf(command)));
  // The result comes behind the command's callbacks, and one of those may close
  // the Host, which waits until the client is let go.
  begun.client.reset();
  return Await<absl::StatusOr<ExecResult>>([&begun, &command](auto done) {
    VmProcess::Exec(begun.vm, command, begun.limits, std::move(done));
  });
}

absl::StatusOr<std::unique_ptr<Process>> MicroVM::Start(
    const Command& command, CallOptions call) const {
  CATNAP_ASSIGN_OR_RETURN(const AgentCall begun,
                          Begin(*this, call, KindOf(command)));
  CATNAP_ASSIGN_OR_RETURN(auto process,
                          VmProcess::Start(begun.vm, command, begun.limits));
  return std::make_unique<ProcessHandle>(std::move(process));
}

absl::StatusOr<std::vector<ProcessInfo>> MicroVM::ListProcesses() const {
  CATNAP_ASSIGN_OR_RETURN(const AgentCall begun,
                          BeginShort(*this, UseKind::kExec));
  using Entries = absl::StatusOr<std::vector<agent::ProcessEntry>>;
  const Completion<Entries> listed;
  CATNAP_RETURN_IF_ERROR(begun.vm->Explain(agent::ListProcesses(
      begun.client.get(), begun.limits,
      [listed](Entries entries) { listed.Set(std::move(entries)); })));
  Entries entries = listed.Wait();
  if (!entries.ok()) return begun.vm->Explain(entries.status());
  std::vector<ProcessInfo> infos;
  infos.reserve(entries->size());
  for (agent::ProcessEntry& entry : *entries) {
    infos.push_back({.id = entry.process_id,
                     .guest_pid = entry.guest_pid,
                     .argv = std::move(entry.argv)});
  }
  return infos;
}

absl::StatusOr<std::unique_ptr<Process>> MicroVM::Attach(
    uint64_t process_id) const {
  CATNAP_ASSIGN_OR_RETURN(const AgentCall begun,
                          BeginShort(*this, UseKind::kExec));
  CATNAP_ASSIGN_OR_RETURN(auto process,
                          VmProcess::Attach(begun.vm, process_id));
  return std::make_unique<ProcessHandle>(std::move(process));
}

absl::StatusOr<std::string> MicroVM::ReadFile(std::string_view path,
                                              uint64_t max_bytes,
                                              CallOptions call) const {
  CATNAP_RETURN_IF_ERROR(CheckPath(path));
  CATNAP_ASSIGN_OR_RETURN(const AgentCall begun, Begin(*this, call));
  auto content = Await<absl::StatusOr<std::string>>([&](auto done) {
    agent::ReadFile(begun.client.get(), std::string(path), max_bytes,
                    begun.limits, std::move(done));
  });
  if (!content.ok()) return begun.vm->Explain(content.status());
  return content;
}

absl::Status MicroVM::WriteFile(std::string_view path, std::string_view data,
                                int mode, CallOptions call) const {
  CATNAP_RETURN_IF_ERROR(CheckPath(path));
  CATNAP_RETURN_IF_ERROR(CheckMode(mode));
  CATNAP_ASSIGN_OR_RETURN(const AgentCall begun, Begin(*this, call));
  return begun.vm->Explain(Await<absl::Status>([&](auto done) {
    agent::WriteFile(begun.client.get(), std::string(path), std::string(data),
                     static_cast<uint32_t>(mode), begun.limits,
                     std::move(done));
  }));
}

absl::Status MicroVM::CopyIn(const std::filesystem::path& host,
                             std::string_view guest, CopyLimits limits,
                             CallOptions call) const {
  CATNAP_RETURN_IF_ERROR(CheckPath(guest));
  CATNAP_ASSIGN_OR_RETURN(const AgentCall begun, Begin(*this, call));
  return begun.vm->Explain(agent::CopyIn(begun.client.get(), host,
                                         std::string(guest),
                                         LimitsOfTree(limits), begun.limits));
}

absl::Status MicroVM::CopyOut(std::string_view guest,
                              const std::filesystem::path& host,
                              CopyLimits limits, CallOptions call) const {
  CATNAP_RETURN_IF_ERROR(CheckPath(guest));
  CATNAP_ASSIGN_OR_RETURN(const AgentCall begun, Begin(*this, call));
  return begun.vm->Explain(agent::CopyOut(begun.client.get(),
                                          std::string(guest), host,
                                          LimitsOfTree(limits), begun.limits));
}

absl::StatusOr<FileInfo> MicroVM::Stat(std::string_view path) const {
  CATNAP_RETURN_IF_ERROR(CheckPath(path));
  CATNAP_ASSIGN_OR_RETURN(const AgentCall begun, BeginShort(*this));
  auto entry = Await<absl::StatusOr<agent::FileEntry>>([&](auto done) {
    agent::Stat(begun.client.get(), std::string(path), begun.limits,
                std::move(done));
  });
  if (!entry.ok()) return begun.vm->Explain(entry.status());
  return InfoOf(*std::move(entry));
}

absl::StatusOr<std::vector<FileInfo>> MicroVM::ListDirectory(
    std::string_view path, size_t max) const {
  CATNAP_RETURN_IF_ERROR(CheckPath(path));
  CATNAP_ASSIGN_OR_RETURN(const AgentCall begun, BeginShort(*this));
  auto entries =
      Await<absl::StatusOr<std::vector<agent::FileEntry>>>([&](auto done) {
        agent::ListDirectory(begun.client.get(), std::string(path), max,
                             begun.limits, std::move(done));
      });
  if (!entries.ok()) return begun.vm->Explain(entries.status());
  std::vector<FileInfo> infos;
  infos.reserve(entries->size());
  for (agent::FileEntry& entry : *entries) {
    infos.push_back(InfoOf(std::move(entry)));
  }
  return infos;
}

absl::Status MicroVM::MakeDirectory(std::string_view path, int mode) const {
  CATNAP_RETURN_IF_ERROR(CheckPath(path));
  CATNAP_RETURN_IF_ERROR(CheckMode(mode));
  CATNAP_ASSIGN_OR_RETURN(const AgentCall begun, BeginShort(*this));
  return begun.vm->Explain(Await<absl::Status>([&](auto done) {
    agent::MakeDirectory(begun.client.get(), std::string(path),
                         static_cast<uint32_t>(mode), begun.limits,
                         std::move(done));
  }));
}

absl::Status MicroVM::Remove(std::string_view path, bool recursive) const {
  CATNAP_RETURN_IF_ERROR(CheckPath(path));
  CATNAP_ASSIGN_OR_RETURN(const AgentCall begun, BeginShort(*this));
  return begun.vm->Explain(Await<absl::Status>([&](auto done) {
    agent::Remove(begun.client.get(), std::string(path), recursive,
                  begun.limits, std::move(done));
  }));
}

absl::StatusOr<UniqueFd> MicroVM::Connect(uint16_t guest_port,
                                          CallOptions call) const {
  CATNAP_ASSIGN_OR_RETURN(const AgentCall begun,
                          Begin(*this, call, UseKind::kForwards));
  auto fd = Await<absl::StatusOr<base::UniqueFd>>([&](auto done) {
    runtime::ConnectToVm(begun.vm.get(), guest_port, begun.limits,
                         std::move(done));
  });
  if (!fd.ok()) return fd.status();
  return UniqueFd(fd->Release());
}

absl::StatusOr<Forward> MicroVM::ForwardPort(HostAddress listen,
                                             uint16_t guest_port) const {
  CATNAP_ASSIGN_OR_RETURN(const auto vm, runtime::HostCore::VmOf(*this));
  CATNAP_ASSIGN_OR_RETURN(
      auto handle, runtime::ForwardHandle::Create(vm, listen, guest_port));
  return Forward(std::move(handle));
}

Usage MicroVM::GetUsage() const {
  return handle_ == nullptr ? Usage{} : handle_->vm()->GetUsage();
}

}  // namespace catnap
