#ifndef CATNAP_LIB_VMM_MACHINE_H_
#define CATNAP_LIB_VMM_MACHINE_H_

#include <atomic>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "arch/x86_64/cpu_identity.h"
#include "arch/x86_64/cpuid.h"
#include "arch/x86_64/initial_state.h"
#include "arch/x86_64/saved_vcpu.h"
#include "base/log.h"
#include "base/mutex.h"
#include "base/page_range.h"
#include "base/unique_fd.h"
#include "device/bus.h"
#include "device/register_page.h"
#include "device/serial.h"
#include "io/event_loop.h"
#include "kvm/system.h"
#include "kvm/vm_fd.h"
#include "memory/guest_memory.h"
#include "state/saved_section.h"
#include "virtio/virtio_device.h"
#include "vmm/console.h"
#include "vmm/machine_exit.h"
#include "vmm/persist.h"
#include "vmm/platform.h"
#include "vmm/vcpu_thread.h"
#include "vmm/virtio_slot.h"

namespace catnap::vmm {

// What a shell is made of: all that must be known before the guest is.
struct ShellConfig {
  // Guest RAM: 64 MiB to 64 GiB, whole MiB.
  uint64_t memory_bytes = 512ull << 20;
  int vcpus = 1;  // 1 to 32.
  arch::CpuBaseline cpu_baseline = arch::CpuBaseline::kX86_64V2;
  // virtio-mmio register pages: 0 to arch::kMaxDevices.
  int device_pages = 0;
  // Real-time signal for vCPU kicks; 0: DefaultKickSignal().
  int kick_signal = 0;

  friend bool operator==(const ShellConfig&, const ShellConfig&) = default;
};

// Errors: INVALID_ARGUMENT that names the option, its value and the limit;
// RESOURCE_EXHAUSTED for more memory than the machine has.
absl::Status Validate(const ShellConfig& config);

// A Linux kernel to boot.
struct LinuxKernel {
  int kernel_fd = -1;     // ELF vmlinux or bzImage; borrowed for the call.
  int initramfs_fd = -1;  // -1: none; borrowed for the call.
  std::string command_line{};
};

// What turns a shell into a guest that is ready to run.
struct LaunchConfig {
  // Guest memory: a sealed memfd of at least memory_bytes, mapped
  // copy-on-write; -1: zeroed memory. Borrowed for the call.
  int template_memfd = -1;
  // The same as an image; null: see above. For what has to be saved again.
  std::shared_ptr<const memory::MemoryImage> image{};
  // One of the three says where the guest starts: a kernel to load (with
  // zeroed memory only), the first vCPU's state that fits the template's
  // content, or what Machine::Save() returned when the template was copied.
  // `saved` is borrowed for the call.
  std::optional<LinuxKernel> linux_kernel{};
  std::optional<arch::InitialState> state{};
  const std::vector<state::SavedSection>* saved = nullptr;
  // Guest console lines; see Console. Called on vCPU threads, and a last time
  // in Stop() or the destructor when the guest left a line unfinished.
  Console::LineCallback on_console_line{};
  // Called once, when the machine ends, on a vCPU's thread or in Stop(). Must
  // not block and must not call Start, Pause, Stop or the destructor.
  std::function<void(const MachineExit&)> on_end{};
};

enum class MachineState {
  kShell,   // Made; no guest yet.
  kPaused,  // A guest is there and stands still.
  kRunning,
  kEnded,  // For good; exit() says why.
};

// One virtual machine: KVM VM, memory, vCPU threads, buses and the platform
// devices. Made in two steps, so that the dear part can be done before it is
// known which guest is wanted: CreateShell(), then Launch(). A shell serves
// one guest.
//
// Thread safety: thread-safe, but for Launch(), which must come alone.
// Destruction stops the guest; it costs time in proportion to guest memory
// (15 ms for 512 MiB where KVM keeps shadow page tables), so do it on a worker
// thread (ShellPool::Retire).
class Machine final : private VcpuThread::EndSink {
 public:
  // Cost: about a millisecond, and more in proportion to memory_bytes where
  // KVM keeps shadow page tables.
  // Errors: as Validate(); RESOURCE_EXHAUSTED naming the limit that was hit;
  // UNAVAILABLE when KVM fails otherwise.
  static absl::StatusOr<std::unique_ptr<Machine>> CreateShell(
      std::shared_ptr<const kvm::System> system, const ShellConfig& config);
  ~Machine() override;
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;

