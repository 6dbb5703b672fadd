#include "runtime/running_machine.h"

#include <fcntl.h>

#include <system_error>
#include <utility>

#include "base/status.h"
#include "base/unique_fd.h"
#include "disk/loop_file.h"
#include "disk/raw_disk.h"
#include "io/file.h"
#include "runtime/network_policy.h"
#include "vmm/guest_devices.h"

namespace catnap::runtime {
namespace {

constexpr char kDiskName[] = "disk";
constexpr char kCommandLine[] = "console=ttyS0 panic=-1 quiet";

absl::StatusOr<std::shared_ptr<disk::RawDisk>> OpenRaw(
    const std::filesystem::path& path, bool read_only, disk::DiskId id,
    io::EventLoop* loop) {
  auto file =
      disk::LoopFile::Open(path.string(), read_only ? O_RDONLY : O_RDWR, loop);
  if (!file.ok()) return AddContext(file.status(), path.string());
  return disk::RawDisk::Create(*std::move(file),
                               {.read_only = read_only, .id = id});
}

base::Logger LoggerOf(const GuestConfig& config, const char* source) {
  return base::Logger({.sink = config.log,
                       .executor = config.executor,
                       .vm_id = config.vm_id,
                       .source = source});
}

absl::StatusOr<std::shared_ptr<net::Link>> MakeLink(const GuestConfig& config) {
  CATNAP_ASSIGN_OR_RETURN(auto policy, CompilePolicy(config.egress));
  net::LinkOptions options;
  options.log = LoggerOf(config, "net");
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

arch::CpuBaseline BaselineOf(CpuBaseline baseline) {
  switch (baseline) {
    case CpuBaseline::kX86_64V2:
      break;
    case CpuBaseline::kX86_64V3:
      return arch::CpuBaseline::kX86_64V3;
    case CpuBaseline::kHost:
      return arch::CpuBaseline::kHost;
  }
  return arch::CpuBaseline::kX86_64V2;
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
    case vmm::EndReason::kMemoryLost:
      return end(TerminationReason::kStorage,
                 "the stored memory of the guest cannot be read");
    case vmm::EndReason::kHostError:
      break;
  }
  return end(TerminationReason::kInternal, "KVM failed");
}

}  // namespace

// A machine for as long as somebody may use its sockets. Goes on any thread.
class RunningMachine::Holder {
 public:
  Holder(std::unique_ptr<vmm::Machine> machine, const MachineMeans& means)
      : machine_(std::move(machine)),
        shells_(means.shells),
        outstanding_(means.outstanding) {
    const base::MutexLock lock(&outstanding_->mutex);
    ++outstanding_->holders;
  }
  ~Holder() {
    shells_->Retire(std::move(machine_));
    const base::MutexLock lock(&outstanding_->mutex);
    if (--outstanding_->holders == 0) outstanding_->none.NotifyAll();
  }
  Holder(const Holder&) = delete;
  Holder& operator=(const Holder&) = delete;

  vmm::Machine& machine() { return *machine_; }

