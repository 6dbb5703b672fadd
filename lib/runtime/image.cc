#include "catnap/image.h"

#include <sys/stat.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>

#include "base/mutex.h"
#include "base/random.h"
#include "base/sha256.h"
#include "base/status.h"
#include "catnap/host.h"
#include "io/file.h"
#include "runtime/build_telling.h"
#include "runtime/completion.h"
#include "runtime/host_core.h"
#include "runtime/image_record.h"
#include "runtime/image_store.h"
#include "runtime/network_policy.h"
#include "runtime/recipe.h"
#include "runtime/root_disk.h"

namespace catnap {
namespace {

const std::string& Empty() {
  static const std::string empty;
  return empty;
}

runtime::RootSource SourceOf(const ImageSpec& spec) {
  runtime::RootSource source;
  if (const auto* tar = std::get_if<TarSource>(&spec.source)) {
    source.kind = runtime::RootSource::Kind::kTar;
    source.path = tar->tar;
  } else if (const auto* root = std::get_if<DirectorySource>(&spec.source)) {
    source.kind = runtime::RootSource::Kind::kDirectory;
    source.path = root->root;
  }
  return source;
}

}  // namespace

namespace runtime {
namespace {

// What the application writes while it is built.
class LineSink final : public LogSink {
 public:
  explicit LineSink(BuildTelling* telling) : telling_(telling) {}
  void Write(const LogRecord& record) override {
    const base::MutexLock lock(&mutex_);
    if (telling_ != nullptr) telling_->Line(std::string(record.text));
  }
  bool listens() {
    const base::MutexLock lock(&mutex_);
    return telling_ != nullptr && telling_->listens();
  }
  void End() {
    const base::MutexLock lock(&mutex_);
    telling_ = nullptr;
  }

 private:
  base::Mutex mutex_;
  BuildTelling* telling_ ABSL_GUARDED_BY(mutex_);  // Not owned.
};

// Ends a build's machine, whatever happens.
class BuildVm {
 public:
  BuildVm(std::shared_ptr<Vm> vm, std::shared_ptr<LineSink> lines)
      : vm_(std::move(vm)), lines_(std::move(lines)) {}
  ~BuildVm() {
    vm_->End(TerminationReason::kRequested, "its image was built");
    if (lines_->listens()) {
      // Behind the lines that are on their way.
      const Completion<bool> told;
      vm_->environment().executor->Post([told] { told.Set(true); });
      told.Wait();
    }
    lines_->End();
  }
  BuildVm(const BuildVm&) = delete;
  BuildVm& operator=(const BuildVm&) = delete;
  Vm* operator->() { return vm_.get(); }

