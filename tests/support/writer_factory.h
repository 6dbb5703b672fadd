#ifndef CATNAP_TESTS_SUPPORT_WRITER_FACTORY_H_
#define CATNAP_TESTS_SUPPORT_WRITER_FACTORY_H_

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include "base/clock.h"
#include "base/mutex.h"
#include "runtime/guest.h"
#include "runtime/machine_factory.h"
#include "runtime/running_machine.h"
#include "support/writing_guest.h"
#include "vmm/guest_template.h"
#include "vmm/shell_pool.h"

// MicroVMs of any KVM, with guests that write all the time.
namespace catnap::test {

// Starts such guests; in place of runtime::MachineFactory and MachineGuest,
// which it does as, without what these ask the agent for.
class WriterFactory final : public runtime::GuestFactory {
 public:
  using Look = std::function<absl::Status(runtime::RunningMachine&)>;
  struct Hooks {
    // The guest stands still. An error fails the call.
    Look on_woken{};     // In Resume() and Start(), before it runs.
    Look on_standing{};  // In Suspend(), before it is stored.
    // How much of its own memory a resume reads; the rest comes later.
    vmm::Prefetch prefetch = vmm::Prefetch::kAll;
  };

  // By itself as many shells as one guest at a time has use for, so that what
  // a test counts does not follow its pace.
  WriterFactory(base::Clock* clock, Hooks hooks,
                vmm::ShellPool::Options pool = {.max_waiting = 2});
  ~WriterFactory() override;

  absl::StatusOr<std::unique_ptr<runtime::Guest>> Start(
      runtime::GuestConfig config) override;
  absl::Status Verify(const runtime::ImageRecord& image,
                      const std::filesystem::path& directory,
                      const agent::CallLimits& limits) override;
  absl::Status Prewarm(const runtime::ImageRecord& image, int count) override;

  // The machine of a MicroVM that is awake, else null.
  std::shared_ptr<runtime::RunningMachine> machine(const std::string& id);
  // How far a MicroVM that is awake is.
  absl::StatusOr<WriterProgress> Progress(const std::string& id);
  // Whether it got `steps` further within a minute.
  bool WaitForSteps(const std::string& id, uint32_t steps);
  // Ended machines are gone afterwards.
  void WaitIdle();

 private:
  class WriterGuest;
  struct Shared;

  absl::StatusOr<std::shared_ptr<const vmm::GuestTemplate>> TemplateOf(
      const runtime::ImageRecord& image);
  absl::StatusOr<runtime::MachineMeans> Means();

  const std::shared_ptr<Shared> shared_;
  const vmm::ShellPool::Options pool_;
  runtime::MachineFactory real_;
  base::Mutex mutex_;
  std::shared_ptr<const vmm::GuestTemplate> image_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace catnap::test

#endif  // CATNAP_TESTS_SUPPORT_WRITER_FACTORY_H_
