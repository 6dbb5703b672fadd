#include "support/writer_factory.h"

#include <map>
#include <string>
#include <thread>
#include <utility>

#include "base/status.h"
#include "disk/disk_stack.h"
#include "disk/layer_cache.h"
#include "runtime/image_store.h"
#include "runtime/machine_guest.h"
#include "runtime/stored_disk.h"
#include "snapshot/worker_pool.h"

namespace catnap::test {

struct WriterFactory::Shared {
  std::shared_ptr<runtime::MachineFactory::Outstanding> outstanding =
      std::make_shared<runtime::MachineFactory::Outstanding>();
  std::shared_ptr<disk::LayerCache> layers =
      std::make_shared<disk::LayerCache>();
  Hooks hooks;
  base::Clock* clock = nullptr;
  base::Mutex mutex;
  std::unique_ptr<vmm::ShellPool> shells ABSL_GUARDED_BY(mutex);
  std::unique_ptr<snapshot::WorkerPool> workers ABSL_GUARDED_BY(mutex);
  std::map<std::string, std::weak_ptr<runtime::RunningMachine>> machines
      ABSL_GUARDED_BY(mutex);

  void Name(const std::string& id,
            const std::shared_ptr<runtime::RunningMachine>& machine) {
    const base::MutexLock lock(&mutex);
    machines[id] = machine;
  }
};

class WriterFactory::WriterGuest final : public runtime::Guest {
 public:
  using Running = std::shared_ptr<runtime::RunningMachine>;
  using Template = std::shared_ptr<const vmm::GuestTemplate>;

  WriterGuest(std::shared_ptr<Shared> shared, runtime::MachineMeans means,
              runtime::GuestConfig config, Template image)
      : shared_(std::move(shared)),
        means_(std::move(means)),
        config_(std::move(config)),
        image_(std::move(image)) {}
  ~WriterGuest() override { Stop(); }

  absl::Status Begin(Template origin) {
    const bool is_copy = config_.origin.has_value() && config_.origin->is_copy;
    CATNAP_ASSIGN_OR_RETURN(
        Running running,
        runtime::RunningMachine::Create(means_, config_, std::move(origin)));
    if (config_.on_prepared != nullptr) {
      CATNAP_RETURN_IF_ERROR(config_.on_prepared());
    }
    running->sockets()->ResetTransport();
    if (is_copy) {
      CATNAP_RETURN_IF_ERROR(running->machine().ChangeGenerationId());
    }
    return Let(running);
  }

  absl::StatusOr<std::shared_ptr<agent::Client>> WaitForClient(
      std::chrono::steady_clock::time_point /*deadline*/,
      const std::function<bool()>& /*give_up*/) override {
    return std::shared_ptr<agent::Client>();  // Nobody uses it.
  }
  void Wake() override {}
  void Stop() override {
    Running last;
    {
      const base::MutexLock lock(&mutex_);
      stopped_ = true;
      last = running_;
    }
    if (last != nullptr) {
      last->machine().Stop();
      last->root()->Close();
    }
  }
  std::string ConsoleTail() const override { return ""; }
  double VcpuSeconds() const override { return 0; }
  uint64_t StoredBytes() const override { return 0; }
  absl::Status Sync() override {
    const Running now = running();
    return now == nullptr ? absl::OkStatus() : now->Sync();
  }
  std::string WaitsFor() const override {
    const Running now = running();
    return now == nullptr ? "" : now->WaitsFor();
  }
  absl::Status SetEgress(const NetworkPolicy& /*policy*/) override {
    return absl::OkStatus();
  }

  absl::StatusOr<runtime::StoredSizes> Suspend(
      const std::filesystem::path& directory,
      const runtime::StoreOptions& options) override {
    const base::MutexLock change(&change_mutex_);
    CATNAP_ASSIGN_OR_RETURN(Running now, Awake());
    CATNAP_RETURN_IF_ERROR(now->root()->PrepareFreeze());
    CATNAP_RETURN_IF_ERROR(now->machine().Pause());
    auto stored = StoreNow(*now, directory, options);
    if (!stored.ok()) {
      CATNAP_RETURN_IF_ERROR(now->machine().Start());
      return stored;
    }
    now->root()->Close();
    const base::MutexLock lock(&mutex_);
    running_.reset();
    origin_.reset();
    return stored;
  }