 private:
  const std::shared_ptr<Vm> vm_;
  const std::shared_ptr<LineSink> lines_;
};

}  // namespace

absl::Status HostCore::BuildGuest(ImageRecord* record, const ImageSpec& spec,
                                  ImageStore::Draft* draft,
                                  BuildTelling* telling,
                                  const agent::CallLimits& limits) {
  record->directory = draft->directory();
  record->version = "draft";
  const auto image = std::make_shared<const ImageRecord>(*record);
  RunOptions options;
  CATNAP_ASSIGN_OR_RETURN(options.id, RandomName("build-"));
  options.egress = spec.build_egress;
  options.durability = Durability::kEphemeral;
  const auto lines = std::make_shared<LineSink>(telling);
  options.guest_log = lines;
  VmEnvironment environment = EnvironmentOf(options.id);
  environment.directory = draft->directory() / "vm";
  environment.on_phase = [telling, name = record->name](BuildPhase phase) {
    telling->Phase(phase, name);
  };
  telling->Phase(BuildPhase::kBooting, record->name);
  const std::string id = options.id;
  BuildVm vm(std::make_shared<Vm>(id, image, std::move(options),
                                  std::move(environment)),
             lines);
  CATNAP_RETURN_IF_ERROR(vm->Prepare());
  CATNAP_RETURN_IF_ERROR(vm->Start(limits));
  const auto captured =
      vm->Capture(CaptureUse::kRun, limits,
                  [](const std::filesystem::path& /*sleeps_in*/,
                     uint64_t /*own_bytes*/) { return absl::OkStatus(); });
  if (!captured.ok()) return captured.status();
  CATNAP_ASSIGN_OR_RETURN(
      const std::vector<base::PageRange> hot,
      TrainGuest(image, *captured, draft->directory(), telling, limits));
  telling->Phase(BuildPhase::kSnapshotting, record->name);
  const std::filesystem::path guest = draft->directory() / kImageGuestName;
  if (::mkdir(guest.c_str(), 0755) != 0) {
    return ErrnoError(errno, "make {}", guest.string());
  }
  StoreOptions store;
  store.stop = limits.stop;
  store.deadline = limits.deadline;
  store.hot = hot;
  store.is_image = true;
  CATNAP_RETURN_IF_ERROR((*captured)->Store(guest, store).status());
  CATNAP_RETURN_IF_ERROR(io::FsyncDirectory(guest.string()));
  record->has_guest = true;
  return absl::OkStatus();
}

absl::StatusOr<std::vector<base::PageRange>> HostCore::TrainGuest(
    const std::shared_ptr<const ImageRecord>& image,
    const std::shared_ptr<CapturedGuest>& captured,
    const std::filesystem::path& draft, BuildTelling* telling,
    const agent::CallLimits& limits) {
  telling->Phase(BuildPhase::kTraining, image->name);
  GuestConfig config;
  config.image = image;
  CATNAP_ASSIGN_OR_RETURN(config.vm_id, RandomName("train-"));
  config.directory = draft / "training";
  const VmEnvironment environment = EnvironmentOf(config.vm_id);
  config.executor = environment.executor;
  config.loop = environment.loop;
  const std::filesystem::path directory = config.directory;
  auto hot = factory_->Train(std::move(config), captured, limits);
  std::error_code error;
  std::filesystem::remove_all(directory, error);
  if (error) {
    return ErrnoError(error.value(), "remove {}", directory.string());
  }
  if (hot.ok() || absl::IsCancelled(hot.status()) ||
      absl::IsDeadlineExceeded(hot.status())) {
    return hot;
  }
  // Guests of the image start more slowly, and that is all.
  telling->Line(fmt::format("what guests touch first was not recorded: {}",
                            std::string(hot.status().message())));
  return std::vector<base::PageRange>();
}

absl::StatusOr<Image> HostCore::BuildRecipe(const ImageSpec& spec,
                                            const std::vector<uint8_t>& recipe,
                                            BuildTelling* telling,
                                            const agent::CallLimits& limits) {
  const RootSource source = SourceOf(spec);
  telling->Phase(BuildPhase::kResolving, source.path.string());
  CATNAP_ASSIGN_OR_RETURN(auto draft, images_->NewDraft());
  ImageRecord record = RecordOf(spec);
  record.recipe = recipe;
  CATNAP_ASSIGN_OR_RETURN(record.disk_id, base::RandomBytes<16>());
  telling->Phase(BuildPhase::kAssembling, "making the root file system");
  CATNAP_RETURN_IF_ERROR(
      BuildRootDisk(source, draft->directory() / kRootDiskName,
                    record.disk_bytes, {}, {limits.deadline, limits.stop}));
  CATNAP_RETURN_IF_ERROR(
      BuildGuest(&record, spec, draft.get(), telling, limits));
  telling->Phase(BuildPhase::kPublishing, record.name);
  CATNAP_ASSIGN_OR_RETURN(
      auto published, images_->Publish(std::move(draft), std::move(record)));
  telling->Progress(1.0);
  return Image(std::move(published));
}

absl::StatusOr<Image> HostCore::Build(const ImageSpec& spec, bool may_be_there,
                                      BuildObserver* observer,
                                      const CallOptions& call) {
  CATNAP_RETURN_IF_ERROR(CheckImageSpec(spec));
  CATNAP_RETURN_IF_ERROR(CompilePolicy(spec.build_egress).status());
  CATNAP_ASSIGN_OR_RETURN(agent::CallLimits limits, LimitsOf(call));
  std::optional<RunningBuild> running;
  {
    const base::MutexLock lock(&mutex_);
    CATNAP_RETURN_IF_ERROR(CheckOpenLocked());
    running.emplace(&builds_);
  }
  std::stop_source stop;
  const std::stop_callback by_caller(limits.stop, [&] { stop.request_stop(); });
  const std::stop_callback by_close(builds_.stop.get_token(),
                                    [&] { stop.request_stop(); });
  limits.stop = stop.get_token();
  BuildTelling telling(observer, executor_);
  auto built = may_be_there ? FindOrBuild(spec, &telling, limits)
                            : BuildRecipe(spec, {}, &telling, limits);
  telling.Finish();
  if (!built.ok() && builds_.stop.stop_requested()) {
    return WithReason(absl::CancelledError("the Host was closed"),
                      ErrorReason::kHostClosed);
  }
  return built;
}

absl::StatusOr<Image> HostCore::FindOrBuild(const ImageSpec& spec,
                                            BuildTelling* telling,
                                            const agent::CallLimits& limits) {
  CATNAP_ASSIGN_OR_RETURN(const std::string guests, factory_->Identity());
  CATNAP_ASSIGN_OR_RETURN(const std::vector<uint8_t> recipe,
                          RecipeOf(spec, guests, limits));
  if (auto known = images_->FindRecipe(spec.name, recipe)) {
    return Image(std::move(known));
  }
  // One of all callers builds; the others find what it made.
  CATNAP_ASSIGN_OR_RETURN(const auto turn,
                          images_->LockRecipe(base::HexText(recipe), limits));
  if (auto known = images_->FindRecipe(spec.name, recipe)) {
    return Image(std::move(known));
  }
  return BuildRecipe(spec, recipe, telling, limits);
}

}  // namespace runtime

Image::Image() = default;
Image::~Image() = default;
Image::Image(const Image& other) = default;
Image& Image::operator=(const Image& other) = default;
Image::Image(Image&& other) noexcept = default;
Image& Image::operator=(Image&& other) noexcept = default;
Image::Image(std::shared_ptr<const runtime::ImageRecord> record)
    : record_(std::move(record)) {}

absl::StatusOr<Image> Image::Build(Host& host, const ImageSpec& spec,
                                   BuildObserver* observer, CallOptions call) {
  return runtime::HostCore::Of(host).Build(spec, /*may_be_there=*/false,
                                           observer, call);
}

absl::StatusOr<Image> Image::GetOrBuild(Host& host, const ImageSpec& spec,
                                        BuildObserver* observer,
                                        CallOptions call) {
  return runtime::HostCore::Of(host).Build(spec, /*may_be_there=*/true,
                                           observer, call);
}

const std::string& Image::name() const {
  return record_ == nullptr ? Empty() : record_->name;
}
const std::string& Image::version() const {
  return record_ == nullptr ? Empty() : record_->version;
}
ImageStatus Image::status() const {
  return record_ == nullptr ? ImageStatus::kInactive : ImageStatus::kActive;
}
uint64_t Image::memory_bytes() const {
  return record_ == nullptr ? 0 : record_->memory_bytes;
}
uint64_t Image::stored_bytes() const {
  return record_ == nullptr ? 0 : record_->stored_bytes;
}
absl::Status Image::Delete() const {
  if (record_ == nullptr) {
    return absl::FailedPreconditionError("the image is an empty handle");
  }
  return runtime::ImageStore::Delete(*record_);
}

}  // namespace catnap
