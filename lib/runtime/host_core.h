#ifndef CATNAP_LIB_RUNTIME_HOST_CORE_H_
#define CATNAP_LIB_RUNTIME_HOST_CORE_H_

#include <atomic>
#include <deque>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mutex.h"
#include "base/thread.h"
#include "base/unique_fd.h"
#include "catnap/host.h"
#include "catnap/image.h"
#include "catnap/microvm.h"
#include "catnap/snapshot.h"
#include "io/event_loop.h"
#include "runtime/guest.h"
#include "runtime/image_store.h"
#include "runtime/owned_executor.h"
#include "runtime/snapshot_store.h"
#include "runtime/task_threads.h"
#include "runtime/vm.h"

namespace catnap::runtime {

class BuildTelling;

inline constexpr char kVmsName[] = "vms";  // In the state directory.

bool Matches(const Filter& filter, const std::string& image,
             const Labels& labels);

// What all handles of one MicroVM share; its end is the release.
class VmHandle {
 public:
  explicit VmHandle(std::shared_ptr<Vm> vm) : vm_(std::move(vm)) {}
  ~VmHandle();
  VmHandle(const VmHandle&) = delete;
  VmHandle& operator=(const VmHandle&) = delete;

  const std::shared_ptr<Vm>& vm() const { return vm_; }

 private:
  const std::shared_ptr<Vm> vm_;
};

// What is behind a Host: directories, threads, images and MicroVMs.
//
// Thread-safe. Must not be destroyed on one of its own threads.
class HostCore : public std::enable_shared_from_this<HostCore> {
 public:
  // Makes the factory of guests; tests bring another.
  using FactoryMaker =
      std::function<std::unique_ptr<GuestFactory>(base::Clock* clock)>;

  // As Host::Open(). `make_factory` null: virtual machines.
  static absl::StatusOr<std::shared_ptr<HostCore>> Open(
      HostOptions options, const FactoryMaker& make_factory = nullptr);
  static std::shared_ptr<Host> MakeHost(std::shared_ptr<HostCore> core);
  static HostCore& Of(Host& host) { return *host.core_; }
  // Errors: FAILED_PRECONDITION, an empty handle.
  static absl::StatusOr<std::shared_ptr<Vm>> VmOf(const MicroVM& vm);
  // Their Host. Errors: FAILED_PRECONDITION, an empty handle; CANCELLED.
  static absl::StatusOr<std::shared_ptr<HostCore>> OfVm(const MicroVM& vm);
  static absl::StatusOr<std::shared_ptr<HostCore>> OfSnapshot(
      const Snapshot& snapshot);
  ~HostCore();
  HostCore(const HostCore&) = delete;
  HostCore& operator=(const HostCore&) = delete;

  absl::Status Close(const CloseOptions& options);

  // As the public calls of these names.
  // Image::Build() and GetOrBuild().
  absl::StatusOr<Image> Build(const ImageSpec& spec, bool may_be_there,
                              BuildObserver* observer, const CallOptions& call);
  std::vector<Image> ListImages() const;
  absl::StatusOr<Image> GetImage(std::string_view name,
                                 std::string_view version) const;
  absl::Status Prewarm(const Image& image, int count);
  absl::StatusOr<Snapshot> TakeSnapshot(Vm* vm, const SnapshotOptions& options,
                                        const CallOptions& call);
  absl::StatusOr<MicroVM> Restore(const Snapshot& snapshot, RunOptions options,
                                  const CallOptions& call);
  absl::StatusOr<std::vector<MicroVM>> ForkEach(
      Vm* vm, std::vector<RunOptions> children, const CallOptions& call);
  std::vector<Snapshot> ListSnapshots(const Filter& filter);
  absl::StatusOr<Snapshot> GetSnapshot(std::string_view id_or_name);
  absl::Status SaveSnapshot(const std::shared_ptr<SnapshotData>& data,
                            const std::filesystem::path& dir,
                            const CallOptions& call);
  absl::StatusOr<Snapshot> LoadSnapshot(const std::filesystem::path& dir,
                                        const CallOptions& call);
  absl::Status VerifySnapshot(const std::shared_ptr<SnapshotData>& data,
                              const CallOptions& call);
  absl::Status DeleteSnapshot(const std::shared_ptr<SnapshotData>& data);
  absl::StatusOr<MicroVM> Run(const Image& image, RunOptions options,
                              const CallOptions& call);
  std::vector<MicroVM> ListMicroVMs(const Filter& filter);
  absl::StatusOr<MicroVM> GetMicroVM(std::string_view id);

  const std::shared_ptr<Executor>& executor() const { return executor_; }
  // Runs `task` on a thread of its own, which Close() joins. Without threads:
  // RESOURCE_EXHAUSTED, and `task` is destroyed.
  absl::Status RunOnThread(absl::AnyInvocable<void() &&> task);

