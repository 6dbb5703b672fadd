#include "vmm/machine.h"

#include <sys/sysinfo.h>

#include <array>
#include <csignal>
#include <utility>

#include "arch/x86_64/boot.h"
#include "arch/x86_64/layout.h"
#include "arch/x86_64/vcpu_state.h"
#include "base/checked.h"
#include "base/random.h"
#include "base/status.h"
#include "virtio/mmio_transport.h"

namespace catnap::vmm {
namespace {

constexpr uint64_t kMemoryGranule = 1 << 20;
// Memory slots: RAM regions first, then the register pages.
constexpr uint32_t kRegisterSlot = 8;
// virtio-mmio registers (virtio 1.2, 4.2.2) that are only ever written.
constexpr uint64_t kQueueNotify = 0x50;
constexpr uint64_t kInterruptAck = 0x64;
constexpr uint32_t kRegisterBytes = 4;

std::vector<memory::Region> RegionsOf(uint64_t memory_bytes) {
  using memory::Gpa;
  if (memory_bytes <= arch::kLowRamEnd) return {{Gpa{0}, memory_bytes, 0}};
  return {{Gpa{0}, arch::kLowRamEnd, 0},
          {Gpa{arch::kHighRamStart}, memory_bytes - arch::kLowRamEnd,
           arch::kLowRamEnd}};
}

uint64_t HostMemoryBytes() {
  struct sysinfo info {};
  if (::sysinfo(&info) != 0) return UINT64_MAX;
  return uint64_t{info.totalram} * info.mem_unit;
}

// An errno that KVM or the system answered says nothing about the caller's
// arguments, which were checked before.
absl::Status HostFailure(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kFailedPrecondition:
      return status;
    default:
      return Error(absl::StatusCode::kUnavailable, "{}",
                   std::string(status.message()));
  }
}

}  // namespace

absl::Status Validate(const ShellConfig& config) {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  if (config.vcpus < arch::kMinVcpus || config.vcpus > arch::kMaxVcpus) {
    return Error(kInvalid, "vcpus is {}, must be {} to {}", config.vcpus,
                 arch::kMinVcpus, arch::kMaxVcpus);
  }
  if (config.memory_bytes < arch::kMinMemoryBytes ||
      config.memory_bytes > arch::kMaxMemoryBytes) {
    return Error(kInvalid, "memory_bytes is {}, must be {} to {}",
                 config.memory_bytes, arch::kMinMemoryBytes,
                 arch::kMaxMemoryBytes);
  }
  if (!base::IsAligned(config.memory_bytes, kMemoryGranule)) {
    return Error(kInvalid, "memory_bytes is {}, must be a multiple of {}",
                 config.memory_bytes, kMemoryGranule);
  }
  if (config.device_pages < 0 || config.device_pages > arch::kMaxDevices) {
    return Error(kInvalid, "device_pages is {}, must be 0 to {}",
                 config.device_pages, arch::kMaxDevices);
  }
  if (config.kick_signal != 0 &&
      (config.kick_signal < SIGRTMIN || config.kick_signal > SIGRTMAX)) {
    return Error(kInvalid, "kick_signal is {}, must be 0 or {} to {}",
                 config.kick_signal, SIGRTMIN, SIGRTMAX);
  }
  const uint64_t host_bytes = HostMemoryBytes();
  if (config.memory_bytes > host_bytes) {
    return Error(absl::StatusCode::kResourceExhausted,
                 "memory_bytes is {}, this machine has {}", config.memory_bytes,
                 host_bytes);
  }
  return absl::OkStatus();
}

struct Machine::LossLink {
  base::Mutex mutex;
  Machine* machine ABSL_GUARDED_BY(mutex) = nullptr;  // Null: it goes.
};