 private:
  std::unique_ptr<vmm::Machine> machine_;
  vmm::ShellPool* const shells_;  // Not owned.
  const std::shared_ptr<MachineFactory::Outstanding> outstanding_;
};

absl::StatusOr<std::shared_ptr<disk::BlockIo>> OpenBaseDisk(
    const ImageRecord& image, io::EventLoop* loop) {
  return OpenRaw(image.directory / kRootDiskName, true, image.disk_id, loop);
}

std::filesystem::path DiskDirectoryOf(const GuestConfig& config) {
  return config.directory / kDiskName;
}

absl::StatusOr<vmm::GuestDevices> RunningMachine::MakeDevices(
    const MachineMeans& means, const GuestConfig& config) {
  disk::DiskStackOptions options;
  options.directory = DiskDirectoryOf(config).string();
  CATNAP_ASSIGN_OR_RETURN(options.base,
                          OpenBaseDisk(*config.image, config.loop));
  options.cache = means.layers;
  options.loop = config.loop;
  if (config.sync_later) {
    options.durable = disk::Durable::kLater;
    unsynced_ = config.directory;
  }
  options.on_parked = [parked = parked_](const std::string& reason) {
    const base::MutexLock lock(&parked->mutex);
    parked->text = reason;
  };
  std::error_code error;
  std::filesystem::create_directory(options.directory, error);
  if (error) {
    return ErrnoError(error.value(), "make {}", options.directory);
  }
  CATNAP_ASSIGN_OR_RETURN(root_, disk::DiskStack::Open(std::move(options)));
  vmm::GuestDevices devices;
  devices.disks.push_back(
      {.disk = root_, .serial = "root", .cancel_parked = [disk = root_] {
         disk->CancelParked();
       }});
  for (const Disk& disk : config.disks) {
    CATNAP_ASSIGN_OR_RETURN(
        auto raw, OpenRaw(disk.image, disk.read_only, {}, config.loop));
    devices.disks.push_back(
        {.disk = std::move(raw), .serial = disk.serial, .cancel_parked = {}});
  }
  CATNAP_ASSIGN_OR_RETURN(devices.link, MakeLink(config));
  link_ = devices.link;
  return devices;
}

vmm::ShellConfig RunningMachine::ShellOf(const ImageRecord& image,
                                         const MachineMeans& means,
                                         size_t disks) {
  vmm::ShellConfig shell;
  shell.memory_bytes = image.memory_bytes;
  shell.vcpus = static_cast<int>(image.vcpus);
  shell.cpu_baseline = BaselineOf(image.cpu_baseline);
  shell.device_pages = vmm::DevicePages(disks, /*has_link=*/true);
  shell.kick_signal = means.kick_signal;
  return shell;
}

absl::StatusOr<std::unique_ptr<RunningMachine>> RunningMachine::Create(
    const MachineMeans& means, const GuestConfig& config,
    std::shared_ptr<const vmm::GuestTemplate> origin) {
  // new: the constructor is private.
  std::unique_ptr<RunningMachine> running(new RunningMachine());
  CATNAP_ASSIGN_OR_RETURN(vmm::GuestDevices devices,
                          running->MakeDevices(means, config));
  CATNAP_ASSIGN_OR_RETURN(
      auto machine,
      means.shells->Take(ShellOf(*config.image, means, devices.disks.size())));
  running->holder_ = std::make_shared<Holder>(std::move(machine), means);
  vmm::Machine& it = running->machine();
  CATNAP_ASSIGN_OR_RETURN(
      vmm::GuestSockets* const sockets,
      vmm::AttachGuestDevices(&it, std::move(devices), config.loop,
                              LoggerOf(config, "device")));
  running->sockets_ =
      std::shared_ptr<vmm::GuestSockets>(running->holder_, sockets);

  vmm::LaunchConfig launch;
  base::UniqueFd kernel;
  base::UniqueFd initramfs;
  if (origin != nullptr) {
    launch.image = origin->memory();
    launch.saved = &origin->sections();
  } else {
    CATNAP_ASSIGN_OR_RETURN(
        kernel, io::OpenFile(means.files.kernel.string(), O_RDONLY));
    CATNAP_ASSIGN_OR_RETURN(
        initramfs, io::OpenFile(means.files.initramfs.string(), O_RDONLY));
    launch.linux_kernel = {.kernel_fd = kernel.get(),
                           .initramfs_fd = initramfs.get(),
                           .command_line = kCommandLine};
  }
  if (config.log != nullptr) {
    launch.on_console_line = [console = LoggerOf(config, "console")](
                                 std::string_view line, uint64_t /*dropped*/) {
      console.Line(LogSeverity::kInfo, line);
    };
  }
  launch.on_end = [on_end = config.on_end,
                   machine = &it](const vmm::MachineExit& exit) {
    if (exit.reason == vmm::EndReason::kStopped || on_end == nullptr) return;
    on_end(EndOf(exit, machine->console().Tail()));
  };
  CATNAP_RETURN_IF_ERROR(it.Launch(std::move(launch)));
  if (origin != nullptr) {
    using Access = memory::GuestMemory::Access;
    const bool is_copy = config.origin.has_value() && config.origin->is_copy;
    origin->Populate(&it.memory(), is_copy ? Access::kRead : Access::kWrite);
  }
  running->origin_ = std::move(origin);
  return running;
}

// The device that has the disk goes later, elsewhere. By then somebody else may
// have removed the directory and made it anew, in which this disk's merge would
// go on.
RunningMachine::~RunningMachine() {
  if (root_ != nullptr) root_->Close();
}

absl::Status RunningMachine::Sync() const {
  if (unsynced_.empty()) return absl::OkStatus();
  CATNAP_RETURN_IF_ERROR(root_->Sync());
  return io::FsyncDirectory(unsynced_.string());
}

vmm::Machine& RunningMachine::machine() const { return holder_->machine(); }

std::string RunningMachine::WaitsFor() const {
  const base::MutexLock lock(&parked_->mutex);
  return parked_->text;
}

}  // namespace catnap::runtime
