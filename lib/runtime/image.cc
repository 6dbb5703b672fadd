#include "catnap/image.h"

#include <unistd.h>

#include <optional>
#include <utility>
#include <variant>

#include "base/random.h"
#include "base/serial_queue.h"
#include "base/status.h"
#include "catnap/host.h"
#include "runtime/completion.h"
#include "runtime/host_core.h"
#include "runtime/image_record.h"
#include "runtime/image_store.h"
#include "runtime/root_disk.h"

namespace catnap {
namespace {

const std::string& Empty() {
  static const std::string empty;
  return empty;
}

// A build's observer, on the executor; not called any more once this is gone.
class Telling {
 public:
  Telling(BuildObserver* observer, const std::shared_ptr<Executor>& executor)
      : observer_(observer), queue_(executor) {}

  void Phase(BuildPhase phase, std::string detail) {
    if (observer_ == nullptr) return;
    queue_.Post([observer = observer_, phase, detail = std::move(detail)] {
      observer->OnPhase(phase, detail);
    });
  }
  void Progress(double fraction) {
    if (observer_ == nullptr) return;
    queue_.Post(
        [observer = observer_, fraction] { observer->OnProgress(fraction); });
  }
  // Blocks until the observer has heard all.
  void Finish() {
    if (observer_ == nullptr) return;
    const runtime::Completion<bool> told;
    queue_.Post([told] { told.Set(true); });
    told.Wait();
  }

 private:
  BuildObserver* const observer_;  // Not owned; null: nobody.
  base::SerialQueue queue_;
};

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

class HostCore::RunningBuild {
 public:
  explicit RunningBuild(Builds* builds) : builds_(builds) {
    const base::MutexLock lock(&builds_->mutex);
    ++builds_->running;
  }
  ~RunningBuild() {
    const base::MutexLock lock(&builds_->mutex);
    if (--builds_->running == 0) builds_->none.NotifyAll();
  }
  RunningBuild(const RunningBuild&) = delete;
  RunningBuild& operator=(const RunningBuild&) = delete;

 private:
  Builds* const builds_;  // Not owned.
};

absl::StatusOr<Image> HostCore::BuildImage(const ImageSpec& spec,
                                           BuildObserver* observer,
                                           const CallOptions& call) {
  CATNAP_RETURN_IF_ERROR(CheckImageSpec(spec));
  CATNAP_ASSIGN_OR_RETURN(const agent::CallLimits limits, LimitsOf(call));
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

  Telling telling(observer, executor_);
  const RootSource source = SourceOf(spec);
  telling.Phase(BuildPhase::kResolving, source.path.string());
  CATNAP_ASSIGN_OR_RETURN(auto draft, images_->NewDraft());
  ImageRecord record = RecordOf(spec);
  CATNAP_ASSIGN_OR_RETURN(record.disk_id, base::RandomBytes<16>());
  telling.Phase(BuildPhase::kAssembling, "making the root file system");
  const absl::Status built =
      BuildRootDisk(source, draft->directory() / kRootDiskName,
                    record.disk_bytes, {}, {limits.deadline, stop.get_token()});
  if (!built.ok()) {
    telling.Finish();
    if (builds_.stop.stop_requested()) {
      return WithReason(absl::CancelledError("the Host was closed"),
                        ErrorReason::kHostClosed);
    }
    return built;
  }
  telling.Phase(BuildPhase::kPublishing, record.name);
  auto published = images_->Publish(std::move(draft), std::move(record));
  if (published.ok()) telling.Progress(1.0);
  telling.Finish();
  if (!published.ok()) return published.status();
  return Image(*std::move(published));
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
  return runtime::HostCore::Of(host).BuildImage(spec, observer, call);
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
