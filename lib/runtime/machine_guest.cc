#include "runtime/machine_guest.h"

#include <fcntl.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <system_error>
#include <utility>

#include "base/random.h"
#include "base/status.h"
#include "catnap/errors.h"
#include "disk/cow_layer.h"
#include "disk/loop_file.h"
#include "disk/raw_disk.h"
#include "io/file.h"
#include "net/link.h"
#include "runtime/agent_connection.h"
#include "runtime/network_policy.h"
#include "vmm/guest_devices.h"
#include "vmm/host_check.h"

namespace catnap::runtime {
namespace {

constexpr char kKernelName[] = "vmlinux";
constexpr char kInitramfsName[] = "agent.initramfs";
constexpr char kLayerName[] = "root.layer";
constexpr char kCommandLine[] = "console=ttyS0 panic=-1 quiet";

bool IsFile(const std::filesystem::path& path) {
  std::error_code error;
  return std::filesystem::is_regular_file(path, error);
}

// A disk of a guest, and what is kept to ask about it.
struct RootDisk {
  std::shared_ptr<disk::CowLayer> layer;
  std::filesystem::path path;
};

// What a guest's disk waits for, shared with the disk's callback.
struct Parked {
  base::Mutex mutex;
  std::string text ABSL_GUARDED_BY(mutex);
};

absl::StatusOr<std::shared_ptr<disk::RawDisk>> OpenRaw(
    const std::filesystem::path& path, bool read_only, disk::DiskId id,
    io::EventLoop* loop) {
  auto file =
      disk::LoopFile::Open(path.string(), read_only ? O_RDONLY : O_RDWR, loop);
  if (!file.ok()) return AddContext(file.status(), path.string());
  return disk::RawDisk::Create(*std::move(file),
                               {.read_only = read_only, .id = id});
}

absl::StatusOr<std::shared_ptr<disk::CowLayer>> MakeRootLayer(
    const GuestConfig& config, const std::shared_ptr<Parked>& parked) {
  CATNAP_ASSIGN_OR_RETURN(auto base,
                          OpenRaw(config.image->directory / kRootDiskName, true,
                                  config.image->disk_id, config.loop));
  const std::string path = (config.directory / kLayerName).string();
  CATNAP_ASSIGN_OR_RETURN(
      auto file,
      disk::LoopFile::Open(path, O_RDWR | O_CREAT | O_EXCL, config.loop));
  disk::CowLayerOptions options;
  options.on_parked = [parked](const std::string& reason) {
    const base::MutexLock lock(&parked->mutex);
    parked->text = reason;
  };
  return disk::CowLayer::CreateOnTop(std::move(file), std::move(base),
                                     std::move(options));
}

absl::StatusOr<std::shared_ptr<net::Link>> MakeLink(
    const GuestConfig& config, std::shared_ptr<const net::Policy> policy,
    base::Logger log) {
  net::LinkOptions options;
  options.log = std::move(log);
  if (config.tap != nullptr) {
    // The caller's stays the caller's.
    options.tap =
        base::UniqueFd(::fcntl(config.tap->get(), F_DUPFD_CLOEXEC, 0));
    if (!options.tap.valid()) return ErrnoError(errno, "duplicate tap");
  }
  CATNAP_ASSIGN_OR_RETURN(auto link,
                          net::Link::Create(std::move(options), config.loop));
  link->SetPolicy(std::move(policy));
  return link;
}

GuestEnd EndOf(const vmm::MachineExit& exit, const std::string& console) {
  const auto end = [&exit](TerminationReason reason, const char* text) {
    return GuestEnd{reason, exit.detail.empty()
                                ? std::string(text)
                                : fmt::format("{}: {}", text, exit.detail)};
  };
  switch (exit.reason) {
    case vmm::EndReason::kStopped:
      return end(TerminationReason::kRequested, "it was stopped");
    case vmm::EndReason::kPowerOff:
      return end(TerminationReason::kGuestShutdown,
                 "the guest switched itself off");
    case vmm::EndReason::kReset:
      if (console.find("Kernel panic") != std::string::npos) {
        return end(TerminationReason::kGuestPanic,
                   "the guest's kernel panicked; its console says why");
      }
      return end(TerminationReason::kGuestShutdown,
                 "the guest asked for a reset");
    case vmm::EndReason::kTripleFault:
    case vmm::EndReason::kInternalError:
    case vmm::EndReason::kEntryFailed:
      return end(TerminationReason::kGuestFault,
                 "the guest did what no CPU goes on after");
    case vmm::EndReason::kMemoryFault:
      return end(TerminationReason::kHostMemory,
                 "the host had no memory for the guest");
    case vmm::EndReason::kHostError:
      break;
  }
  return end(TerminationReason::kInternal, "KVM failed");
}

}  // namespace

absl::StatusOr<GuestFiles> FindGuestFiles(const std::filesystem::path& kernel) {
  std::vector<std::filesystem::path> directories;
  // NOLINTNEXTLINE(concurrency-mt-unsafe): the host program's own affair.
  if (const char* named = std::getenv("CATNAP_GUEST_DIR"); named != nullptr) {
    directories.emplace_back(named);
  }
  directories.emplace_back(CATNAP_INSTALLED_GUEST_DIR);
  directories.emplace_back(CATNAP_BUILT_GUEST_DIR);
  if (!kernel.empty() && !IsFile(kernel)) {
    return Error(absl::StatusCode::kNotFound,
                 "HostOptions::kernel is {}, which is no file",
                 kernel.string());
  }
  for (const auto& directory : directories) {
    GuestFiles files{kernel.empty() ? directory / kKernelName : kernel,
                     directory / kInitramfsName};
    if (IsFile(files.kernel) && IsFile(files.initramfs)) return files;
  }
  return Error(absl::StatusCode::kFailedPrecondition,
               "no guest kernel: {} and {} are not in {}; install the "
               "component guest_kernel, or name their directory by the "
               "environment variable CATNAP_GUEST_DIR",
               kKernelName, kInitramfsName, directories.front().string());
}

struct MachineFactory::Outstanding {
  base::Mutex mutex;
  base::CondVar none;
  int holders ABSL_GUARDED_BY(mutex) = 0;
};

namespace {

// A machine for as long as somebody may use its sockets. Goes on any thread.
class Holder {
 public:
  Holder(std::unique_ptr<vmm::Machine> machine, vmm::ShellPool* pool,
         std::shared_ptr<MachineFactory::Outstanding> outstanding)
      : machine_(std::move(machine)),
        pool_(pool),
        outstanding_(std::move(outstanding)) {
    const base::MutexLock lock(&outstanding_->mutex);
    ++outstanding_->holders;
  }
  ~Holder() {
    pool_->Retire(std::move(machine_));
    const base::MutexLock lock(&outstanding_->mutex);
    if (--outstanding_->holders == 0) outstanding_->none.NotifyAll();
  }
  Holder(const Holder&) = delete;
  Holder& operator=(const Holder&) = delete;

