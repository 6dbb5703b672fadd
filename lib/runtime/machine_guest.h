#ifndef CATNAP_LIB_RUNTIME_MACHINE_GUEST_H_
#define CATNAP_LIB_RUNTIME_MACHINE_GUEST_H_

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "disk/layer_chain.h"
#include "runtime/agent_connection.h"
#include "runtime/guest.h"
#include "runtime/running_machine.h"
#include "vmm/guest_template.h"

namespace catnap::runtime {

// Makes the guest's disk the one that was stored with `origin`, in the
// directory `from`, whatever it was: links to the same layers.
// Errors: as ReadStoredDisk(), disk::LinkChain().
absl::Status TakeDisk(const std::filesystem::path& from,
                      const vmm::GuestTemplate& origin,
                      const GuestConfig& config);
// The same of layers that are known.
absl::Status TakeLayers(const std::vector<disk::ChainLayer>& layers,
                        const GuestConfig& config);

// Writes a guest whose machine is paused into `directory`, which exists and is
// empty: the machine's state, the disk, which is frozen for that, and of memory
// what changed since `origin`, which it was launched from. Blocks; the machine
// may go on in any case.
// Errors: CANCELLED, DEADLINE_EXCEEDED as StoreOptions say; as
// DiskStack::Freeze(), LinkInto() and vmm::StoreMachine().
absl::StatusOr<StoredSizes> StoreStanding(
    const MachineMeans& means, RunningMachine& running,
    const vmm::GuestTemplate* origin, const std::filesystem::path& directory,
    const StoreOptions& options);

// How templates for such a guest are loaded.
vmm::Prefetch PrefetchOf(Prefetch prefetch);
vmm::MachineCapture::Memory MemoryOf(CaptureUse use);

// A guest in memory: its machine's template, and its disk's frozen layers in a
// directory of their own, which goes with this.
class CapturedMachine final : public CapturedGuest {
 public:
  CapturedMachine(std::shared_ptr<const vmm::GuestTemplate> guest_template,
                  std::filesystem::path disk_directory,
                  std::vector<disk::ChainLayer> layers,
                  const MachineMeans& means)
      : template_(std::move(guest_template)),
        disk_directory_(std::move(disk_directory)),
        layers_(std::move(layers)),
        means_(means) {}
  ~CapturedMachine() override;
  CapturedMachine(const CapturedMachine&) = delete;
  CapturedMachine& operator=(const CapturedMachine&) = delete;

  uint64_t own_bytes() const override { return template_->own_bytes(); }
  absl::StatusOr<StoredSizes> Store(const std::filesystem::path& directory,
                                    const StoreOptions& options) override;

  const std::shared_ptr<const vmm::GuestTemplate>& guest_template() const {
    return template_;
  }
  // Of the disk, in that directory.
  const std::vector<disk::ChainLayer>& layers() const { return layers_; }

 private:
  const std::shared_ptr<const vmm::GuestTemplate> template_;
  const std::filesystem::path disk_directory_;
  const std::vector<disk::ChainLayer> layers_;
  const MachineMeans means_;
};

// A guest that is a virtual machine while it is awake, and a connection that
// waits while it sleeps.
class MachineGuest final : public Guest {
 public:
  // Boots it, or brings `origin` to life, of the image whose memory is `image`.
  static absl::StatusOr<std::unique_ptr<Guest>> Start(
      const MachineMeans& means, GuestConfig config,
      std::shared_ptr<const vmm::GuestTemplate> image,
      std::shared_ptr<const vmm::GuestTemplate> origin);
  ~MachineGuest() override { Stop(); }

  absl::StatusOr<std::shared_ptr<agent::Client>> WaitForClient(
      std::chrono::steady_clock::time_point deadline,
      const std::function<bool()>& give_up) override {
    return connection_->WaitForClient(deadline, give_up);
  }
  void Wake() override { connection_->Wake(); }
  void Stop() override;
  std::string ConsoleTail() const override;
  double VcpuSeconds() const override;
  uint64_t StoredBytes() const override;
  std::string WaitsFor() const override;
  absl::Status Sync() override;
  uint64_t OutboundFrames() const override;
  absl::Status SetEgress(const NetworkPolicy& policy) override;
  absl::StatusOr<StoredSizes> Suspend(const std::filesystem::path& directory,
                                      const StoreOptions& options) override;
  absl::Status Resume(const std::filesystem::path& directory,
                      const agent::CallLimits& limits) override;
  void Settle() override;
  absl::StatusOr<std::shared_ptr<CapturedGuest>> Capture(
      CaptureUse use, const agent::CallLimits& limits) override;

 private:
  using Running = std::shared_ptr<RunningMachine>;

  MachineGuest(const MachineMeans& means, GuestConfig config,
               std::shared_ptr<const vmm::GuestTemplate> image);

  // Null while it sleeps.
  Running running() const;
  absl::StatusOr<Running> Awake() const;
  // Of the agent. Each blocks.
  absl::Status FreezePrograms(std::chrono::milliseconds bound,
                              const agent::CallLimits& limits);
  void ThawPrograms();
  // `env`: see agent::WakeOptions.
  absl::Status WakePrograms(bool is_copy,
                            std::optional<std::vector<std::string>> env,
                            const agent::CallLimits& limits);
  // Says so when memory of `origin` was read whole that need not have been.
  void TellIfNotPaged(const vmm::GuestTemplate& origin) const;
  // Of a machine whose guest stands still: lets it go on.
  void GoOn(RunningMachine& running);
  // With the disk's part in a directory that is there; failed, the guest runs.
  absl::StatusOr<std::shared_ptr<CapturedGuest>> CaptureInto(
      const std::filesystem::path& disk_directory, RunningMachine& running,
      std::shared_ptr<const vmm::GuestTemplate> origin, CaptureUse use,
      const agent::CallLimits& limits);
  absl::StatusOr<std::shared_ptr<CapturedGuest>> CaptureStanding(
      RunningMachine& running, vmm::MachineCapture& capture,
      const std::filesystem::path& disk_directory, CaptureUse use);

  const MachineMeans means_;
  const GuestConfig config_;  // But for `egress`.
  const std::shared_ptr<const vmm::GuestTemplate> image_;
  const base::Logger log_;
  std::unique_ptr<AgentConnection> connection_;  // Set by Start().

  // Held by Suspend(), Resume(), Settle() and Capture() from their start to
  // their end.
  base::Mutex change_mutex_;

  mutable base::Mutex mutex_;
  NetworkPolicy egress_ ABSL_GUARDED_BY(mutex_);
  Running running_ ABSL_GUARDED_BY(mutex_);
  // What the machine runs over, when that is no longer what it started from.
  std::shared_ptr<const vmm::GuestTemplate> origin_ ABSL_GUARDED_BY(mutex_);
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  // Of machines before this one.
  double vcpu_seconds_ ABSL_GUARDED_BY(mutex_) = 0;
  std::string console_tail_ ABSL_GUARDED_BY(mutex_);
  uint64_t stored_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t captures_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace catnap::runtime

#endif  // CATNAP_LIB_RUNTIME_MACHINE_GUEST_H_