Machine::Machine(std::shared_ptr<const kvm::System> system, ShellConfig config,
                 kvm::VmFd vm)
    : system_(std::move(system)),
      config_(config),
      loss_link_(std::make_shared<LossLink>()),
      vm_(std::move(vm)),
      serial_irq_(&vm_, arch::kCom1Gsi),
      serial_(&console_, &serial_irq_),
      event_irq_(&vm_, arch::kEventGsi),
      events_(&event_irq_),
      power_(this) {}

absl::StatusOr<std::unique_ptr<Machine>> Machine::CreateShell(
    std::shared_ptr<const kvm::System> system, const ShellConfig& config) {
  CATNAP_RETURN_IF_ERROR(Validate(config));
  ShellConfig wanted = config;
  if (wanted.kick_signal == 0) wanted.kick_signal = DefaultKickSignal();
  auto vm = kvm::VmFd::Create(system);
  if (!vm.ok()) return HostFailure(vm.status());
  // new: the constructor is private.
  std::unique_ptr<Machine> machine(
      new Machine(std::move(system), wanted, *std::move(vm)));
  CATNAP_RETURN_IF_ERROR(HostFailure(
      machine->vm_.SetRealModePages(arch::kTss, arch::kIdentityMap)));
  CATNAP_RETURN_IF_ERROR(HostFailure(machine->vm_.CreateIrqchip()));
  CATNAP_RETURN_IF_ERROR(
      HostFailure(machine->vm_.RouteToIoApicOnly(arch::kIoApicPins)));
  CATNAP_RETURN_IF_ERROR(HostFailure(machine->CreateMemory()));
  CATNAP_RETURN_IF_ERROR(HostFailure(machine->CreateRegisterPages()));
  CATNAP_RETURN_IF_ERROR(HostFailure(machine->WireBuses()));
  CATNAP_RETURN_IF_ERROR(HostFailure(machine->CreateVcpus()));
  return machine;
}

absl::Status Machine::CreateMemory() {
  CATNAP_ASSIGN_OR_RETURN(
      memory_, memory::GuestMemory::Reserve(RegionsOf(config_.memory_bytes)));
  uint32_t slot = 0;
  for (const memory::Region& region : memory_->regions()) {
    CATNAP_RETURN_IF_ERROR(
        vm_.SetMemorySlot(slot, region.start.value, region.size,
                          memory_->host_base() + region.offset, false));
    ++slot;
  }
  return absl::OkStatus();
}

absl::Status Machine::CreateRegisterPages() {
  if (config_.device_pages == 0) return absl::OkStatus();
  const auto pages = static_cast<size_t>(config_.device_pages);
  CATNAP_ASSIGN_OR_RETURN(register_pages_,
                          device::RegisterPages::Create(pages));
  CATNAP_RETURN_IF_ERROR(vm_.SetMemorySlot(
      kRegisterSlot, arch::kRegisterPages, pages * arch::kPageSize,
      register_pages_->host_base(), /*read_only=*/true));
  // Nobody reads this one: it only keeps the acknowledgement of a used-buffer
  // interrupt from leaving the guest. That of a change of configuration, which
  // is rare, goes to the device.
  CATNAP_ASSIGN_OR_RETURN(ack_fd_, base::CreateEventFd());
  for (size_t page = 0; page < pages; ++page) {
    const uint64_t start = arch::kRegisterPages + page * arch::kPageSize;
    CATNAP_ASSIGN_OR_RETURN(base::UniqueFd notify, base::CreateEventFd());
    CATNAP_RETURN_IF_ERROR(
        vm_.AddIoEvent(start + kQueueNotify, kRegisterBytes, notify.get()));
    CATNAP_RETURN_IF_ERROR(vm_.AddIoEvent(start + kInterruptAck, kRegisterBytes,
                                          ack_fd_.get(),
                                          virtio::kInterruptUsedBuffer));
    notify_fds_.push_back(std::move(notify));
    device_irqs_.emplace_back(
        &vm_, arch::kFirstDeviceGsi + static_cast<uint32_t>(page));
  }
  return absl::OkStatus();
}