  vmm::Machine& machine() { return *machine_; }

 private:
  std::unique_ptr<vmm::Machine> machine_;
  vmm::ShellPool* const pool_;  // Not owned.
  const std::shared_ptr<MachineFactory::Outstanding> outstanding_;
};

class MachineGuest final : public Guest {
 public:
  MachineGuest(std::shared_ptr<Holder> holder, RootDisk root,
               std::shared_ptr<Parked> parked,
               const std::shared_ptr<net::Link>& link,
               std::unique_ptr<AgentConnection> connection)
      : holder_(std::move(holder)),
        root_(std::move(root)),
        parked_(std::move(parked)),
        link_(link),
        connection_(std::move(connection)) {}
  ~MachineGuest() override { Stop(); }

  absl::StatusOr<std::shared_ptr<agent::Client>> WaitForClient(
      std::chrono::steady_clock::time_point deadline,
      const std::function<bool()>& give_up) override {
    return connection_->WaitForClient(deadline, give_up);
  }
  void Wake() override { connection_->Wake(); }

  void Stop() override {
    holder_->machine().Stop();
    connection_->Close();
  }

  std::string ConsoleTail() const override {
    return holder_->machine().console().Tail();
  }
  double VcpuSeconds() const override {
    return std::chrono::duration<double>(holder_->machine().vcpu_time())
        .count();
  }
  uint64_t StoredBytes() const override {
    return root_.layer->allocated_bytes();
  }
  std::string WaitsFor() const override {
    const base::MutexLock lock(&parked_->mutex);
    return parked_->text;
  }
  absl::Status SetEgress(const NetworkPolicy& policy) override {
    CATNAP_ASSIGN_OR_RETURN(auto compiled, CompilePolicy(policy));
    const auto link = link_.lock();
    if (link != nullptr) link->SetPolicy(std::move(compiled));
    return absl::OkStatus();
  }
  absl::StatusOr<StoredSizes> Suspend(const std::filesystem::path&,
                                      const StoreOptions&) override {
    return absl::UnimplementedError("suspend");
  }
  absl::Status Resume(const std::filesystem::path&,
                      const agent::CallLimits&) override {
    return absl::UnimplementedError("resume");
  }
  absl::StatusOr<std::shared_ptr<CapturedGuest>> Capture(
      const agent::CallLimits&) override {
    return absl::UnimplementedError("capture");
  }

