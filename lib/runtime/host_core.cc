#include "runtime/host_core.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <system_error>
#include <thread>
#include <utility>

#include "base/status.h"
#include "catnap/errors.h"
#include "io/file.h"
#include "runtime/completion.h"
#include "runtime/machine_factory.h"
#include "runtime/options.h"

namespace catnap::runtime {
namespace {

constexpr char kImagesName[] = "images";
constexpr char kSnapshotsName[] = "snapshots";
constexpr char kLockName[] = "lock";
constexpr char kKvmRecordName[] = "kvm-checked";
// How long, and how many, MicroVMs that ended stay listed.
constexpr auto kListedFor = std::chrono::minutes(20);
constexpr size_t kMaxEnded = 1000;
// Guests that end or wake, and that fall asleep, at once in the background.
constexpr size_t kMaxWorkers = 16;
constexpr size_t kMaxSleepers = 4;

absl::Status Closed() {
  return WithReason(absl::CancelledError("the Host was closed"),
                    ErrorReason::kHostClosed);
}

}  // namespace

bool Matches(const Filter& filter, const std::string& image,
             const Labels& labels) {
  if (filter.image.has_value() && *filter.image != image) return false;
  return std::all_of(filter.labels.begin(), filter.labels.end(),
                     [&labels](const auto& wanted) {
                       const auto at = labels.find(wanted.first);
                       return at != labels.end() && at->second == wanted.second;
                     });
}

VmHandle::~VmHandle() {
  switch (vm_->options().on_release) {
    case OnRelease::kKeep:
      break;
    case OnRelease::kSuspend:
      vm_->SuspendSoon("its last handle was released (OnRelease::kSuspend)");
      break;
    case OnRelease::kTerminate:
      vm_->EndSoon(TerminationReason::kRequested,
                   "its last handle was released (OnRelease::kTerminate)");
      break;
  }
}

HostCore::HostCore(HostOptions options) : options_(std::move(options)) {}

absl::StatusOr<std::shared_ptr<HostCore>> HostCore::Open(
    HostOptions options, const FactoryMaker& make_factory) {
  CATNAP_RETURN_IF_ERROR(CheckHostOptions(options));
  std::shared_ptr<HostCore> core(new HostCore(std::move(options)));
  CATNAP_RETURN_IF_ERROR(core->Prepare(make_factory));
  return core;
}

std::shared_ptr<Host> HostCore::MakeHost(std::shared_ptr<HostCore> core) {
  return std::shared_ptr<Host>(new Host(std::move(core)));
}

absl::Status HostCore::Prepare(const FactoryMaker& make_factory) {
  executor_ = options_.executor;
  if (executor_ == nullptr) {
    CATNAP_ASSIGN_OR_RETURN(own_executor_,
                            OwnedExecutor::Create("catnap-callback"));
    executor_ = own_executor_;
  }
  CATNAP_ASSIGN_OR_RETURN(worker_,
                          TaskThreads::Create("catnap-work", kMaxWorkers));
  CATNAP_ASSIGN_OR_RETURN(sleeper_,
                          TaskThreads::Create("catnap-sleep", kMaxSleepers));
  log_ = base::Logger(
      {.sink = options_.log, .executor = executor_, .source = "host"});
  CATNAP_RETURN_IF_ERROR(LockStateDirectory());
  CATNAP_ASSIGN_OR_RETURN(
      images_,
      ImageStore::Open(options_.image_dir.empty() ? state_dir_ / kImagesName
                                                  : options_.image_dir,
                       log_));
  CATNAP_RETURN_IF_ERROR(MakeLoops());
  factory_ = make_factory != nullptr
                 ? make_factory(&clock_)
                 : std::make_unique<MachineFactory>(MachineFactory::Options{
                       .kernel = options_.kernel,
                       .kick_signal = options_.kick_signal,
                       .compression_level = options_.compression_level,
                       .clock = &clock_,
                       .kvm_record = state_dir_ / kKvmRecordName});
  CATNAP_ASSIGN_OR_RETURN(
      snapshots_,
      SnapshotStore::Open(
          state_dir_ / kSnapshotsName, log_,
          [this](const SnapshotRecord& record, ImageUse* use)
              -> absl::StatusOr<std::shared_ptr<const ImageRecord>> {
            CATNAP_ASSIGN_OR_RETURN(
                auto image, FindImage(record.image_name, record.image_major,
                                      record.image_disk_id));
            CATNAP_ASSIGN_OR_RETURN(*use, images_->Use(*image));
            return image;
          },
          weak_from_this()));
  return Recover();
}

absl::Status HostCore::LockStateDirectory() {
  std::error_code error;
  if (options_.state_dir.empty()) {
    const auto parent = std::filesystem::temp_directory_path(error);
    std::string path = (parent / "catnap-XXXXXX").string();
    if (error || ::mkdtemp(path.data()) == nullptr) {
      return ErrnoError(error ? error.value() : errno,
                        "make a temporary state directory in {}",
                        parent.string());
    }
    state_dir_ = path;
    temporary_ = true;
  } else {
    // Absolute, as the host program may change its working directory.
    state_dir_ = std::filesystem::absolute(options_.state_dir, error);
    if (!error) {
      std::filesystem::create_directories(state_dir_.parent_path(), error);
    }
    if (error ||
        (::mkdir(state_dir_.c_str(), S_IRWXU) != 0 && errno != EEXIST)) {
      return ErrnoError(error ? error.value() : errno, "make state_dir {}",
                        state_dir_.string());
    }
  }
  CATNAP_ASSIGN_OR_RETURN(
      lock_, io::OpenFile((state_dir_ / kLockName).string(), O_RDWR | O_CREAT));
  if (::flock(lock_.get(), LOCK_EX | LOCK_NB) != 0) {
    const int why = errno;
    lock_.Reset();
    if (why != EWOULDBLOCK) {
      return ErrnoError(why, "lock {}", (state_dir_ / kLockName).string());
    }
    return WithReason(
        absl::FailedPreconditionError(fmt::format(
            "state_dir {} is used by another Host, maybe of another process; "
            "close that one, or take another directory",
            state_dir_.string())),
        ErrorReason::kStateDirInUse);
  }
  std::filesystem::create_directory(state_dir_ / kVmsName, error);
  if (error) {
    return ErrnoError(error.value(), "prepare {}",
                      (state_dir_ / kVmsName).string());
  }
  return absl::OkStatus();
}

absl::Status HostCore::MakeLoops() {
  size_t count = static_cast<size_t>(options_.io_threads);
  if (count == 0) {
    count = std::clamp<size_t>(std::thread::hardware_concurrency(), 1, 2);
  }
  for (size_t i = 0; i < count; ++i) {
    CATNAP_ASSIGN_OR_RETURN(auto loop, io::EventLoop::Create({}));
    loops_.push_back(std::move(loop));
  }
  return absl::OkStatus();
}

HostCore::~HostCore() {
  // Open() may have failed before there was a Host to close.
  log_.LogIfError(Close({.running = AtClose::kTerminate}), "close the Host");
  if (own_executor_ != nullptr) own_executor_->Join();
}

absl::Status HostCore::Close(const CloseOptions& options) {
  const auto deadline =
      std::chrono::steady_clock::now() +
      std::clamp<Millis>(options.timeout, Millis(1), std::chrono::hours(24));
  const base::MutexLock close_lock(&close_mutex_);
  if (closed_all_) return absl::OkStatus();
  std::vector<std::shared_ptr<Vm>> vms;
  {
    const base::MutexLock lock(&mutex_);
    closed_ = true;
    for (const auto& [id, entry] : vms_) vms.push_back(entry.vm);
  }
  absl::Status suspended =
      CloseVms(vms, options.running == AtClose::kSuspend, deadline);
  std::deque<Launcher> launchers;
  {
    const base::MutexLock lock(&mutex_);
    launchers.swap(launchers_);
  }
  launchers.clear();  // Joins them.
  builds_.stop.request_stop();
  {
    const base::MutexLock lock(&builds_.mutex);
    while (builds_.running > 0) builds_.none.Wait(&builds_.mutex);
  }
  if (snapshots_ != nullptr) snapshots_->Close(Closed());
  factory_.reset();
  // Each runs what waits, which may post to the other.
  if (sleeper_ != nullptr) sleeper_->Join();
  if (worker_ != nullptr) worker_->Join();
  const bool idle =
      own_executor_ == nullptr || own_executor_->WaitIdle(deadline);
  if (idle && own_executor_ != nullptr) own_executor_->Join();
  loops_.clear();
  std::error_code error;
  if (temporary_) std::filesystem::remove_all(state_dir_, error);
  lock_.Reset();
  closed_all_ = true;
  if (!idle) {
    return Error(absl::StatusCode::kDeadlineExceeded,
                 "the Host is closed, but a callback of its user still runs "
                 "after {} ms",
                 options.timeout.count());
  }
  if (error) {
    return ErrnoError(error.value(), "remove {}", state_dir_.string());
  }
  return suspended;
}

absl::Status HostCore::CloseVms(const std::vector<std::shared_ptr<Vm>>& vms,
                                bool suspend, Vm::Time deadline) {
  base::Mutex mutex;
  absl::Status first;
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t i = next++; i < vms.size(); i = next++) {
      const absl::Status closed = vms[i]->Close(suspend, deadline);
      if (closed.ok()) continue;
      log_.LogIfError(closed, "MicroVM {} could not be suspended",
                      vms[i]->id());
      const base::MutexLock lock(&mutex);
      if (first.ok()) {
        first = AddContext(
            closed, fmt::format("MicroVM {} was not suspended", vms[i]->id()));
      }
    }
  };
  std::vector<base::Thread> threads;
  while (threads.size() + 1 < std::min(vms.size(), kMaxSleepers)) {
    auto thread = base::Thread::Start("catnap-close", work);
    if (!thread.ok()) break;  // The others do it.
    threads.push_back(*std::move(thread));
  }
  work();
  threads.clear();
  return first;
}