absl::Status Machine::WireBuses() {
  CATNAP_RETURN_IF_ERROR(
      ports_.Add(arch::kCom1Port, device::Serial::kPorts, &serial_));
  CATNAP_RETURN_IF_ERROR(
      ports_.Add(arch::kSleepControlPort, PowerRegisters::kPorts, &power_));
  return ports_.Add(arch::kEventPort, EventRegister::kPorts, &events_);
}

absl::Status Machine::CreateVcpus() {
  const arch::CpuidConfig cpuid{.baseline = config_.cpu_baseline,
                                .vcpus = config_.vcpus,
                                .tsc_deadline = system_->has_tsc_deadline()};
  const VcpuThread::Wiring wiring{.ports = &ports_,
                                  .mmio = &mmio_,
                                  .end = this,
                                  .kick_signal = config_.kick_signal};
  for (int index = 0; index < config_.vcpus; ++index) {
    CATNAP_ASSIGN_OR_RETURN(kvm::VcpuFd vcpu,
                            vm_.CreateVcpu(static_cast<uint32_t>(index)));
    cpuids_.push_back(
        arch::BuildCpuid(system_->supported_cpuid(), cpuid, index));
    CATNAP_RETURN_IF_ERROR(vcpu.SetCpuid(cpuids_.back()));
    CATNAP_RETURN_IF_ERROR(arch::PrepareVcpu(vcpu));
    CATNAP_ASSIGN_OR_RETURN(auto thread,
                            VcpuThread::Start(std::move(vcpu), index, wiring));
    vcpus_.push_back(std::move(thread));
  }
  return absl::OkStatus();
}

Machine::~Machine() {
  {
    const base::MutexLock lock(&loss_link_->mutex);
    loss_link_->machine = nullptr;
  }
  Stop();
}

absl::StatusOr<arch::InitialState> Machine::LoadKernel(
    const LinuxKernel& kernel) {
  arch::LinuxBoot boot;
  boot.kernel_fd = kernel.kernel_fd;
  boot.initramfs_fd = kernel.initramfs_fd;
  boot.command_line = kernel.command_line;
  boot.acpi.vcpus = config_.vcpus;
  for (int page = 0; page < config_.device_pages; ++page) {
    const auto index = static_cast<uint32_t>(page);
    boot.acpi.devices.push_back(
        {.gpa = arch::kRegisterPages + index * arch::kPageSize,
         .gsi = arch::kFirstDeviceGsi + index});
  }
  return arch::LoadLinux(*memory_, boot);
}

absl::Status Machine::Launch(LaunchConfig config) {
  const base::MutexLock control(&control_mutex_);
  if (state() != MachineState::kShell) {
    return absl::FailedPreconditionError(
        "a guest was launched in this machine before; a shell serves one");
  }
  const int starts = (config.linux_kernel.has_value() ? 1 : 0) +
                     (config.state.has_value() ? 1 : 0) +
                     (config.saved != nullptr ? 1 : 0);
  if (starts != 1) {
    return absl::InvalidArgumentError(
        "set exactly one of linux_kernel, state and saved");
  }
  const bool has_content =
      config.template_memfd >= 0 || config.image != nullptr;
  if (config.linux_kernel.has_value() && has_content) {
    return absl::InvalidArgumentError(
        "linux_kernel needs zeroed memory: set neither template_memfd nor "
        "image");
  }
  if (config.saved != nullptr && !has_content) {
    return absl::InvalidArgumentError(
        "saved needs the memory that was saved with it: set template_memfd or "
        "image");
  }
  const auto* const saved = std::exchange(config.saved, nullptr);
  launch_ = std::move(config);
  // Whatever the guest's memory is to hold is mapped here, into the range that
  // the shell's slots name already.
  if (launch_.image != nullptr) {
    {
      const base::MutexLock lock(&loss_link_->mutex);
      loss_link_->machine = this;
    }
    CATNAP_RETURN_IF_ERROR(
        memory_->MapImage(std::exchange(launch_.image, {}),
                          [link = loss_link_](const absl::Status& why) {
                            const base::MutexLock lock(&link->mutex);
                            if (link->machine != nullptr)
                              link->machine->OnMemoryLost(why);
                          }));
  } else if (launch_.template_memfd >= 0) {
    CATNAP_RETURN_IF_ERROR(memory_->MapPrivate(launch_.template_memfd));
  } else {
    CATNAP_RETURN_IF_ERROR(memory_->MapAnonymous());
  }
  console_.SetLineCallback(std::move(launch_.on_console_line));
  if (saved != nullptr) {
    const absl::Status loaded = LoadSaved(*saved);
    const base::MutexLock lock(&mutex_);
    CATNAP_RETURN_IF_ERROR(memory_lost_);
    CATNAP_RETURN_IF_ERROR(loaded);
  } else {
    arch::InitialState initial;
    if (launch_.linux_kernel.has_value()) {
      CATNAP_ASSIGN_OR_RETURN(initial, LoadKernel(*launch_.linux_kernel));
      CATNAP_RETURN_IF_ERROR(ChangeGenerationId());
    } else {
      initial = *launch_.state;
    }
    CATNAP_RETURN_IF_ERROR(
        HostFailure(arch::SetInitialState(vcpus_[0]->vcpu(), initial)));
  }
  const base::MutexLock lock(&mutex_);
  CATNAP_RETURN_IF_ERROR(memory_lost_);
  state_ = MachineState::kPaused;
  return absl::OkStatus();
}

