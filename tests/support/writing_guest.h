#ifndef CATNAP_TESTS_SUPPORT_WRITING_GUEST_H_
#define CATNAP_TESTS_SUPPORT_WRITING_GUEST_H_

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include "base/clock.h"
#include "base/mutex.h"
#include "disk/block_io.h"
#include "memory/guest_memory.h"
#include "runtime/guest.h"
#include "runtime/machine_factory.h"
#include "runtime/running_machine.h"
#include "snapshot/worker_pool.h"
#include "vmm/guest_template.h"
#include "vmm/shell_pool.h"

// MicroVMs of any KVM: a real machine with real devices, disk and snapshots,
// but a guest of a few instructions in place of Linux and its agent.
namespace catnap::test {

// How far such a guest is. In step n it fills page n % kPages of its data with
// n, and writes that page into block n % kBlocks of its disk; so what it holds
// is known to the byte.
struct WriterProgress {
  uint32_t begun = 0;  // The last step it began, and the last it ended:
  uint32_t done = 0;   // the same one, or the one before.

  friend bool operator==(const WriterProgress&,
                         const WriterProgress&) = default;
};

inline constexpr uint64_t kWriterMemory = uint64_t{64} << 20;
inline constexpr char kWriterImage[] = "writer";

struct WriterOptions {
  uint64_t memory_bytes = kWriterMemory;
  // It has no work of its own: after a first step, in which it sets itself up,
  // it halts, and each interrupt of its disk is another one, in which it only
  // counts. A machine that goes on is interrupted once.
  bool rests = false;
};

// Adds an image of such guests, each before its first step, to a Host's
// directory of images. Joins all threads that it starts.
absl::Status MakeWriterImage(const std::filesystem::path& image_dir,
                             const WriterOptions& options = {});

// How far the guest in this memory is.
absl::StatusOr<WriterProgress> ProgressOf(const memory::GuestMemory& memory);
// Whether its disk failed a write: then it stands for ever.
absl::StatusOr<bool> HasFailed(const memory::GuestMemory& memory);
// Whether it rests between two steps, for as long as it is told so.
absl::Status LetRest(memory::GuestMemory& memory, bool rest);

// Looks at every byte of memory and disk of a guest that stands still, with its
// devices drained. `whole`: also at the memory that it never touched.
// Errors: DATA_LOSS, naming the first byte that is wrong.
absl::StatusOr<WriterProgress> CheckWriter(const memory::GuestMemory& memory,
                                           disk::BlockIo* disk, bool whole);

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

#endif  // CATNAP_TESTS_SUPPORT_WRITING_GUEST_H_
