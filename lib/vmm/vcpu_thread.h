#ifndef CATNAP_LIB_VMM_VCPU_THREAD_H_
#define CATNAP_LIB_VMM_VCPU_THREAD_H_

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string_view>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "base/thread.h"
#include "device/bus.h"
#include "kvm/vcpu_fd.h"
#include "vmm/machine_exit.h"

namespace catnap::vmm {

// The signal that kicks vCPUs out of the guest when the caller names none:
// SIGRTMIN + 6. It needs no handler and the library installs none: vCPU
// threads keep it blocked, KVM unblocks it inside KVM_RUN only, so it ends
// KVM_RUN with EINTR and is never delivered; sigtimedwait() then takes it.
int DefaultKickSignal();

// One vCPU and the thread that runs it. Made parked.
//
// Thread safety: Resume, RequestPark and WaitParked may be called from any
// thread at once, except from the vCPU's own (handlers run there).
class VcpuThread {
 public:
  // Learns that a guest ended. Called on the vCPU's thread, which parks
  // itself afterwards.
  class EndSink {
   public:
    virtual ~EndSink() = default;
    virtual void OnEnd(MachineExit exit) = 0;
  };
  // All borrowed; they must outlive the thread. The buses must not change
  // while a guest runs.
  struct Wiring {
    device::Bus* ports = nullptr;
    device::Bus* mmio = nullptr;
    EndSink* end = nullptr;
    int kick_signal = 0;
  };

  static absl::StatusOr<std::unique_ptr<VcpuThread>> Start(kvm::VcpuFd vcpu,
                                                           int index,
                                                           Wiring wiring);
  // Parks, ends and joins the thread.
  ~VcpuThread();
  VcpuThread(const VcpuThread&) = delete;
  VcpuThread& operator=(const VcpuThread&) = delete;

  // Lets the guest code run. Does not wait.
  void Resume();
  // Asks the thread to leave the guest. Does not wait; no request is lost,
  // whatever the thread does at this moment.
  void RequestPark();
  // Blocks until the thread has left the guest with no access half done.
  // REQUIRES: RequestPark() came before, and no Resume() after it.
  void WaitParked();

  // REQUIRES: parked.
  kvm::VcpuFd& vcpu() { return vcpu_; }

  // How many accesses to ports and devices left the guest so far.
  uint64_t user_exits() const {
    // relaxed: a statistic that orders nothing.
    return user_exits_.load(std::memory_order_relaxed);
  }
  // A counter of the kernel's for this vCPU; see VcpuFd::ReadStat().
  absl::StatusOr<uint64_t> ReadStat(std::string_view name) const {
    return vcpu_.ReadStat(name);
  }
  // What the thread has used of CPUs.
  std::chrono::nanoseconds cpu_time() const;

 private:
  enum class Wanted { kPark, kRun, kExit };

  VcpuThread(kvm::VcpuFd vcpu, Wiring wiring)
      : wiring_(wiring), vcpu_(std::move(vcpu)) {}
  void Body();
  void RunGuest();
  // Returns whether the guest may go on.
  bool Handle(kvm::VcpuExit& exit);
  bool End(EndReason reason, std::string detail);
  void ConsumeKicks();
  void Kick();

  const Wiring wiring_;
  kvm::VcpuFd vcpu_;
  base::Mutex mutex_;
  base::CondVar wanted_changed_;
  base::CondVar parked_changed_;
  Wanted wanted_ ABSL_GUARDED_BY(mutex_) = Wanted::kPark;
  bool parked_ ABSL_GUARDED_BY(mutex_) = false;
  // What the run loop looks at between two KVM_RUNs; follows wanted_.
  std::atomic<bool> leave_{true};
  // A kick is on its way and not consumed yet: real-time signals queue, and
  // the queue is bounded (RLIMIT_SIGPENDING), so never more than one.
  std::atomic<bool> kick_pending_{false};
  std::atomic<uint64_t> user_exits_{0};
  base::Thread thread_;  // Last: starts when all else is there.
};

}  // namespace catnap::vmm

#endif  // CATNAP_LIB_VMM_VCPU_THREAD_H_