absl::Status HostCore::CheckOpenLocked() const {
  return closed_ ? Closed() : absl::OkStatus();
}

std::vector<Image> HostCore::ListImages() const {
  std::vector<Image> images;
  for (auto& record : images_->List()) {
    images.push_back(Image(std::move(record)));
  }
  return images;
}

absl::StatusOr<Image> HostCore::GetImage(std::string_view name,
                                         std::string_view version) const {
  CATNAP_ASSIGN_OR_RETURN(auto record, images_->Get(name, version));
  return Image(std::move(record));
}

absl::StatusOr<MicroVM> HostCore::Run(const Image& image, RunOptions options,
                                      const CallOptions& call) {
  if (image.record_ == nullptr) {
    return absl::InvalidArgumentError(
        "the image is an empty handle; Image::Build() or Host::GetImage() "
        "gives one");
  }
  CATNAP_ASSIGN_OR_RETURN(const agent::CallLimits limits, LimitsOf(call));
  std::optional<GuestOrigin> origin;
  // Disks that are attached are not among the devices of the image's guest:
  // such a machine boots.
  if (image.record_->has_guest && options.disks.empty()) {
    origin.emplace();
    origin->directory = image.record_->directory / kImageGuestName;
    origin->is_copy = true;
  }
  return Launch(image.record_, std::move(options), std::move(origin), limits);
}