  // Puts a guest into the shell; it stands paused before its first
  // instruction, or where it stood when it was saved. For a saved one every
  // device must be attached before, as it was; the devices do nothing until
  // Start(), so that their users can take up what they had (Vsock::Adopt()).
  // After an error the shell is of no more use.
  // Errors: INVALID_ARGUMENT for a kernel, an initramfs or a command line that
  // cannot be used (names value and limit); FAILED_PRECONDITION when it is not
  // a shell; RESOURCE_EXHAUSTED. For a saved guest also: FAILED_PRECONDITION
  // with kCpuMismatch when this host's CPU is another, without when the shell
  // or its devices are other ones; DATA_LOSS; UNIMPLEMENTED when a newer
  // version of the library saved it.
  absl::Status Launch(LaunchConfig config);

  // Lets the guest run. Nothing happens when it runs.
  // Errors: FAILED_PRECONDITION for a shell or a machine that has ended.
  absl::Status Start();
  // Returns when every vCPU stands still with no access half done. Nothing
  // happens when it is paused or has ended.
  // Errors: FAILED_PRECONDITION for a shell.
  absl::Status Pause();
  // The state of all but memory, which has to be copied before Start(). Waits
  // until nothing of the devices is in flight; they do nothing more until
  // Start(), after which the machine goes on as if nothing had happened. Also
  // after an error. Start, Pause and Stop wait meanwhile.
  // Errors: FAILED_PRECONDITION when it is not paused.
  absl::StatusOr<std::vector<state::SavedSection>> Save();
  // Gives back memory that a guest took and need not have: pages that it wrote
  // and that hold what they held in its image, such as locks that were taken
  // and let go of. While they are compared its devices and vCPUs stand still,
  // for about a millisecond for each MiB. Returns how many bytes there were: 0
  // for a guest that does not run, has no image, or has written more than
  // `most` bytes. Blocks as Save() does.
  // Errors: of the page map, and of reading the image; the guest goes on.
  absl::StatusOr<uint64_t> GiveBackUnchanged(uint64_t most);
  // Ends the machine for good and returns when every vCPU stands still.
  // Idempotent; the first reason stays.
  void Stop();

  MachineState state() const;
  // Why it ended; empty before.
  std::optional<MachineExit> exit() const;
  // Blocks until the machine has ended or `deadline` has passed; returns
  // whether it has ended.
  bool WaitForEnd(std::chrono::steady_clock::time_point deadline) const;

  const ShellConfig& config() const { return config_; }
  memory::GuestMemory& memory() { return *memory_; }
  Console& console() { return console_; }
  device::Serial& serial() { return serial_; }

  // The register page of device `page` (0 to device_pages - 1): reads of the
  // guest are served from it without an exit.
  device::RegisterPage register_page(int page);
  // Readable when the guest wrote QueueNotify of that page. Owned by the
  // machine.
  int notify_fd(int page) const;
  device::IrqLine& device_irq(int page);
  // Takes the guest's other register writes of that page. `handler` is
  // borrowed and must outlive the machine. Before Start().
  absl::Status AttachDevice(int page, device::IoHandler* handler);
  // Puts a virtio device there, made over memory(), and has `loop` serve it.
  // The loop is borrowed and must outlive the machine; what the guest does to
  // the device against the rules goes to `log`. The machine owns the device,
  // and destroys it when no vCPU runs any more. Before Start().
  // Errors: INVALID_ARGUMENT, the page does not exist or is taken;
  // FAILED_PRECONDITION, the guest has run.
  absl::Status AttachVirtio(int page,
                            std::unique_ptr<virtio::VirtioDevice> device,
                            io::EventLoop* loop, const base::Logger& log);

  // Writes a fresh generation id and tells the guest by the event device
  // (VMGENID). REQUIRES: a guest is there.
  absl::Status ChangeGenerationId();

  // How often KVM_RUN came back with an access to a port or a device, over all
  // vCPUs: what register pages and ioeventfds are there to avoid.
  uint64_t user_exits() const;

  // A counter that KVM keeps for each vCPU, such as "exits", summed up. In a
  // guest that runs it waits until the vCPUs are back from it, which an idle
  // one's never are: Pause() first. Errors: as kvm::VcpuFd::ReadStat().
  absl::StatusOr<uint64_t> ReadKvmStat(std::string_view name) const;