 private:
  const std::shared_ptr<Holder> holder_;
  const RootDisk root_;
  const std::shared_ptr<Parked> parked_;
  // The device's, which goes where a link may be destroyed.
  const std::weak_ptr<net::Link> link_;
  const std::unique_ptr<AgentConnection> connection_;
};

}  // namespace

MachineFactory::MachineFactory(Options options)
    : options_(std::move(options)),
      outstanding_(std::make_shared<Outstanding>()) {}

MachineFactory::~MachineFactory() {
  const base::MutexLock lock(&outstanding_->mutex);
  while (outstanding_->holders > 0) {
    outstanding_->none.Wait(&outstanding_->mutex);
  }
}

absl::StatusOr<vmm::ShellPool*> MachineFactory::Pool() {
  const base::MutexLock lock(&mutex_);
  if (pool_ == nullptr) {
    CATNAP_ASSIGN_OR_RETURN(auto system, kvm::System::Open());
    CATNAP_RETURN_IF_ERROR(vmm::CheckRunsLinux(system));
    CATNAP_ASSIGN_OR_RETURN(pool_,
                            vmm::ShellPool::Create(std::move(system), {}));
  }
  return pool_.get();
}

absl::StatusOr<std::unique_ptr<Guest>> MachineFactory::Start(
    GuestConfig config) {
  CATNAP_ASSIGN_OR_RETURN(auto policy, CompilePolicy(config.egress));
  CATNAP_ASSIGN_OR_RETURN(vmm::ShellPool* const pool, Pool());
  CATNAP_ASSIGN_OR_RETURN(const GuestFiles files,
                          FindGuestFiles(options_.kernel));
  CATNAP_ASSIGN_OR_RETURN(const base::UniqueFd kernel,
                          io::OpenFile(files.kernel.string(), O_RDONLY));
  CATNAP_ASSIGN_OR_RETURN(const base::UniqueFd initramfs,
                          io::OpenFile(files.initramfs.string(), O_RDONLY));

  const auto parked = std::make_shared<Parked>();
  CATNAP_ASSIGN_OR_RETURN(auto layer, MakeRootLayer(config, parked));
  vmm::GuestDevices devices;
  devices.disks.push_back(
      {.disk = layer, .serial = "root", .cancel_parked = [disk = layer] {
         disk->CancelParked();
       }});
  for (const Disk& disk : config.disks) {
    CATNAP_ASSIGN_OR_RETURN(
        auto raw, OpenRaw(disk.image, disk.read_only, {}, config.loop));
    devices.disks.push_back(
        {.disk = std::move(raw), .serial = disk.serial, .cancel_parked = {}});
  }

  const auto logger = [&config](const char* source) {
    return base::Logger({.sink = config.log,
                         .executor = config.executor,
                         .vm_id = config.vm_id,
                         .source = source});
  };
  CATNAP_ASSIGN_OR_RETURN(const auto link,
                          MakeLink(config, std::move(policy), logger("net")));
  devices.link = link;

  vmm::ShellConfig shell;
  shell.memory_bytes = config.image->memory_bytes;
  shell.vcpus = static_cast<int>(config.image->vcpus);
  switch (config.image->cpu_baseline) {
    case CpuBaseline::kX86_64V2:
      shell.cpu_baseline = arch::CpuBaseline::kX86_64V2;
      break;
    case CpuBaseline::kX86_64V3:
      shell.cpu_baseline = arch::CpuBaseline::kX86_64V3;
      break;
    case CpuBaseline::kHost:
      shell.cpu_baseline = arch::CpuBaseline::kHost;
      break;
  }
  shell.device_pages = vmm::DevicePages(devices);
  shell.kick_signal = options_.kick_signal;
  CATNAP_ASSIGN_OR_RETURN(auto machine, pool->Take(shell));
  auto holder =
      std::make_shared<Holder>(std::move(machine), pool, outstanding_);

  CATNAP_ASSIGN_OR_RETURN(
      vmm::GuestSockets* const sockets,
      vmm::AttachGuestDevices(&holder->machine(), std::move(devices),
                              config.loop, logger("device")));
  vmm::LaunchConfig launch;
  launch.linux_kernel = {.kernel_fd = kernel.get(),
                         .initramfs_fd = initramfs.get(),
                         .command_line = kCommandLine};
  if (config.log != nullptr) {
    launch.on_console_line = [console = logger("console")](
                                 std::string_view line, uint64_t /*dropped*/) {
      console.Line(LogSeverity::kInfo, line);
    };
  }
  launch.on_end = [on_end = std::move(config.on_end),
                   machine = &holder->machine()](const vmm::MachineExit& exit) {
    if (exit.reason == vmm::EndReason::kStopped || on_end == nullptr) return;
    on_end(EndOf(exit, machine->console().Tail()));
  };
  CATNAP_RETURN_IF_ERROR(holder->machine().Launch(std::move(launch)));
  auto connection = std::make_unique<AgentConnection>(
      std::shared_ptr<vmm::GuestSockets>(holder, sockets), config.loop,
      options_.clock, std::move(config.services));
  CATNAP_RETURN_IF_ERROR(holder->machine().Start());
  return std::unique_ptr<Guest>(new MachineGuest(
      std::move(holder),
      {.layer = std::move(layer), .path = config.directory / kLayerName},
      parked, link, std::move(connection)));
}

}  // namespace catnap::runtime