absl::StatusOr<MicroVM> HostCore::Launch(
    const std::shared_ptr<const ImageRecord>& image, RunOptions options,
    std::optional<GuestOrigin> origin, const agent::CallLimits& limits) {
  CATNAP_RETURN_IF_ERROR(CheckRunOptions(options, *image));
  const bool may_be_there = options.if_exists == IfExists::kReturn;
  bool is_new = false;
  CATNAP_ASSIGN_OR_RETURN(const std::shared_ptr<Vm> vm,
                          FindOrAdd(image, std::move(options), &is_new));
  if (!is_new) {
    if (!may_be_there) {
      return Error(absl::StatusCode::kAlreadyExists,
                   "there is a MicroVM \"{}\"; IfExists::kReturn would give it",
                   vm->id());
    }
    if (vm->image().name != image->name || vm->image().major != image->major) {
      return Error(absl::StatusCode::kAlreadyExists,
                   "MicroVM \"{}\" is of image {} {}, not of {} {}", vm->id(),
                   vm->image().name, vm->image().version, image->name,
                   image->version);
    }
    CATNAP_RETURN_IF_ERROR(vm->WaitUntilStarted(limits));
    return GetMicroVM(vm->id());
  }
  absl::Status status = vm->Start(limits, std::move(origin));
  if (status.ok()) vm->SyncSoon();
  const base::MutexLock lock(&mutex_);
  const auto at = vms_.find(vm->id());
  const bool is_ours = at != vms_.end() && at->second.vm == vm;
  if (status.ok() && is_ours) return HandleLocked(at->second);
  if (is_ours) vms_.erase(at);
  return status.ok() ? Closed() : status;
}

absl::StatusOr<std::shared_ptr<Vm>> HostCore::FindOrAdd(
    const std::shared_ptr<const ImageRecord>& image, RunOptions options,
    bool* is_new) {
  const base::MutexLock lock(&mutex_);
  CATNAP_RETURN_IF_ERROR(CheckOpenLocked());
  ForgetOldLocked();
  if (const auto at = vms_.find(options.id); at != vms_.end()) {
    if (at->second.vm->state() != MicroVMState::kTerminated) {
      return at->second.vm;
    }
    vms_.erase(at);  // Its name is free.
  }
  *is_new = true;
  return AddLocked(image, std::move(options));
}

absl::StatusOr<std::shared_ptr<Vm>> HostCore::AddLocked(
    const std::shared_ptr<const ImageRecord>& image, RunOptions options) {
  if (options.id.empty()) {
    CATNAP_ASSIGN_OR_RETURN(options.id, RandomName("vm-"));
  }
  // A directory that goes with the Host records nothing.
  if (temporary_) options.durability = Durability::kEphemeral;
  const std::string id = options.id;
  CATNAP_ASSIGN_OR_RETURN(ImageUse use, images_->Use(*image));
  auto vm =
      std::make_shared<Vm>(id, image, std::move(options), EnvironmentOf(id));
  vm->KeepImage(std::move(use));
  CATNAP_RETURN_IF_ERROR(vm->Prepare());
  vms_[id].vm = vm;
  return vm;
}