  // CPU time of all vCPU threads: of the guest, and of what the VMM did for it
  // there.
  std::chrono::nanoseconds vcpu_time() const;

  // When the first vCPU was let run for the first time.
  std::optional<std::chrono::steady_clock::time_point> started_at() const;

 private:
  Machine(std::shared_ptr<const kvm::System> system, ShellConfig config,
          kvm::VmFd vm);
  absl::Status CreateMemory();
  absl::Status CreateRegisterPages();
  absl::Status CreateVcpus();
  absl::Status WireBuses();
  absl::Status NoSuchPage(int page) const;
  absl::StatusOr<arch::InitialState> LoadKernel(const LinuxKernel& kernel);
  void OnEnd(MachineExit exit) override;
  // Some memory of the guest cannot be read: what was stored is damaged, say.
  // Its vCPUs are out of the guest, or about to leave it before the next
  // instruction, when this returns.
  void OnMemoryLost(const absl::Status& why);
  void ParkAll();
  // In persist.cc.
  SavedMachine ShapeLocked() const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(control_mutex_);
  absl::Status CheckShape(const SavedMachine& saved) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(control_mutex_);
  std::vector<kvm::VcpuFd*> VcpuFds();
  absl::Status LoadSaved(std::span<const state::SavedSection> sections)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(control_mutex_);
  absl::Status LoadVcpus(std::span<const state::SavedSection> sections,
                         const arch::CpuIdentity& identity,
                         const arch::SavedClock& clock)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(control_mutex_);
  absl::Status LoadIrqchip(state::StateDecoder in);
  void WakeDevices() ABSL_EXCLUSIVE_LOCKS_REQUIRED(control_mutex_);
  // In give_back.cc.
  absl::StatusOr<uint64_t> GiveBackStanding(
      const std::vector<base::PageRange>& written);

  const std::shared_ptr<const kvm::System> system_;
  const ShellConfig config_;
  LaunchConfig launch_;  // Immutable once a vCPU runs.

  // Serialises Launch, Start, Pause and Stop, also while they wait for vCPUs
  // to park, which takes as long as one handler.
  mutable base::Mutex control_mutex_;
  // The devices do nothing: the machine was saved, or loaded, and not started
  // since.
  bool quiet_ ABSL_GUARDED_BY(control_mutex_) = false;
  std::atomic<bool> loaded_{false};  // The guest ran before, elsewhere.
  mutable base::Mutex mutex_;
  mutable base::CondVar ended_;
  MachineState state_ ABSL_GUARDED_BY(mutex_) = MachineState::kShell;
  std::optional<MachineExit> exit_ ABSL_GUARDED_BY(mutex_);
  absl::Status memory_lost_ ABSL_GUARDED_BY(mutex_);
  std::optional<std::chrono::steady_clock::time_point> started_at_
      ABSL_GUARDED_BY(mutex_);

  // A pager's thread comes by it; the destructor cuts it before vCPUs go, which
  // is before the memory stops to be the pager's.
  struct LossLink;
  const std::shared_ptr<LossLink> loss_link_;

  // Construction order matters: memory and register pages outlive the VM that
  // has slots over them, the VM outlives what interrupts it.
  std::unique_ptr<memory::GuestMemory> memory_;
  std::optional<device::RegisterPages> register_pages_;
  std::vector<base::UniqueFd> notify_fds_;
  base::UniqueFd ack_fd_;
  kvm::VmFd vm_;
  Console console_;
  KvmIrqLine serial_irq_;
  device::Serial serial_;
  KvmIrqLine event_irq_;
  EventRegister events_;
  PowerRegisters power_;
  std::vector<KvmIrqLine> device_irqs_;
  device::Bus ports_;
  device::Bus mmio_;
  std::map<int, std::unique_ptr<VirtioSlot>> virtio_slots_;  // By page.
  std::vector<std::vector<kvm_cpuid_entry2>> cpuids_;  // What each vCPU shows.
  // Last: destroyed first, so that no vCPU runs while the rest goes.
  std::vector<std::unique_ptr<VcpuThread>> vcpus_;
};

}  // namespace catnap::vmm

#endif  // CATNAP_LIB_VMM_MACHINE_H_
