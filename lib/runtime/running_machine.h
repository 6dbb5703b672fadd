#ifndef CATNAP_LIB_RUNTIME_RUNNING_MACHINE_H_
#define CATNAP_LIB_RUNTIME_RUNNING_MACHINE_H_

#include <filesystem>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/mutex.h"
#include "disk/disk_stack.h"
#include "disk/layer_cache.h"
#include "net/link.h"
#include "runtime/guest.h"
#include "runtime/machine_factory.h"
#include "snapshot/worker_pool.h"
#include "vmm/guest_devices.h"
#include "vmm/guest_sockets.h"
#include "vmm/guest_template.h"
#include "vmm/machine.h"
#include "vmm/shell_pool.h"

namespace catnap::runtime {

// How many machines there are that somebody may still use.
struct MachineFactory::Outstanding {
  base::Mutex mutex;
  base::CondVar none;
  int holders ABSL_GUARDED_BY(mutex) = 0;
};

// What machines are made with. Borrowed parts outlive the machines.
struct MachineMeans {
  vmm::ShellPool* shells = nullptr;         // Borrowed.
  snapshot::WorkerPool* workers = nullptr;  // Borrowed.
  base::Clock* clock = nullptr;             // Borrowed.
  std::shared_ptr<MachineFactory::Outstanding> outstanding;
  std::shared_ptr<disk::LayerCache> layers;  // Of all their disks.
  GuestFiles files;
  int kick_signal = 0;
  int compression_level = 1;
};

// Where a guest's disk is, below its own directory.
std::filesystem::path DiskDirectoryOf(const GuestConfig& config);

// The disk of an image, which its guests' disks lie on.
// Errors: as LoopFile::Open().
absl::StatusOr<std::shared_ptr<disk::BlockIo>> OpenBaseDisk(
    const ImageRecord& image, io::EventLoop* loop);

// A guest's machine for as long as it runs without a break: from a boot or a
// wake to the next sleep. Thread-safe as its parts are.
class RunningMachine {
 public:
  // Makes the devices, on the disk in DiskDirectoryOf(config), and puts the
  // guest into a shell: `origin`, or for null the kernel. It does not run yet.
  // Blocks. Errors: of the disks; FAILED_PRECONDITION, another CPU than the
  // guest was saved on; as ShellPool::Take() and Machine::Launch().
  static absl::StatusOr<std::unique_ptr<RunningMachine>> Create(
      const MachineMeans& means, const GuestConfig& config,
      std::shared_ptr<const vmm::GuestTemplate> origin);
  // The shell that a guest of the image with so many disks needs.
  static vmm::ShellConfig ShellOf(const ImageRecord& image,
                                  const MachineMeans& means, size_t disks);
  RunningMachine(const RunningMachine&) = delete;
  RunningMachine& operator=(const RunningMachine&) = delete;
  // The machine goes once nobody has its sockets any more, on a thread of the
  // shells' pool. Not on the loop's thread.
  ~RunningMachine();

  vmm::Machine& machine() const;
  // Keep the machine alive.
  std::shared_ptr<vmm::GuestSockets> sockets() const { return sockets_; }
  const std::shared_ptr<disk::DiskStack>& root() const { return root_; }
  // Null for a booted guest.
  const std::shared_ptr<const vmm::GuestTemplate>& origin() const {
    return origin_;
  }
  // As Guest::Sync().
  absl::Status Sync() const;
  // The guest's own link; null when it is gone.
  std::shared_ptr<net::Link> link() const { return link_.lock(); }
  // What the root disk waits for; mostly "".
  std::string WaitsFor() const;

 private:
  class Holder;
  // Shared with the disk's callback.
  struct Parked {
    mutable base::Mutex mutex;
    std::string text ABSL_GUARDED_BY(mutex);
  };

  RunningMachine() = default;
  absl::StatusOr<vmm::GuestDevices> MakeDevices(const MachineMeans& means,
                                                const GuestConfig& config);

  std::shared_ptr<Holder> holder_;
  std::shared_ptr<vmm::GuestSockets> sockets_;
  std::shared_ptr<disk::DiskStack> root_;
  // What has the root disk's directory, while that is to be made durable.
  std::filesystem::path unsynced_;
  std::shared_ptr<const vmm::GuestTemplate> origin_;
  // The device's, which goes where a link may be destroyed.
  std::weak_ptr<net::Link> link_;
  std::shared_ptr<Parked> parked_ = std::make_shared<Parked>();
};

}  // namespace catnap::runtime

#endif  // CATNAP_LIB_RUNTIME_RUNNING_MACHINE_H_