void Machine::OnMemoryLost(const absl::Status& why) {
  {
    const base::MutexLock lock(&mutex_);
    memory_lost_ = why;
    if (state_ == MachineState::kShell) return;  // Launch() will say so.
  }
  OnEnd({EndReason::kMemoryLost, why.ToString()});
}

absl::Status Machine::Start() {
  const base::MutexLock control(&control_mutex_);
  bool stood_still = loaded_.load();
  {
    const base::MutexLock lock(&mutex_);
    switch (state_) {
      case MachineState::kShell:
        return absl::FailedPreconditionError(
            "no guest was launched in this machine yet");
      case MachineState::kEnded:
        return Error(absl::StatusCode::kFailedPrecondition,
                     "the machine has ended ({})",
                     exit_.has_value() ? NameOf(exit_->reason) : "");
      case MachineState::kRunning:
        return absl::OkStatus();
      case MachineState::kPaused:
        break;
    }
    state_ = MachineState::kRunning;
    if (started_at_.has_value()) {
      stood_still = true;
    } else {
      started_at_ = std::chrono::steady_clock::now();
    }
  }
  if (stood_still) {
    for (const auto& vcpu : vcpus_) vcpu->vcpu().ClockPaused();
  }
  WakeDevices();
  for (const auto& vcpu : vcpus_) vcpu->Resume();
  // A vCPU may have ended the machine while others were still being resumed.
  if (state() == MachineState::kEnded) ParkAll();
  return absl::OkStatus();
}

void Machine::ParkAll() {
  for (const auto& vcpu : vcpus_) vcpu->RequestPark();
}

absl::Status Machine::Pause() {
  const base::MutexLock control(&control_mutex_);
  if (state() == MachineState::kShell) {
    return absl::FailedPreconditionError(
        "no guest was launched in this machine yet");
  }
  ParkAll();
  for (const auto& vcpu : vcpus_) vcpu->WaitParked();
  const base::MutexLock lock(&mutex_);
  if (state_ == MachineState::kRunning) state_ = MachineState::kPaused;
  return absl::OkStatus();
}

void Machine::Stop() {
  const base::MutexLock control(&control_mutex_);
  OnEnd({EndReason::kStopped, "stopped by the host program"});
  for (const auto& vcpu : vcpus_) vcpu->WaitParked();
  console_.Flush();
}

void Machine::OnEnd(MachineExit exit) {
  {
    const base::MutexLock lock(&mutex_);
    if (exit_.has_value()) return;
    exit_ = exit;
    state_ = MachineState::kEnded;
  }
  // Before ended_ is signalled, so that the guest stands when a waiter acts.
  ParkAll();
  if (launch_.on_end) launch_.on_end(exit);
  ended_.NotifyAll();
}

