#ifndef CATNAP_LIB_RUNTIME_MACHINE_FACTORY_H_
#define CATNAP_LIB_RUNTIME_MACHINE_FACTORY_H_

#include <filesystem>
#include <list>
#include <memory>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "base/clock.h"
#include "base/mutex.h"
#include "disk/layer_cache.h"
#include "runtime/guest.h"
#include "snapshot/worker_pool.h"
#include "vmm/guest_template.h"
#include "vmm/shell_pool.h"

namespace catnap::runtime {

struct MachineMeans;

// The kernel that guests boot, and the initramfs that holds the agent.
struct GuestFiles {
  std::filesystem::path kernel;
  std::filesystem::path initramfs;
};

// Finds them: `kernel` if it is not empty, else where the environment variable
// CATNAP_GUEST_DIR says, where they were installed, or where they were built.
// Errors: FAILED_PRECONDITION, telling what to install; NOT_FOUND, `kernel`.
absl::StatusOr<GuestFiles> FindGuestFiles(const std::filesystem::path& kernel);

// Guests that are virtual machines.
class MachineFactory final : public GuestFactory {
 public:
  struct Options {
    std::filesystem::path kernel;  // HostOptions::kernel.
    int kick_signal = 0;
    int compression_level = 1;
    base::Clock* clock = nullptr;  // Borrowed.
    // Where it is remembered that KVM runs Linux here; empty: nowhere.
    std::filesystem::path kvm_record{};
  };
  explicit MachineFactory(Options options);
  // Waits until every client that its guests handed out has been let go, and
  // destroys their machines. REQUIRES: all guests were destroyed.
  ~MachineFactory() override;

  // The first call looks whether KVM runs Linux here, tens of milliseconds when
  // that is not in Options::kvm_record.
  // Errors: FAILED_PRECONDITION as Host::Probe().usable; as FindGuestFiles(),
  // Machine::CreateShell() and Launch(); of the disks and of what is stored.
  absl::StatusOr<std::unique_ptr<Guest>> Start(GuestConfig config) override;
  absl::Status Prewarm(const ImageRecord& image, int count) override;
  absl::StatusOr<std::vector<base::PageRange>> Train(
      GuestConfig config, const std::shared_ptr<CapturedGuest>& captured,
      const agent::CallLimits& limits) override;
  absl::StatusOr<std::string> Identity() override;
  absl::Status Verify(const ImageRecord& image,
                      const std::filesystem::path& directory,
                      const agent::CallLimits& limits) override;

  // How many machines there are, shared with them.
  struct Outstanding;

 private:
  using Template = std::shared_ptr<const vmm::GuestTemplate>;

  absl::StatusOr<MachineMeans> Means() ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<snapshot::WorkerPool*> Workers() ABSL_LOCKS_EXCLUDED(mutex_);
  // The memory that an image's guests share, read when it is first wanted, as
  // far as `prefetch` says; null when the image has none. Blocks.
  absl::StatusOr<Template> TemplateOf(const ImageRecord& image,
                                      const MachineMeans& means,
                                      Prefetch prefetch);
  absl::StatusOr<Template> LoadedTemplate(const ImageRecord& image,
                                          const vmm::StorageOptions& options)
      ABSL_LOCKS_EXCLUDED(templates_mutex_);

  const Options options_;
  const std::shared_ptr<Outstanding> outstanding_;
  const std::shared_ptr<disk::LayerCache> layers_;
  base::Mutex mutex_;
  // Made when the first guest is wanted.
  std::unique_ptr<snapshot::WorkerPool> workers_ ABSL_GUARDED_BY(mutex_);
  // Behind the workers, who bring memory of machines that it destroys.
  std::unique_ptr<vmm::ShellPool> shells_ ABSL_GUARDED_BY(mutex_);
  base::Mutex templates_mutex_;
  // Those used last in front.
  std::list<std::pair<std::filesystem::path, Template>> templates_
      ABSL_GUARDED_BY(templates_mutex_);
};

}  // namespace catnap::runtime

#endif  // CATNAP_LIB_RUNTIME_MACHINE_FACTORY_H_