  absl::Status Resume(const std::filesystem::path& directory,
                      const agent::CallLimits& limits) override {
    const base::MutexLock change(&change_mutex_);
    {
      const base::MutexLock lock(&mutex_);
      if (stopped_) return absl::FailedPreconditionError("it has ended");
      if (running_ != nullptr) return absl::OkStatus();
    }
    CATNAP_ASSIGN_OR_RETURN(
        auto origin,
        vmm::GuestTemplate::Load(directory.string(),
                                 vmm::GuestTemplate::Role::kGuest, image_,
                                 {.pool = means_.workers,
                                  .prefetch = shared_->hooks.prefetch,
                                  .stop = limits.stop,
                                  .deadline = limits.deadline}));
    runtime::GuestConfig config = config_;
    config.sync_later = false;
    CATNAP_RETURN_IF_ERROR(runtime::TakeDisk(directory, *origin, config));
    CATNAP_ASSIGN_OR_RETURN(
        Running running,
        runtime::RunningMachine::Create(means_, config, std::move(origin)));
    return Let(running);
  }

  absl::StatusOr<std::shared_ptr<runtime::CapturedGuest>> Capture(
      runtime::CaptureUse use, const agent::CallLimits& /*limits*/) override {
    const base::MutexLock change(&change_mutex_);
    CATNAP_ASSIGN_OR_RETURN(const Running now, Awake());
    Template origin;
    {
      const base::MutexLock lock(&mutex_);
      origin = origin_;
    }
    const std::filesystem::path layers =
        config_.directory.parent_path().parent_path() /
        fmt::format(".captured-{}-{}", config_.vm_id, ++captures_);
    std::filesystem::create_directory(layers);
    CATNAP_ASSIGN_OR_RETURN(
        const auto capture,
        vmm::MachineCapture::Prepare(&now->machine(), std::move(origin),
                                     runtime::MemoryOf(use)));
    CATNAP_RETURN_IF_ERROR(now->root()->PrepareFreeze());
    CATNAP_RETURN_IF_ERROR(now->machine().Pause());
    absl::Status taken;
    if (auto sections = now->machine().Save(); !sections.ok()) {
      taken = sections.status();
    } else if (taken = now->root()->Freeze(); taken.ok()) {
      taken = runtime::AddDiskSection(*now->root(), &*sections);
      if (taken.ok()) {
        taken = capture->Take(&now->machine(), *std::move(sections));
      }
    }
    CATNAP_RETURN_IF_ERROR(now->machine().Start());
    CATNAP_RETURN_IF_ERROR(taken);
    CATNAP_ASSIGN_OR_RETURN(auto captured, capture->Finish());
    if (use == runtime::CaptureUse::kRun) {
      const base::MutexLock lock(&mutex_);
      origin_ = captured;
    }
    CATNAP_ASSIGN_OR_RETURN(
        auto linked,
        now->root()->LinkInto(layers.string(), disk::CopyMode::kLink,
                              disk::Durable::kLater));
    return std::make_shared<runtime::CapturedMachine>(
        std::move(captured), layers, std::move(linked), means_);
  }

 private:
  Running running() const {
    const base::MutexLock lock(&mutex_);
    return running_;
  }
  absl::StatusOr<Running> Awake() const {
    const base::MutexLock lock(&mutex_);
    if (running_ != nullptr && !stopped_) return running_;
    return absl::FailedPreconditionError("the guest does not run");
  }
  absl::Status Let(const Running& running) {
    if (shared_->hooks.on_woken != nullptr) {
      CATNAP_RETURN_IF_ERROR(shared_->hooks.on_woken(*running));
    }
    {
      const base::MutexLock lock(&mutex_);
      running_ = running;
      origin_ = running->origin();
    }
    shared_->Name(config_.vm_id, running);
    return running->machine().Start();
  }
  absl::StatusOr<runtime::StoredSizes> StoreNow(
      runtime::RunningMachine& now, const std::filesystem::path& directory,
      const runtime::StoreOptions& options) {
    if (shared_->hooks.on_standing != nullptr) {
      CATNAP_RETURN_IF_ERROR(shared_->hooks.on_standing(now));
    }
    Template origin;
    {
      const base::MutexLock lock(&mutex_);
      origin = origin_;
    }
    return runtime::StoreStanding(means_, now, origin.get(), directory,
                                  options);
  }