 private:
  struct Entry {
    std::shared_ptr<Vm> vm;
    std::weak_ptr<VmHandle> handle;
  };
  // Builds that run, which Close() ends and waits for.
  struct Builds {
    std::stop_source stop;
    base::Mutex mutex;
    base::CondVar none;
    int running ABSL_GUARDED_BY(mutex) = 0;
  };
  // Keeps the factory there.
  class RunningBuild {
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
  struct Launcher {
    base::Thread thread;
    std::shared_ptr<std::atomic<bool>> done;
  };

  explicit HostCore(HostOptions options);
  absl::Status Prepare(const FactoryMaker& make_factory);
  absl::Status LockStateDirectory();
  absl::Status MakeLoops();
  VmEnvironment EnvironmentOf(const std::string& id);
  // Lists what earlier processes left (recovery.cc).
  absl::Status Recover();
  void RecoverOne(const std::filesystem::path& directory);
  // Ends or parks them all; the first error.
  absl::Status CloseVms(const std::vector<std::shared_ptr<Vm>>& vms,
                        bool suspend, Vm::Time deadline);
  absl::Status CheckOpenLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The VM of that id, or a new one, which is then the caller's to start.
  absl::StatusOr<std::shared_ptr<Vm>> FindOrAdd(
      const std::shared_ptr<const ImageRecord>& image, RunOptions options,
      bool* is_new);
  // Run() and Restore().
  absl::StatusOr<MicroVM> Launch(
      const std::shared_ptr<const ImageRecord>& image, RunOptions options,
      std::optional<GuestOrigin> origin, const agent::CallLimits& limits);
  // All or none.
  absl::StatusOr<std::vector<MicroVM>> LaunchAll(
      const std::shared_ptr<const ImageRecord>& image,
      std::vector<RunOptions> all, const GuestOrigin& origin,
      const agent::CallLimits& limits);
  absl::StatusOr<std::shared_ptr<SnapshotData>> Take(
      Vm* vm, const SnapshotOptions& options, const agent::CallLimits& limits);
  absl::StatusOr<std::shared_ptr<const ImageRecord>> ImportImage(
      const SnapshotRecord& record, const std::filesystem::path& from,
      const agent::CallLimits& limits);
  absl::StatusOr<std::shared_ptr<const ImageRecord>> FindImage(
      const std::string& name, uint32_t major, const disk::DiskId& disk_id);
  // The state of a guest of the image that has started, in the draft.
  absl::Status BuildGuest(ImageRecord* record, const ImageSpec& spec,
                          ImageStore::Draft* draft, BuildTelling* telling,
                          const agent::CallLimits& limits);
  // What copies of `captured` touch first; empty where it cannot be told.
  absl::StatusOr<std::vector<base::PageRange>> TrainGuest(
      const std::shared_ptr<const ImageRecord>& image,
      const std::shared_ptr<CapturedGuest>& captured,
      const std::filesystem::path& draft, BuildTelling* telling,
      const agent::CallLimits& limits);
  absl::StatusOr<Image> FindOrBuild(const ImageSpec& spec,
                                    BuildTelling* telling,
                                    const agent::CallLimits& limits);
  absl::StatusOr<Image> BuildRecipe(const ImageSpec& spec,
                                    const std::vector<uint8_t>& recipe,
                                    BuildTelling* telling,
                                    const agent::CallLimits& limits);
  absl::StatusOr<std::shared_ptr<Vm>> AddLocked(
      const std::shared_ptr<const ImageRecord>& image, RunOptions options)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ForgetOldLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  MicroVM HandleLocked(Entry& entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const HostOptions options_;
  base::SystemClock clock_;
  base::Logger log_;
  std::filesystem::path state_dir_;
  bool temporary_ = false;                       // state_dir_ goes with us.
  base::UniqueFd lock_;                          // Of state_dir_.
  std::shared_ptr<OwnedExecutor> own_executor_;  // Null: the caller's.
  std::shared_ptr<Executor> executor_;
  std::shared_ptr<TaskThreads> worker_;
  std::shared_ptr<TaskThreads> sleeper_;
  std::unique_ptr<ImageStore> images_;
  std::unique_ptr<SnapshotStore> snapshots_;
  std::vector<std::unique_ptr<io::EventLoop>> loops_;
  std::unique_ptr<GuestFactory> factory_;  // Before the loops go.
  std::atomic<size_t> next_loop_{0};
  Builds builds_;

  // Serialises Close().
  base::Mutex close_mutex_;
  bool closed_all_ ABSL_GUARDED_BY(close_mutex_) = false;

  mutable base::Mutex mutex_;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  std::map<std::string, Entry, std::less<>> vms_ ABSL_GUARDED_BY(mutex_);
  std::deque<Launcher> launchers_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace catnap::runtime

#endif  // CATNAP_LIB_RUNTIME_HOST_CORE_H_