VmEnvironment HostCore::EnvironmentOf(const std::string& id) {
  VmEnvironment environment;
  environment.factory = factory_.get();
  environment.loop = loops_[next_loop_++ % loops_.size()].get();
  environment.clock = &clock_;
  environment.executor = executor_;
  environment.worker = worker_;
  environment.sleeper = sleeper_;
  environment.log = options_.log;
  environment.host = weak_from_this();
  environment.handle = [host = weak_from_this(),
                        id]() -> absl::StatusOr<MicroVM> {
    const auto core = host.lock();
    return core == nullptr ? Closed() : core->GetMicroVM(id);
  };
  environment.directory = state_dir_ / kVmsName / id;
  return environment;
}

void HostCore::ForgetOldLocked() {
  const auto now = std::chrono::steady_clock::now();
  std::vector<std::pair<Vm::Time, std::string>> ended;
  for (const auto& [id, entry] : vms_) {
    if (const auto when = entry.vm->ended_at()) ended.emplace_back(*when, id);
  }
  std::sort(ended.begin(), ended.end());
  for (size_t i = 0; i < ended.size(); ++i) {
    if (ended.size() - i > kMaxEnded || now - ended[i].first > kListedFor) {
      vms_.erase(ended[i].second);
    }
  }
}

MicroVM HostCore::HandleLocked(Entry& entry) {
  std::shared_ptr<VmHandle> handle = entry.handle.lock();
  if (handle == nullptr) {
    handle = std::make_shared<VmHandle>(entry.vm);
    entry.handle = handle;
  }
  return MicroVM(std::move(handle));
}

std::vector<MicroVM> HostCore::ListMicroVMs(const Filter& filter) {
  std::vector<MicroVM> vms;
  const base::MutexLock lock(&mutex_);
  ForgetOldLocked();
  for (auto& [id, entry] : vms_) {
    if (Matches(filter, entry.vm->image().name, entry.vm->options().labels)) {
      vms.push_back(HandleLocked(entry));
    }
  }
  return vms;
}

absl::StatusOr<MicroVM> HostCore::GetMicroVM(std::string_view id) {
  const base::MutexLock lock(&mutex_);
  ForgetOldLocked();
  const auto at = vms_.find(id);
  if (at == vms_.end()) {
    return Error(absl::StatusCode::kNotFound, "there is no MicroVM \"{}\"",
                 std::string(id));
  }
  return HandleLocked(at->second);
}

absl::StatusOr<std::shared_ptr<HostCore>> HostCore::OfVm(const MicroVM& vm) {
  CATNAP_ASSIGN_OR_RETURN(const auto machine, VmOf(vm));
  auto core = machine->environment().host.lock();
  if (core == nullptr) return Closed();
  return core;
}

absl::Status HostCore::Prewarm(const Image& image, int count) {
  if (image.record_ == nullptr) {
    return absl::InvalidArgumentError("the image is an empty handle");
  }
  if (count < 0) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "count is {}, must be at least 0", count);
  }
  std::optional<RunningBuild> running;
  {
    const base::MutexLock lock(&mutex_);
    CATNAP_RETURN_IF_ERROR(CheckOpenLocked());
    running.emplace(&builds_);
  }
  return factory_->Prewarm(*image.record_, count);
}

absl::StatusOr<std::shared_ptr<Vm>> HostCore::VmOf(const MicroVM& vm) {
  if (vm.handle_ != nullptr) return vm.handle_->vm();
  return absl::FailedPreconditionError(
      "the MicroVM is an empty handle; MicroVM::Run() or "
      "Host::GetMicroVM() gives one");
}

absl::Status HostCore::RunOnThread(absl::AnyInvocable<void() &&> task) {
  const base::MutexLock lock(&mutex_);
  CATNAP_RETURN_IF_ERROR(CheckOpenLocked());
  std::erase_if(launchers_,
                [](const Launcher& launcher) { return launcher.done->load(); });
  auto done = std::make_shared<std::atomic<bool>>(false);
  CATNAP_ASSIGN_OR_RETURN(
      auto thread, base::Thread::Start("catnap-launch", [task = std::move(task),
                                                         done]() mutable {
        std::move(task)();
        task = nullptr;
        done->store(true);
      }));
  launchers_.push_back({.thread = std::move(thread), .done = std::move(done)});
  return absl::OkStatus();
}

}  // namespace catnap::runtime
