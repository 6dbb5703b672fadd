#include "runtime/machine_guest.h"

#include <algorithm>
#include <system_error>
#include <utility>

#include "agent/sleep.h"
#include "base/status.h"
#include "disk/layer_chain.h"
#include "runtime/completion.h"
#include "runtime/guest_identity.h"
#include "runtime/network_policy.h"
#include "runtime/stored_disk.h"
#include "snapshot/writer.h"

namespace catnap::runtime {
namespace {

// For all programs to stand still. A guest that falls asleep has time; one that
// is copied stands for this long at most, should it not work.
constexpr std::chrono::milliseconds kSleepBound{1000};
constexpr std::chrono::milliseconds kCaptureBound{250};
// Of the agent's part, beside the bound: writing dirty data takes long.
// A copy that wrote more has work to do, and is not to stand still for so long.
constexpr uint64_t kMostSettled = uint64_t{8} << 20;
constexpr auto kFreezeLatest = std::chrono::seconds(60);
constexpr auto kThawLatest = std::chrono::seconds(10);

vmm::StorageOptions StorageOf(const MachineMeans& means,
                              const StoreOptions& options) {
  return {.pool = means.workers,
          .level = options.is_image ? std::max(means.compression_level,
                                               snapshot::kImageLevel)
                                    : means.compression_level,
          .frame_pages = options.is_image ? snapshot::kImageFramePages
                                          : snapshot::kFramePages,
          .durable = options.durable,
          .hot = options.hot,
          .stop = options.stop,
          .deadline = options.deadline};
}

absl::Status CheckWanted(const StoreOptions& options) {
  if (options.stop.stop_requested()) {
    return absl::CancelledError("cancelled before the guest was stored");
  }
  if (options.deadline.has_value() &&
      std::chrono::steady_clock::now() >= *options.deadline) {
    return absl::DeadlineExceededError("the guest could not be stored in time");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status TakeDisk(const std::filesystem::path& from,
                      const vmm::GuestTemplate& origin,
                      const GuestConfig& config) {
  CATNAP_ASSIGN_OR_RETURN(const auto base,
                          OpenBaseDisk(*config.image, config.loop));
  CATNAP_ASSIGN_OR_RETURN(const disk::LayerChain chain,
                          ReadStoredDisk(from, base.get(), origin.sections()));
  return TakeLayers(chain.layers, config);
}

absl::Status TakeLayers(const std::vector<disk::ChainLayer>& layers,
                        const GuestConfig& config) {
  const std::string to = DiskDirectoryOf(config).string();
  std::error_code error;
  const bool is_new = std::filesystem::create_directory(to, error);
  if (error) return ErrnoError(error.value(), "make {}", to);
  if (!is_new) CATNAP_RETURN_IF_ERROR(disk::RemoveChain(to));
  // Durable with the top that DiskStack::Open() makes there next, by one sync
  // of the directory for both.
  return disk::LinkChain(layers, to, disk::CopyMode::kLink,
                         disk::Durable::kLater);
}

absl::StatusOr<StoredSizes> StoreStanding(
    const MachineMeans& means, RunningMachine& running,
    const vmm::GuestTemplate* origin, const std::filesystem::path& directory,
    const StoreOptions& options) {
  CATNAP_ASSIGN_OR_RETURN(auto sections, running.machine().Save());
  CATNAP_RETURN_IF_ERROR(running.root()->Freeze());
  CATNAP_RETURN_IF_ERROR(AddDiskSection(*running.root(), &sections));
  CATNAP_RETURN_IF_ERROR(CheckWanted(options));
  CATNAP_RETURN_IF_ERROR(
      running.root()
          ->LinkInto(directory.string(), disk::CopyMode::kLink)
          .status());
  CATNAP_ASSIGN_OR_RETURN(
      const vmm::StorageSizes sizes,
      vmm::StoreMachine(&running.machine(), sections, origin,
                        directory.string(), StorageOf(means, options)));
  CATNAP_RETURN_IF_ERROR(CheckWanted(options));
  return StoredSizes{.stored_bytes = sizes.written_bytes,
                     .own_bytes = sizes.own_bytes};
}

vmm::Prefetch PrefetchOf(Prefetch prefetch) {
  switch (prefetch) {
    case Prefetch::kHotSet:
      break;
    case Prefetch::kAll:
      return vmm::Prefetch::kAll;
    case Prefetch::kLazy:
      return vmm::Prefetch::kLazy;
  }
  return vmm::Prefetch::kHotSet;
}

vmm::MachineCapture::Memory MemoryOf(CaptureUse use) {
  return use == CaptureUse::kStore ? vmm::MachineCapture::Memory::kApart
                                   : vmm::MachineCapture::Memory::kShared;
}

CapturedMachine::~CapturedMachine() {
  std::error_code error;  // What stays is removed when the Host is opened.
  std::filesystem::remove_all(disk_directory_, error);
}

absl::StatusOr<StoredSizes> CapturedMachine::Store(
    const std::filesystem::path& directory, const StoreOptions& options) {
  CATNAP_RETURN_IF_ERROR(
      disk::LinkChain(layers_, directory.string(), disk::CopyMode::kLink));
  CATNAP_ASSIGN_OR_RETURN(
      const vmm::StorageSizes sizes,
      template_->Store(directory.string(), StorageOf(means_, options)));
  return StoredSizes{.stored_bytes = sizes.written_bytes,
                     .own_bytes = sizes.own_bytes};
}

MachineGuest::MachineGuest(const MachineMeans& means, GuestConfig config,
                           std::shared_ptr<const vmm::GuestTemplate> image)
    : means_(means),
      config_(std::move(config)),
      image_(std::move(image)),
      log_({.sink = config_.log,
            .executor = config_.executor,
            .vm_id = config_.vm_id,
            .source = "guest"}),
      egress_(config_.egress) {}

absl::StatusOr<std::unique_ptr<Guest>> MachineGuest::Start(
    const MachineMeans& means, GuestConfig config,
    std::shared_ptr<const vmm::GuestTemplate> image,
    std::shared_ptr<const vmm::GuestTemplate> origin) {
  const bool boots = origin == nullptr;
  const bool is_copy = config.origin.has_value() && config.origin->is_copy;
  auto services = std::move(config.services);
  const auto prepared = std::move(config.on_prepared);
  // new: the constructor is private.
  std::unique_ptr<MachineGuest> guest(
      new MachineGuest(means, std::move(config), std::move(image)));
  if (!boots) guest->TellIfNotPaged(*origin);
  CATNAP_ASSIGN_OR_RETURN(
      std::shared_ptr<RunningMachine> running,
      RunningMachine::Create(means, guest->config_, std::move(origin)));
  if (prepared != nullptr) CATNAP_RETURN_IF_ERROR(prepared());
  if (!boots) {
    // Whoever the agent talked to was in another process, or talks to another
    // machine: it connects again.
    running->sockets()->ResetTransport();
    if (is_copy) {
      CATNAP_RETURN_IF_ERROR(running->machine().ChangeGenerationId());
    }
  }
  guest->connection_ =
      std::make_unique<AgentConnection>(running->sockets(), guest->config_.loop,
                                        means.clock, std::move(services));
  {
    const base::MutexLock lock(&guest->mutex_);
    guest->origin_ = running->origin();
    guest->running_ = running;
  }
  CATNAP_RETURN_IF_ERROR(running->machine().Start());
  if (!boots) {
    CATNAP_RETURN_IF_ERROR(
        guest->WakePrograms(is_copy, guest->config_.env, {}));
  }
  return std::unique_ptr<Guest>(std::move(guest));
}

MachineGuest::Running MachineGuest::running() const {
  const base::MutexLock lock(&mutex_);
  return running_;
}

absl::StatusOr<MachineGuest::Running> MachineGuest::Awake() const {
  const base::MutexLock lock(&mutex_);
  if (running_ != nullptr && !stopped_) return running_;
  return absl::FailedPreconditionError(
      stopped_ ? "the guest has ended" : "the guest is asleep already");
}

void MachineGuest::Stop() {
  Running last;
  {
    const base::MutexLock lock(&mutex_);
    stopped_ = true;
    last = running_;
  }
  if (last != nullptr) {
    last->machine().Stop();
    last->root()->Close();  // Its directory is removed next.
  }
  if (connection_ != nullptr) connection_->Close();
}

std::string MachineGuest::ConsoleTail() const {
  const Running now = running();
  if (now != nullptr) return now->machine().console().Tail();
  const base::MutexLock lock(&mutex_);
  return console_tail_;
}

double MachineGuest::VcpuSeconds() const {
  const Running now = running();
  const base::MutexLock lock(&mutex_);
  if (now == nullptr) return vcpu_seconds_;
  return vcpu_seconds_ +
         std::chrono::duration<double>(now->machine().vcpu_time()).count();
}

uint64_t MachineGuest::StoredBytes() const {
  const Running now = running();
  if (now != nullptr) return now->root()->allocated_bytes();
  const base::MutexLock lock(&mutex_);
  return stored_bytes_;
}

std::string MachineGuest::WaitsFor() const {
  const Running now = running();
  return now == nullptr ? "" : now->WaitsFor();
}

absl::Status MachineGuest::Sync() {
  const Running now = running();
  return now == nullptr ? absl::OkStatus() : now->Sync();
}

uint64_t MachineGuest::OutboundFrames() const {
  const Running now = running();
  const auto link = now == nullptr ? nullptr : now->link();
  return link == nullptr ? 0 : link->stats().gate.frames_out;
}

absl::Status MachineGuest::SetEgress(const NetworkPolicy& policy) {
  CATNAP_ASSIGN_OR_RETURN(auto compiled, CompilePolicy(policy));
  Running now;
  {
    const base::MutexLock lock(&mutex_);
    egress_ = policy;
    now = running_;
  }
  const auto link = now == nullptr ? nullptr : now->link();
  if (link != nullptr) link->SetPolicy(std::move(compiled));
  return absl::OkStatus();
}

absl::Status MachineGuest::FreezePrograms(std::chrono::milliseconds bound,
                                          const agent::CallLimits& limits) {
  const agent::CallLimits within = agent::Within(limits, kFreezeLatest);
  CATNAP_ASSIGN_OR_RETURN(const auto client,
                          WaitForClient(*within.deadline, [&within] {
                            return within.stop.stop_requested();
                          }));
  const Completion<absl::Status> frozen;
  agent::Freeze(client.get(), {.bound = bound, .flush = true}, within,
                [frozen](const absl::StatusOr<agent::FreezeReport>& report) {
                  frozen.Set(report.status());
                });
  return frozen.Wait();
}

void MachineGuest::ThawPrograms() {
  const agent::CallLimits within = agent::Within({}, kThawLatest);
  const auto client = WaitForClient(*within.deadline, nullptr);
  if (!client.ok()) return;  // The next connection's wake thaws them.
  const Completion<absl::Status> thawed;
  agent::Thaw(client->get(), within,
              [thawed](absl::Status status) { thawed.Set(std::move(status)); });
  log_.LogIfError(thawed.Wait(), "let the guest's programs go on");
}

absl::Status MachineGuest::WakePrograms(
    bool is_copy, std::optional<std::vector<std::string>> env,
    const agent::CallLimits& limits) {
  const agent::CallLimits within = agent::Within(limits, kWakeLatest);
  CATNAP_ASSIGN_OR_RETURN(const auto client,
                          WaitForClient(*within.deadline, [&within] {
                            return within.stop.stop_requested();
                          }));
  agent::WakeOptions options;
  options.is_copy = is_copy;
  options.connections = agent::Connections::kDestroy;
  options.env = std::move(env);
  if (is_copy) CATNAP_RETURN_IF_ERROR(AddIdentity(config_.vm_id, &options));
  const Completion<absl::StatusOr<std::string>> awake;
  agent::Wake(client.get(), options, within,
              [awake](absl::StatusOr<std::string> left_out) {
                awake.Set(std::move(left_out));
              });
  CATNAP_ASSIGN_OR_RETURN(const std::string left_out, awake.Wait());
  if (!left_out.empty()) {
    log_.Warning("the guest woke without some of its identity: {}", left_out);
  }
  return absl::OkStatus();
}

void MachineGuest::TellIfNotPaged(const vmm::GuestTemplate& origin) const {
  if (origin.no_paging().ok()) return;
  log_.Info("all memory is read before the guest runs: {}",
            std::string(origin.no_paging().message()));
}

void MachineGuest::GoOn(RunningMachine& running) {
  log_.LogIfError(running.machine().Start(), "let the guest go on");
  connection_->Continue();
  ThawPrograms();
}

absl::StatusOr<StoredSizes> MachineGuest::Suspend(
    const std::filesystem::path& directory, const StoreOptions& options) {
  const base::MutexLock change(&change_mutex_);
  CATNAP_ASSIGN_OR_RETURN(Running running, Awake());
  const agent::CallLimits limits(options.deadline, options.stop);
  CATNAP_RETURN_IF_ERROR(running->root()->PrepareFreeze());
  CATNAP_RETURN_IF_ERROR(FreezePrograms(kSleepBound, limits));
  absl::StatusOr<StoredSizes> stored = StoredSizes();
  if (absl::Status paused = running->machine().Pause(); !paused.ok()) {
    stored = std::move(paused);
  } else {
    std::shared_ptr<const vmm::GuestTemplate> origin;
    {
      const base::MutexLock lock(&mutex_);
      origin = origin_;
    }
    stored = StoreStanding(means_, *running, origin.get(), directory, options);
  }
  if (!stored.ok()) {
    GoOn(*running);
    return stored;
  }
  connection_->Detach();
  running->root()->Close();
  const base::MutexLock lock(&mutex_);
  vcpu_seconds_ +=
      std::chrono::duration<double>(running->machine().vcpu_time()).count();
  console_tail_ = running->machine().console().Tail();
  stored_bytes_ = running->root()->allocated_bytes();
  origin_.reset();
  running_.reset();
  return stored;
}

absl::Status MachineGuest::Resume(const std::filesystem::path& directory,
                                  const agent::CallLimits& limits) {
  const base::MutexLock change(&change_mutex_);
  GuestConfig config = config_;
  {
    const base::MutexLock lock(&mutex_);
    if (stopped_) return absl::FailedPreconditionError("the guest has ended");
    if (running_ != nullptr) return absl::OkStatus();
    config.egress = egress_;
  }
  config.sync_later = false;  // It is recorded by now.
  CATNAP_ASSIGN_OR_RETURN(
      auto origin,
      vmm::GuestTemplate::Load(directory.string(),
                               vmm::GuestTemplate::Role::kGuest, image_,
                               {.pool = means_.workers,
                                .prefetch = PrefetchOf(config.prefetch),
                                .stop = limits.stop,
                                .deadline = limits.deadline}));
  TellIfNotPaged(*origin);
  CATNAP_RETURN_IF_ERROR(TakeDisk(directory, *origin, config));
  CATNAP_ASSIGN_OR_RETURN(
      Running running,
      RunningMachine::Create(means_, config, std::move(origin)));
  {
    const base::MutexLock lock(&mutex_);
    // Stop() stops what is here, and nothing that comes later.
    if (stopped_) return absl::FailedPreconditionError("the guest has ended");
    running_ = running;
    origin_ = running->origin();
  }
  connection_->Attach(running->sockets());
  absl::Status awake = running->machine().Start();
  if (awake.ok()) {
    connection_->Continue();
    awake = WakePrograms(/*is_copy=*/false, /*env=*/std::nullopt, limits);
  }
  if (awake.ok()) return absl::OkStatus();
  // It sleeps on, as it was stored. What the connection carried meanwhile is
  // not in there: the agent has to make another.
  running->machine().Stop();
  connection_->Break(absl::UnavailableError(
      "the guest could not be woken, and its connections were lost"));
  connection_->Detach();
  running->root()->Close();
  const base::MutexLock lock(&mutex_);
  running_.reset();
  origin_.reset();
  return awake;
}

void MachineGuest::Settle() {
  if (!change_mutex_.TryLock()) return;
  if (const Running now = running(); now != nullptr) {
    const auto given = now->machine().GiveBackUnchanged(kMostSettled);
    log_.LogIfError(given.status(), "give back memory that it shares");
  }
  change_mutex_.Unlock();
}

absl::StatusOr<std::shared_ptr<CapturedGuest>> MachineGuest::CaptureStanding(
    RunningMachine& running, vmm::MachineCapture& capture,
    const std::filesystem::path& disk_directory, CaptureUse use) {
  CATNAP_ASSIGN_OR_RETURN(auto sections, running.machine().Save());
  CATNAP_RETURN_IF_ERROR(running.root()->Freeze());
  CATNAP_RETURN_IF_ERROR(AddDiskSection(*running.root(), &sections));
  CATNAP_RETURN_IF_ERROR(capture.Take(&running.machine(), std::move(sections)));
  CATNAP_RETURN_IF_ERROR(running.machine().Start());
  connection_->Continue();
  ThawPrograms();
  CATNAP_ASSIGN_OR_RETURN(auto captured, capture.Finish());
  if (use == CaptureUse::kRun) {
    const base::MutexLock lock(&mutex_);
    origin_ = captured;
  }
  // It goes with this process.
  CATNAP_ASSIGN_OR_RETURN(
      auto layers,
      running.root()->LinkInto(disk_directory.string(), disk::CopyMode::kLink,
                               disk::Durable::kLater));
  return std::shared_ptr<CapturedGuest>(std::make_shared<CapturedMachine>(
      std::move(captured), disk_directory, std::move(layers), means_));
}

absl::StatusOr<std::shared_ptr<CapturedGuest>> MachineGuest::Capture(
    CaptureUse use, const agent::CallLimits& limits) {
  const base::MutexLock change(&change_mutex_);
  CATNAP_ASSIGN_OR_RETURN(const Running running, Awake());
  std::shared_ptr<const vmm::GuestTemplate> origin;
  std::filesystem::path disk_directory;
  {
    const base::MutexLock lock(&mutex_);
    origin = origin_;
    // Beside what goes with the guest: this may outlive it.
    disk_directory = config_.directory.parent_path().parent_path() /
                     fmt::format(".captured-{}-{}", config_.vm_id, ++captures_);
  }
  std::error_code error;
  std::filesystem::remove_all(disk_directory, error);
  std::filesystem::create_directory(disk_directory, error);
  if (error) {
    return ErrnoError(error.value(), "make {}", disk_directory.string());
  }
  auto captured =
      CaptureInto(disk_directory, *running, std::move(origin), use, limits);
  if (!captured.ok()) std::filesystem::remove_all(disk_directory, error);
  return captured;
}

absl::StatusOr<std::shared_ptr<CapturedGuest>> MachineGuest::CaptureInto(
    const std::filesystem::path& disk_directory, RunningMachine& running,
    std::shared_ptr<const vmm::GuestTemplate> origin, CaptureUse use,
    const agent::CallLimits& limits) {
  CATNAP_ASSIGN_OR_RETURN(
      const auto capture,
      vmm::MachineCapture::Prepare(
          &running.machine(), std::move(origin), MemoryOf(use),
          {.stop = limits.stop, .deadline = limits.deadline}));
  CATNAP_RETURN_IF_ERROR(running.root()->PrepareFreeze());
  // In the same queue before the freeze, so done when that is answered. One
  // that is only stored is to stand still for as short as can be.
  if (use == CaptureUse::kRun) running.sockets()->RenewReceiveBuffers();
  CATNAP_RETURN_IF_ERROR(FreezePrograms(kCaptureBound, limits));
  absl::StatusOr<std::shared_ptr<CapturedGuest>> captured;
  if (absl::Status paused = running.machine().Pause(); !paused.ok()) {
    captured = std::move(paused);
  } else {
    captured = CaptureStanding(running, *capture, disk_directory, use);
  }
  if (!captured.ok()) GoOn(running);
  return captured;
}

}  // namespace catnap::runtime
