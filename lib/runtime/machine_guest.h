#ifndef CATNAP_LIB_RUNTIME_MACHINE_GUEST_H_
#define CATNAP_LIB_RUNTIME_MACHINE_GUEST_H_

#include <filesystem>
#include <memory>

#include "base/clock.h"
#include "base/mutex.h"
#include "runtime/guest.h"
#include "vmm/shell_pool.h"

namespace catnap::runtime {

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
    base::Clock* clock = nullptr;  // Borrowed.
  };
  explicit MachineFactory(Options options);
  // Waits until every client that its guests handed out has been let go, and
  // destroys their machines. REQUIRES: all guests were destroyed.
  ~MachineFactory() override;

  // The first call looks whether KVM runs Linux here, tens of milliseconds.
  // Errors: FAILED_PRECONDITION as Host::Probe().usable; as FindGuestFiles(),
  // Machine::CreateShell() and Launch(); of the disks.
  absl::StatusOr<std::unique_ptr<Guest>> Start(GuestConfig config) override;

  // How many machines there are, shared with them.
  struct Outstanding;

 private:
  absl::StatusOr<vmm::ShellPool*> Pool() ABSL_LOCKS_EXCLUDED(mutex_);

  const Options options_;
  const std::shared_ptr<Outstanding> outstanding_;
  base::Mutex mutex_;
  // Made when the first guest is wanted.
  std::unique_ptr<vmm::ShellPool> pool_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace catnap::runtime

#endif  // CATNAP_LIB_RUNTIME_MACHINE_GUEST_H_