  const std::shared_ptr<Shared> shared_;
  const runtime::MachineMeans means_;
  const runtime::GuestConfig config_;
  const Template image_;
  base::Mutex change_mutex_;
  mutable base::Mutex mutex_;
  Running running_ ABSL_GUARDED_BY(mutex_);
  Template origin_ ABSL_GUARDED_BY(mutex_);
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t captures_ ABSL_GUARDED_BY(change_mutex_) = 0;
};

WriterFactory::WriterFactory(base::Clock* clock, Hooks hooks,
                             vmm::ShellPool::Options pool)
    : shared_(std::make_shared<Shared>()),
      pool_(pool),
      real_({.kernel = {}, .clock = clock}) {
  shared_->hooks = std::move(hooks);
  shared_->clock = clock;
}

WriterFactory::~WriterFactory() {
  auto& outstanding = *shared_->outstanding;
  const base::MutexLock lock(&outstanding.mutex);
  while (outstanding.holders > 0) outstanding.none.Wait(&outstanding.mutex);
}

absl::StatusOr<runtime::MachineMeans> WriterFactory::Means() {
  const base::MutexLock lock(&shared_->mutex);
  if (shared_->shells == nullptr) {
    CATNAP_ASSIGN_OR_RETURN(auto system, kvm::System::Open());
    CATNAP_ASSIGN_OR_RETURN(shared_->shells,
                            vmm::ShellPool::Create(std::move(system), pool_));
    CATNAP_ASSIGN_OR_RETURN(shared_->workers,
                            snapshot::WorkerPool::Create(/*threads=*/0));
  }
  runtime::MachineMeans means;
  means.shells = shared_->shells.get();
  means.workers = shared_->workers.get();
  means.clock = shared_->clock;
  means.outstanding = shared_->outstanding;
  means.layers = shared_->layers;
  return means;
}

absl::StatusOr<std::shared_ptr<const vmm::GuestTemplate>>
WriterFactory::TemplateOf(const runtime::ImageRecord& image) {
  CATNAP_ASSIGN_OR_RETURN(const runtime::MachineMeans means, Means());
  const base::MutexLock lock(&mutex_);
  if (image_ == nullptr) {
    CATNAP_ASSIGN_OR_RETURN(
        image_, vmm::GuestTemplate::Load(
                    (image.directory / runtime::kImageGuestName).string(),
                    vmm::GuestTemplate::Role::kImage, nullptr,
                    {.pool = means.workers}));
  }
  return image_;
}

absl::StatusOr<std::unique_ptr<runtime::Guest>> WriterFactory::Start(
    runtime::GuestConfig config) {
  CATNAP_ASSIGN_OR_RETURN(const runtime::MachineMeans means, Means());
  CATNAP_ASSIGN_OR_RETURN(auto image, TemplateOf(*config.image));
  if (!config.origin.has_value()) {
    return absl::UnimplementedError("such a guest does not boot");
  }
  const runtime::GuestOrigin& from = *config.origin;
  std::shared_ptr<const vmm::GuestTemplate> origin;
  if (from.captured != nullptr) {
    const auto& captured =
        static_cast<const runtime::CapturedMachine&>(*from.captured);
    origin = captured.guest_template();
    CATNAP_RETURN_IF_ERROR(runtime::TakeLayers(captured.layers(), config));
  } else if (from.directory ==
             config.image->directory / runtime::kImageGuestName) {
    origin = image;
  } else {
    CATNAP_ASSIGN_OR_RETURN(
        origin,
        vmm::GuestTemplate::Load(
            from.directory.string(), vmm::GuestTemplate::Role::kGuest, image,
            {.pool = means.workers, .prefetch = shared_->hooks.prefetch}));
  }
  if (from.captured == nullptr) {
    CATNAP_RETURN_IF_ERROR(runtime::TakeDisk(from.directory, *origin, config));
  }
  auto guest = std::make_unique<WriterGuest>(shared_, means, std::move(config),
                                             std::move(image));
  CATNAP_RETURN_IF_ERROR(guest->Begin(std::move(origin)));
  return guest;
}

absl::Status WriterFactory::Verify(const runtime::ImageRecord& image,
                                   const std::filesystem::path& directory,
                                   const agent::CallLimits& limits) {
  return real_.Verify(image, directory, limits);
}

absl::Status WriterFactory::Prewarm(const runtime::ImageRecord& image,
                                    int count) {
  CATNAP_ASSIGN_OR_RETURN(const runtime::MachineMeans means, Means());
  CATNAP_RETURN_IF_ERROR(TemplateOf(image).status());
  return means.shells->Prewarm(
      runtime::RunningMachine::ShellOf(image, means, /*disks=*/1),
      static_cast<uint64_t>(count));
}

std::shared_ptr<runtime::RunningMachine> WriterFactory::machine(
    const std::string& id) {
  const base::MutexLock lock(&shared_->mutex);
  return shared_->machines[id].lock();
}

absl::StatusOr<WriterProgress> WriterFactory::Progress(const std::string& id) {
  const auto running = machine(id);
  if (running == nullptr) return absl::NotFoundError(id + " does not run");
  return ProgressOf(running->machine().memory());
}

bool WriterFactory::WaitForSteps(const std::string& id, uint32_t steps) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  const auto from = Progress(id);
  if (!from.ok()) return false;
  while (std::chrono::steady_clock::now() < until) {
    const auto now = Progress(id);
    if (!now.ok()) return false;
    if (now->done - from->done >= steps) return true;
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  return false;
}

void WriterFactory::WaitIdle() {
  vmm::ShellPool* shells = nullptr;
  {
    const base::MutexLock lock(&shared_->mutex);
    shells = shared_->shells.get();
  }
  if (shells != nullptr) shells->WaitIdle();
}

}  // namespace catnap::test
