#include "vmm/vcpu_thread.h"

#include <csignal>
#include <ctime>

#include "base/status.h"

namespace catnap::vmm {
namespace {

// How long WaitParked() trusts one kick. Only a full signal queue of the user
// makes a second one needed.
constexpr std::chrono::milliseconds kKickAgain{10};

}  // namespace

int DefaultKickSignal() { return SIGRTMIN + 6; }

absl::StatusOr<std::unique_ptr<VcpuThread>> VcpuThread::Start(kvm::VcpuFd vcpu,
                                                              int index,
                                                              Wiring wiring) {
  CATNAP_RETURN_IF_ERROR(vcpu.UnblockOnlyInRun(wiring.kick_signal));
  // new: the constructor is private.
  std::unique_ptr<VcpuThread> result(new VcpuThread(std::move(vcpu), wiring));
  VcpuThread* self = result.get();
  CATNAP_ASSIGN_OR_RETURN(
      result->thread_, base::Thread::Start(fmt::format("catnap-vcpu{}", index),
                                           [self] { self->Body(); }));
  return result;
}

VcpuThread::~VcpuThread() {
  {
    const base::MutexLock lock(&mutex_);
    wanted_ = Wanted::kExit;
    leave_.store(true);
    wanted_changed_.NotifyAll();
  }
  if (!thread_.joinable()) return;
  Kick();
  {
    // Kicks again if the first did not get through; see WaitParked().
    const base::MutexLock lock(&mutex_);
    while (!parked_) {
      if (!parked_changed_.WaitUntil(
              &mutex_, std::chrono::steady_clock::now() + kKickAgain)) {
        kick_pending_.store(false);
        Kick();
      }
    }
  }
  thread_.Join();
}

std::chrono::nanoseconds VcpuThread::cpu_time() const {
  clockid_t clock{};
  timespec time{};
  if (!thread_.joinable() ||
      ::pthread_getcpuclockid(thread_.handle(), &clock) != 0 ||
      ::clock_gettime(clock, &time) != 0) {
    return std::chrono::nanoseconds(0);
  }
  return std::chrono::seconds(time.tv_sec) +
         std::chrono::nanoseconds(time.tv_nsec);
}

void VcpuThread::Resume() {
  const base::MutexLock lock(&mutex_);
  if (wanted_ == Wanted::kExit) return;
  wanted_ = Wanted::kRun;
  parked_ = false;
  leave_.store(false);
  wanted_changed_.NotifyAll();
}

void VcpuThread::RequestPark() {
  {
    const base::MutexLock lock(&mutex_);
    if (wanted_ == Wanted::kRun) wanted_ = Wanted::kPark;
    leave_.store(true);
    if (parked_) return;
  }
  Kick();
}

void VcpuThread::WaitParked() {
  const base::MutexLock lock(&mutex_);
  while (!parked_) {
    if (!parked_changed_.WaitUntil(
            &mutex_, std::chrono::steady_clock::now() + kKickAgain)) {
      kick_pending_.store(false);
      Kick();
    }
  }
}

void VcpuThread::Kick() {
  // Between the loop's look at leave_ and KVM_RUN the signal stays pending,
  // because the thread blocks it; KVM_RUN unblocks it atomically with entering
  // and returns at once. So no kick is lost.
  if (kick_pending_.exchange(true)) return;
  if (pthread_kill(thread_.handle(), wiring_.kick_signal) != 0) {
    kick_pending_.store(false);  // The queue is full: WaitParked tries again.
  }
}

void VcpuThread::ConsumeKicks() {
  sigset_t set{};
  sigemptyset(&set);
  sigaddset(&set, wiring_.kick_signal);
  const timespec now{};
  while (sigtimedwait(&set, nullptr, &now) >= 0) {
  }
  // After the drain: who finds the flag still set sends nothing, but has set
  // leave_ before, and the caller looks at leave_ after this. The other order
  // could take a new kick's signal and leave the flag set for ever.
  kick_pending_.store(false);
}

void VcpuThread::Body() {
  mutex_.Lock();
  while (true) {
    while (wanted_ == Wanted::kPark) {
      parked_ = true;
      parked_changed_.NotifyAll();
      wanted_changed_.Wait(&mutex_);
    }
    if (wanted_ == Wanted::kExit) break;
    mutex_.Unlock();
    RunGuest();
    mutex_.Lock();
    if (wanted_ == Wanted::kRun && leave_.load()) wanted_ = Wanted::kPark;
  }
  parked_ = true;
  parked_changed_.NotifyAll();
  mutex_.Unlock();
}

void VcpuThread::RunGuest() {
  while (!leave_.load()) {
    kvm::VcpuExit exit = vcpu_.Run();
    if (exit.kind == kvm::ExitKind::kInterrupted) {
      ConsumeKicks();
      continue;
    }
    if (!Handle(exit)) return;
  }
  // The last exit may have been a read whose value the guest's register gets
  // only when KVM_RUN is entered again, or one part of a wide access whose next
  // part comes then; without this a saved state would lack it.
  kvm::VcpuExit rest = vcpu_.Run(/*immediate=*/true);
  while (rest.kind == kvm::ExitKind::kPort ||
         rest.kind == kvm::ExitKind::kMmio) {
    Handle(rest);
    rest = vcpu_.Run(/*immediate=*/true);
  }
  ConsumeKicks();
}

bool VcpuThread::Handle(kvm::VcpuExit& exit) {
  switch (exit.kind) {
    case kvm::ExitKind::kNothing:
    case kvm::ExitKind::kInterrupted:
      return true;
    case kvm::ExitKind::kPort:
    case kvm::ExitKind::kMmio: {
      // relaxed: a statistic that orders nothing.
      user_exits_.fetch_add(1, std::memory_order_relaxed);
      device::Bus& bus =
          exit.kind == kvm::ExitKind::kPort ? *wiring_.ports : *wiring_.mmio;
      for (size_t at = 0; at < exit.data.size(); at += exit.access_bytes) {
        const auto one = exit.data.subspan(at, exit.access_bytes);
        if (exit.write) {
          bus.Write(exit.address, one);
        } else {
          bus.Read(exit.address, one);
        }
      }
      return true;
    }
    case kvm::ExitKind::kShutdown:
      return End(EndReason::kTripleFault, std::move(exit.detail));
    case kvm::ExitKind::kInternalError:
      return End(EndReason::kInternalError, std::move(exit.detail));
    case kvm::ExitKind::kEntryFailed:
      return End(EndReason::kEntryFailed, std::move(exit.detail));
    case kvm::ExitKind::kMemoryFault:
      return End(EndReason::kMemoryFault, std::move(exit.detail));
    case kvm::ExitKind::kHostError:
      return End(EndReason::kHostError, std::move(exit.detail));
  }
  return true;
}

bool VcpuThread::End(EndReason reason, std::string detail) {
  leave_.store(true);
  wiring_.end->OnEnd({reason, std::move(detail)});
  return false;
}

}  // namespace catnap::vmm