MachineState Machine::state() const {
  const base::MutexLock lock(&mutex_);
  return state_;
}

std::optional<MachineExit> Machine::exit() const {
  const base::MutexLock lock(&mutex_);
  return exit_;
}

bool Machine::WaitForEnd(std::chrono::steady_clock::time_point deadline) const {
  const base::MutexLock lock(&mutex_);
  while (!exit_.has_value()) {
    if (!ended_.WaitUntil(&mutex_, deadline)) return exit_.has_value();
  }
  return true;
}

std::optional<std::chrono::steady_clock::time_point> Machine::started_at()
    const {
  const base::MutexLock lock(&mutex_);
  return started_at_;
}

uint64_t Machine::user_exits() const {
  uint64_t exits = 0;
  for (const auto& vcpu : vcpus_) exits += vcpu->user_exits();
  return exits;
}

absl::StatusOr<uint64_t> Machine::ReadKvmStat(std::string_view name) const {
  uint64_t sum = 0;
  for (const auto& vcpu : vcpus_) {
    CATNAP_ASSIGN_OR_RETURN(const uint64_t value, vcpu->ReadStat(name));
    sum += value;
  }
  return sum;
}

std::chrono::nanoseconds Machine::vcpu_time() const {
  std::chrono::nanoseconds time{0};
  for (const auto& vcpu : vcpus_) time += vcpu->cpu_time();
  return time;
}

device::RegisterPage Machine::register_page(int page) {
  return register_pages_->page(static_cast<size_t>(page));
}

int Machine::notify_fd(int page) const {
  return notify_fds_[static_cast<size_t>(page)].get();
}

device::IrqLine& Machine::device_irq(int page) {
  return device_irqs_[static_cast<size_t>(page)];
}

absl::Status Machine::NoSuchPage(int page) const {
  return Error(absl::StatusCode::kInvalidArgument,
               "device page is {}, must be 0 to {}", page,
               config_.device_pages - 1);
}

absl::Status Machine::AttachDevice(int page, device::IoHandler* handler) {
  const base::MutexLock control(&control_mutex_);
  if (page < 0 || page >= config_.device_pages) return NoSuchPage(page);
  if (started_at().has_value()) {
    return absl::FailedPreconditionError(
        "devices are attached before the guest runs");
  }
  const auto index = static_cast<uint64_t>(page);
  return mmio_.Add(arch::kRegisterPages + index * arch::kPageSize,
                   arch::kPageSize, handler);
}

absl::Status Machine::AttachVirtio(int page,
                                   std::unique_ptr<virtio::VirtioDevice> device,
                                   io::EventLoop* loop,
                                   const base::Logger& log) {
  if (page < 0 || page >= config_.device_pages) return NoSuchPage(page);
  auto slot =
      std::make_unique<VirtioSlot>(std::move(device),
                                   VirtioWiring{.page = register_page(page),
                                                .irq = &device_irq(page),
                                                .notify_fd = notify_fd(page),
                                                .loop = loop},
                                   log);
  CATNAP_RETURN_IF_ERROR(AttachDevice(page, &slot->transport()));
  const base::MutexLock control(&control_mutex_);
  virtio_slots_[page] = std::move(slot);
  return absl::OkStatus();
}

absl::Status Machine::ChangeGenerationId() {
  std::array<uint8_t, 16> id{};
  CATNAP_RETURN_IF_ERROR(base::FillRandom(id));
  CATNAP_RETURN_IF_ERROR(memory_->Write(memory::Gpa{arch::kVmGenId}, id));
  // A guest that has not run yet reads it in any case.
  if (loaded_.load() || started_at().has_value()) {
    events_.Raise(arch::kEventVmGenId);
  }
  return absl::OkStatus();
}

}  // namespace catnap::vmm
