#ifndef CATNAP_LIB_RUNTIME_HOST_CORE_H_
#define CATNAP_LIB_RUNTIME_HOST_CORE_H_

#include <atomic>
#include <deque>
#include <filesystem>
#include <map>
#include <memory>
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
#include "io/event_loop.h"
#include "runtime/guest.h"
#include "runtime/image_store.h"
#include "runtime/owned_executor.h"
#include "runtime/task_threads.h"
#include "runtime/vm.h"

namespace catnap::runtime {

inline constexpr char kVmsName[] = "vms";  // In the state directory.

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
  ~HostCore();
  HostCore(const HostCore&) = delete;
  HostCore& operator=(const HostCore&) = delete;

  absl::Status Close(const CloseOptions& options);

  // As the public calls of these names.
  absl::StatusOr<Image> BuildImage(const ImageSpec& spec,
                                   BuildObserver* observer,
                                   const CallOptions& call);
  std::vector<Image> ListImages() const;
  absl::StatusOr<Image> GetImage(std::string_view name,
                                 std::string_view version) const;
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
  class RunningBuild;
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
