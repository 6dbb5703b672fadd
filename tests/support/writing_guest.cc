#include "support/writing_guest.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "arch/x86_64/layout.h"
#include "base/random.h"
#include "base/status.h"
#include "disk/await.h"
#include "disk/disk_stack.h"
#include "io/event_loop.h"
#include "io/file.h"
#include "net/link.h"
#include "runtime/image_store.h"
#include "runtime/machine_guest.h"
#include "runtime/stored_disk.h"
#include "support/resting_code.h"
#include "support/temporary_directory.h"
#include "support/tiny_guest.h"
#include "virtio/mmio_transport.h"
#include "vmm/guest_devices.h"

namespace catnap::test {
namespace {

using virtio::MmioRegister;

// Of the guest's memory. Below kState is what it is made of.
constexpr uint64_t kState = 0x20'0000;
constexpr uint64_t kBegun = kState;
constexpr uint64_t kDone = kState + 4;
constexpr uint64_t kError = kState + 8;
constexpr uint64_t kRest = kState + 12;
constexpr uint64_t kStateEnd = 0x22'0000;  // With the queue.
constexpr uint32_t kDescriptors = 0x21'0000;
constexpr uint32_t kAvailable = 0x21'1000;
constexpr uint32_t kUsed = 0x21'2000;
constexpr uint32_t kHeader = 0x21'3000;
constexpr uint32_t kStatus = 0x21'3100;
constexpr uint32_t kTables = 0x21'4000;
constexpr uint32_t kData = 0x40'0000;

constexpr uint32_t kPages = 1024;
constexpr uint32_t kBlocks = 256;
constexpr size_t kPageBytes = 4096;
constexpr size_t kWords = kPageBytes / sizeof(uint32_t);
// What the disk has before a block's first step.
constexpr uint32_t kFreshBlock = 0xb5b5b5b5;
constexpr uint64_t kDiskBytes = uint64_t{1} << 30;

uint64_t RegisterOf(MmioRegister which) {
  return arch::kRegisterPages + static_cast<uint64_t>(which);
}

// Its first instruction is at `*entry`.
Assembler WriterCode(bool rests, uint64_t* entry) {
  Assembler code;
  const uint64_t handler = code.here();
  if (rests) AppendInterruptHandler(&code, kDone);
  const auto put = [&code](uint64_t address, uint32_t value) {
    code.MovRdi(address).MovEax(value).Store32();
  };
  const auto reg = [&put](MmioRegister which, uint32_t value) {
    put(RegisterOf(which), value);
  };
  const uint64_t failed = code.here();
  code.MovRdi(kError).Bytes({0x89, 0x0f});  // mov [rdi], ecx
  code.Jump(code.here());                   // Stands for ever.
  *entry = code.here();
  code.Cli().Bytes({0xfc});  // cld
  reg(MmioRegister::kStatus, 3);
  reg(MmioRegister::kDriverFeaturesSelect, 1);
  reg(MmioRegister::kDriverFeatures, 1);  // VERSION_1
  reg(MmioRegister::kStatus, 11);
  reg(MmioRegister::kQueueSize, 4);
  reg(MmioRegister::kQueueDescriptorsLow, kDescriptors);
  reg(MmioRegister::kQueueDriverLow, kAvailable);
  reg(MmioRegister::kQueueDeviceLow, kUsed);
  reg(MmioRegister::kQueueReady, 1);
  reg(MmioRegister::kStatus, 15);
  if (rests) {
    AppendRest(&code, handler, kDone, kTables);
    return code;
  }
  // A write: header, page, status. Each step fills in the rest.
  put(kHeader, 1);
  put(kDescriptors, kHeader);
  put(kDescriptors + 8, 16);
  put(kDescriptors + 12, 1 | 1u << 16);  // Goes on in descriptor 1.
  put(kDescriptors + 24, kPageBytes);
  put(kDescriptors + 28, 1 | 2u << 16);
  put(kDescriptors + 32, kStatus);
  put(kDescriptors + 40, 1);
  put(kDescriptors + 44, 2);  // Writable.

  const uint64_t step = code.here();
  code.MovRsi(kRest)
      .Bytes({0xf3, 0x90})   // pause
      .Bytes({0x8b, 0x0e})   // mov ecx, [rsi]
      .Bytes({0x85, 0xc9});  // test ecx, ecx
  code.JumpIfNotEqual(step);
  code.MovRdi(kBegun).Load32().IncEax().Store32();
  code.Bytes({0x89, 0xc1})                          // mov ecx, eax
      .Bytes({0x81, 0xe1, 0xff, 0x03, 0x00, 0x00})  // and ecx, kPages - 1
      .Bytes({0xc1, 0xe1, 0x0c})                    // shl ecx, 12
      .Bytes({0x81, 0xc1, 0x00, 0x00, 0x40, 0x00})  // add ecx, kData
      .Bytes({0x89, 0xcf})                          // mov edi, ecx
      .Bytes({0x41, 0x89, 0xc8})                    // mov r8d, ecx
      .MovEcx(kWords)
      .Bytes({0xf3, 0xab});                                  // rep stosd
  code.MovRsi(kDescriptors + 16).Bytes({0x44, 0x89, 0x06});  // mov [rsi], r8d
  code.Bytes({0x89, 0xc1})                                   // mov ecx, eax
      .Bytes({0x81, 0xe1, 0xff, 0x00, 0x00, 0x00})  // and ecx, kBlocks - 1
      .Bytes({0xc1, 0xe1, 0x03})                    // shl ecx, 3: its sector
      .MovRsi(kHeader + 8)
      .Bytes({0x89, 0x0e});                        // mov [rsi], ecx
  code.MovRsi(kStatus).Bytes({0xc6, 0x06, 0xff});  // mov byte [rsi], 0xff
  code.Bytes({0x89, 0xc1})                         // mov ecx, eax
      .Bytes({0xc1, 0xe1, 0x10})                   // shl ecx, 16
      .MovRsi(kAvailable)
      .Bytes({0x89, 0x0e});  // mov [rsi], ecx
  code.MovRsi(RegisterOf(MmioRegister::kQueueNotify))
      .Bytes({0x31, 0xc9})                       // xor ecx, ecx
      .Bytes({0x89, 0x0e});                      // mov [rsi], ecx
  code.MovRsi(kUsed).Bytes({0x0f, 0xb7, 0xd0});  // movzx edx, ax
  const uint64_t wait = code.here();
  code.Bytes({0xf3, 0x90})        // pause
      .Bytes({0x8b, 0x0e})        // mov ecx, [rsi]
      .Bytes({0xc1, 0xe9, 0x10})  // shr ecx, 16
      .Bytes({0x39, 0xd1})        // cmp ecx, edx
      .JumpIfNotEqual(wait);
  code.MovRsi(kStatus)
      .Bytes({0x0f, 0xb6, 0x0e})  // movzx ecx, byte [rsi]
      .Bytes({0x85, 0xc9})        // test ecx, ecx
      .JumpIfNotEqual(failed);
  code.MovRsi(kDone).StoreRsi32().Jump(step);
  return code;
}

// The last step up to `done` that is `index` modulo `count`; 0: none.
uint32_t LastStep(uint32_t done, uint32_t index, uint32_t count) {
  if (done < index) return 0;
  return done - (done - index) % count;
}

uint32_t WordAt(const uint8_t* bytes, size_t word) {
  uint32_t value = 0;
  std::memcpy(&value, bytes + word * sizeof(value), sizeof(value));
  return value;
}

absl::Status WrongWord(const char* what, uint32_t index, size_t word,
                       uint32_t found, uint32_t wanted,
                       const WriterProgress& at) {
  return Error(absl::StatusCode::kDataLoss,
               "{} {}, word {}: {:#x}, must be {:#x}; {} steps begun, {} done",
               what, index, word, found, wanted, at.begun, at.done);
}

absl::Status CheckPages(const memory::GuestMemory& memory,
                        const WriterProgress& at) {
  for (uint32_t page = 0; page < kPages; ++page) {
    const uint8_t* const bytes = memory.host_base() + kData + page * kPageBytes;
    const uint32_t last = LastStep(at.done, page, kPages);
    const bool filling = at.begun != at.done && at.begun % kPages == page;
    // Of a page that is being filled the first words are the step's.
    uint32_t wanted = filling ? at.begun : last;
    for (size_t word = 0; word < kWords; ++word) {
      const uint32_t found = WordAt(bytes, word);
      if (found != wanted && filling) wanted = last;
      if (found != wanted) {
        return WrongWord("page", page, word, found, wanted, at);
      }
    }
  }
  return absl::OkStatus();
}

absl::Status CheckBlocks(disk::BlockIo* disk, const WriterProgress& at) {
  std::vector<uint8_t> bytes(kBlocks * kPageBytes);
  const iovec buffer{bytes.data(), bytes.size()};
  CATNAP_RETURN_IF_ERROR(disk::Await([&](disk::BlockCompletion done) {
    disk->Read({&buffer, 1}, 0, std::move(done));
  }));
  for (uint32_t block = 0; block < kBlocks; ++block) {
    const uint8_t* const from = bytes.data() + block * kPageBytes;
    const uint32_t last = LastStep(at.done, block, kBlocks);
    uint32_t wanted = last == 0 ? kFreshBlock : last;
    // The request of a step that has not ended may have.
    const bool writing = at.begun != at.done && at.begun % kBlocks == block;
    if (writing && WordAt(from, 0) == at.begun) wanted = at.begun;
    for (size_t word = 0; word < kWords; ++word) {
      if (WordAt(from, word) != wanted) {
        return WrongWord("block", block, word, WordAt(from, word), wanted, at);
      }
    }
  }
  return absl::OkStatus();
}

absl::Status CheckUntouched(const memory::GuestMemory& memory) {
  static const std::vector<uint8_t> zeros(kPageBytes);
  const auto check = [&memory](uint64_t from, uint64_t to) {
    for (uint64_t at = from; at < to; at += kPageBytes) {
      if (std::memcmp(memory.host_base() + at, zeros.data(), kPageBytes) != 0) {
        return Error(absl::StatusCode::kDataLoss,
                     "the page at {:#x} is not zero as it was", at);
      }
    }
    return absl::OkStatus();
  };
  CATNAP_RETURN_IF_ERROR(check(kStateEnd, kData));
  return check(kData + kPages * kPageBytes, memory.size());
}

// The memory of a guest before its first instruction.
absl::StatusOr<std::shared_ptr<const memory::MemoryImage>> FirstMemory(
    const WriterOptions& options, arch::InitialState* state) {
  uint64_t entry = 0;
  const Assembler code = WriterCode(options.rests, &entry);
  CATNAP_ASSIGN_OR_RETURN(const TinyGuest tiny,
                          MakeTinyGuest(code, options.memory_bytes));
  *state = tiny.state;
  state->rip = entry;
  CATNAP_ASSIGN_OR_RETURN(std::shared_ptr<memory::MemoryFile> file,
                          memory::MemoryFile::Adopt(tiny.memfd.get()));
  return memory::MemoryImage::FromFile(std::move(file));
}

absl::Status MakeBaseDisk(const std::string& path) {
  CATNAP_ASSIGN_OR_RETURN(const base::UniqueFd file,
                          io::OpenFile(path, O_RDWR | O_CREAT | O_EXCL, 0600));
  const std::vector<uint32_t> fresh(kBlocks * kWords, kFreshBlock);
  CATNAP_RETURN_IF_ERROR(io::WriteFully(file.get(), fresh.data(),
                                        fresh.size() * sizeof(uint32_t), 0));
  if (::ftruncate(file.get(), static_cast<off_t>(kDiskBytes)) != 0) {
    return ErrnoError(errno, "ftruncate {}", path);
  }
  return absl::OkStatus();
}

// A guest of the image, which has not run, stored in `directory`.
absl::Status StoreFirstGuest(const WriterOptions& guest,
                             const runtime::ImageRecord& image,
                             const std::string& directory) {
  arch::InitialState state;
  CATNAP_ASSIGN_OR_RETURN(auto memory, FirstMemory(guest, &state));
  CATNAP_ASSIGN_OR_RETURN(const auto loop, io::EventLoop::Create({}));
  CATNAP_ASSIGN_OR_RETURN(const auto workers,
                          snapshot::WorkerPool::Create(/*threads=*/1));
  const TemporaryDirectory layers;
  disk::DiskStackOptions options;
  options.directory = layers.path();
  options.loop = loop.get();
  CATNAP_ASSIGN_OR_RETURN(options.base,
                          runtime::OpenBaseDisk(image, loop.get()));
  CATNAP_ASSIGN_OR_RETURN(const auto disk,
                          disk::DiskStack::Open(std::move(options)));
  CATNAP_ASSIGN_OR_RETURN(auto link, net::Link::Create({}, loop.get()));
  CATNAP_ASSIGN_OR_RETURN(auto system, kvm::System::Open());
  CATNAP_ASSIGN_OR_RETURN(
      const auto machine,
      vmm::Machine::CreateShell(
          std::move(system), runtime::RunningMachine::ShellOf(image, {}, 1)));
  vmm::GuestDevices devices;
  devices.disks.push_back(
      {.disk = disk, .serial = "root", .cancel_parked = {}});
  devices.link = std::move(link);
  CATNAP_RETURN_IF_ERROR(vmm::AttachGuestDevices(machine.get(),
                                                 std::move(devices), loop.get(),
                                                 base::Logger())
                             .status());
  vmm::LaunchConfig launch;
  launch.image = std::move(memory);
  launch.state = state;
  CATNAP_RETURN_IF_ERROR(machine->Launch(std::move(launch)));
  CATNAP_ASSIGN_OR_RETURN(const auto sections, machine->Save());
  CATNAP_RETURN_IF_ERROR(disk->Freeze());
  CATNAP_RETURN_IF_ERROR(
      disk->LinkInto(directory, disk::CopyMode::kClone).status());
  return vmm::StoreMachine(machine.get(), sections, nullptr, directory,
                           {.pool = workers.get(), .durable = false})
      .status();
}

}  // namespace

absl::Status MakeWriterImage(const std::filesystem::path& image_dir,
                             const WriterOptions& options) {
  CATNAP_ASSIGN_OR_RETURN(const auto store,
                          runtime::ImageStore::Open(image_dir, base::Logger()));
  CATNAP_ASSIGN_OR_RETURN(auto draft, store->NewDraft());
  runtime::ImageRecord record;
  record.name = kWriterImage;
  record.memory_bytes = options.memory_bytes;
  record.vcpus = 1;
  record.disk_bytes = kDiskBytes;
  record.workdir = "/";
  record.has_guest = true;
  record.directory = draft->directory();
  CATNAP_ASSIGN_OR_RETURN(record.disk_id, base::RandomBytes<16>());
  CATNAP_RETURN_IF_ERROR(
      MakeBaseDisk((record.directory / runtime::kRootDiskName).string()));
  const auto guest = record.directory / runtime::kImageGuestName;
  std::filesystem::create_directory(guest);
  CATNAP_RETURN_IF_ERROR(StoreFirstGuest(options, record, guest.string()));
  return store->Publish(std::move(draft), std::move(record)).status();
}

absl::StatusOr<WriterProgress> ProgressOf(const memory::GuestMemory& memory) {
  WriterProgress at;
  CATNAP_ASSIGN_OR_RETURN(at.begun, memory.Load<uint32_t>(memory::Gpa{kBegun}));
  CATNAP_ASSIGN_OR_RETURN(at.done, memory.Load<uint32_t>(memory::Gpa{kDone}));
  return at;
}

absl::StatusOr<bool> HasFailed(const memory::GuestMemory& memory) {
  CATNAP_ASSIGN_OR_RETURN(const uint32_t error,
                          memory.Load<uint32_t>(memory::Gpa{kError}));
  return error != 0;
}

absl::Status LetRest(memory::GuestMemory& memory, bool rest) {
  return memory.Store<uint32_t>(memory::Gpa{kRest}, rest ? 1 : 0);
}

absl::StatusOr<WriterProgress> CheckWriter(const memory::GuestMemory& memory,
                                           disk::BlockIo* disk, bool whole) {
  CATNAP_ASSIGN_OR_RETURN(const WriterProgress at, ProgressOf(memory));
  CATNAP_ASSIGN_OR_RETURN(const bool failed, HasFailed(memory));
  if (failed) {
    return Error(absl::StatusCode::kDataLoss,
                 "step {} was told that its write failed", at.begun);
  }
  if (at.begun != at.done && at.begun != at.done + 1) {
    return Error(absl::StatusCode::kDataLoss, "{} steps begun, {} done",
                 at.begun, at.done);
  }
  CATNAP_RETURN_IF_ERROR(CheckPages(memory, at));
  CATNAP_RETURN_IF_ERROR(CheckBlocks(disk, at));
  if (whole) CATNAP_RETURN_IF_ERROR(CheckUntouched(memory));
  return at;
}

// --- Guests ------------------------------------------------------------------

struct WriterFactory::Shared {
  std::shared_ptr<runtime::MachineFactory::Outstanding> outstanding =
      std::make_shared<runtime::MachineFactory::Outstanding>();
  std::shared_ptr<disk::LayerCache> layers =
      std::make_shared<disk::LayerCache>();
  Hooks hooks;
  base::Clock* clock = nullptr;
  base::Mutex mutex;
  std::unique_ptr<vmm::ShellPool> shells ABSL_GUARDED_BY(mutex);
  std::unique_ptr<snapshot::WorkerPool> workers ABSL_GUARDED_BY(mutex);
  std::map<std::string, std::weak_ptr<runtime::RunningMachine>> machines
      ABSL_GUARDED_BY(mutex);

  void Name(const std::string& id,
            const std::shared_ptr<runtime::RunningMachine>& machine) {
    const base::MutexLock lock(&mutex);
    machines[id] = machine;
  }
};

class WriterFactory::WriterGuest final : public runtime::Guest {
 public:
  using Running = std::shared_ptr<runtime::RunningMachine>;
  using Template = std::shared_ptr<const vmm::GuestTemplate>;

  WriterGuest(std::shared_ptr<Shared> shared, runtime::MachineMeans means,
              runtime::GuestConfig config, Template image)
      : shared_(std::move(shared)),
        means_(std::move(means)),
        config_(std::move(config)),
        image_(std::move(image)) {}
  ~WriterGuest() override { Stop(); }

  absl::Status Begin(Template origin) {
    const bool is_copy = config_.origin.has_value() && config_.origin->is_copy;
    CATNAP_ASSIGN_OR_RETURN(
        Running running,
        runtime::RunningMachine::Create(means_, config_, std::move(origin)));
    if (config_.on_prepared != nullptr) {
      CATNAP_RETURN_IF_ERROR(config_.on_prepared());
    }
    running->sockets()->ResetTransport();
    if (is_copy) {
      CATNAP_RETURN_IF_ERROR(running->machine().ChangeGenerationId());
    }
    return Let(running);
  }

  absl::StatusOr<std::shared_ptr<agent::Client>> WaitForClient(
      std::chrono::steady_clock::time_point /*deadline*/,
      const std::function<bool()>& /*give_up*/) override {
    return std::shared_ptr<agent::Client>();  // Nobody uses it.
  }
  void Wake() override {}
  void Stop() override {
    Running last;
    {
      const base::MutexLock lock(&mutex_);
      stopped_ = true;
      last = running_;
    }
    if (last != nullptr) last->machine().Stop();
  }
  std::string ConsoleTail() const override { return ""; }
  double VcpuSeconds() const override { return 0; }
  uint64_t StoredBytes() const override { return 0; }
  absl::Status Sync() override {
    const Running now = running();
    return now == nullptr ? absl::OkStatus() : now->Sync();
  }
  std::string WaitsFor() const override {
    const Running now = running();
    return now == nullptr ? "" : now->WaitsFor();
  }
  absl::Status SetEgress(const NetworkPolicy& /*policy*/) override {
    return absl::OkStatus();
  }

  absl::StatusOr<runtime::StoredSizes> Suspend(
      const std::filesystem::path& directory,
      const runtime::StoreOptions& options) override {
    const base::MutexLock change(&change_mutex_);
    CATNAP_ASSIGN_OR_RETURN(Running now, Awake());
    CATNAP_RETURN_IF_ERROR(now->root()->PrepareFreeze());
    CATNAP_RETURN_IF_ERROR(now->machine().Pause());
    auto stored = StoreNow(*now, directory, options);
    if (!stored.ok()) {
      CATNAP_RETURN_IF_ERROR(now->machine().Start());
      return stored;
    }
    now->root()->Close();
    const base::MutexLock lock(&mutex_);
    running_.reset();
    origin_.reset();
    return stored;
  }

  absl::Status Resume(const std::filesystem::path& directory,
                      const agent::CallLimits& limits) override {
    const base::MutexLock change(&change_mutex_);
    {
      const base::MutexLock lock(&mutex_);
      if (stopped_) return absl::FailedPreconditionError("it has ended");
      if (running_ != nullptr) return absl::OkStatus();
    }
    CATNAP_ASSIGN_OR_RETURN(
        auto origin,
        vmm::GuestTemplate::Load(directory.string(),
                                 vmm::GuestTemplate::Role::kGuest, image_,
                                 {.pool = means_.workers,
                                  .prefetch = shared_->hooks.prefetch,
                                  .stop = limits.stop,
                                  .deadline = limits.deadline}));
    runtime::GuestConfig config = config_;
    config.sync_later = false;
    CATNAP_RETURN_IF_ERROR(runtime::TakeDisk(directory, *origin, config));
    CATNAP_ASSIGN_OR_RETURN(
        Running running,
        runtime::RunningMachine::Create(means_, config, std::move(origin)));
    return Let(running);
  }

  absl::StatusOr<std::shared_ptr<runtime::CapturedGuest>> Capture(
      runtime::CaptureUse use, const agent::CallLimits& /*limits*/) override {
    const base::MutexLock change(&change_mutex_);
    CATNAP_ASSIGN_OR_RETURN(const Running now, Awake());
    Template origin;
    {
      const base::MutexLock lock(&mutex_);
      origin = origin_;
    }
    const std::filesystem::path layers =
        config_.directory.parent_path().parent_path() /
        fmt::format(".captured-{}-{}", config_.vm_id, ++captures_);
    std::filesystem::create_directory(layers);
    CATNAP_ASSIGN_OR_RETURN(
        const auto capture,
        vmm::MachineCapture::Prepare(&now->machine(), std::move(origin),
                                     runtime::MemoryOf(use)));
    CATNAP_RETURN_IF_ERROR(now->root()->PrepareFreeze());
    CATNAP_RETURN_IF_ERROR(now->machine().Pause());
    absl::Status taken;
    if (auto sections = now->machine().Save(); !sections.ok()) {
      taken = sections.status();
    } else if (taken = now->root()->Freeze(); taken.ok()) {
      taken = runtime::AddDiskSection(*now->root(), &*sections);
      if (taken.ok()) {
        taken = capture->Take(&now->machine(), *std::move(sections));
      }
    }
    CATNAP_RETURN_IF_ERROR(now->machine().Start());
    CATNAP_RETURN_IF_ERROR(taken);
    CATNAP_ASSIGN_OR_RETURN(auto captured, capture->Finish());
    if (use == runtime::CaptureUse::kRun) {
      const base::MutexLock lock(&mutex_);
      origin_ = captured;
    }
    CATNAP_ASSIGN_OR_RETURN(
        auto linked,
        now->root()->LinkInto(layers.string(), disk::CopyMode::kLink,
                              disk::Durable::kLater));
    return std::make_shared<runtime::CapturedMachine>(
        std::move(captured), layers, std::move(linked), means_);
  }

 private:
  Running running() const {
    const base::MutexLock lock(&mutex_);
    return running_;
  }
  absl::StatusOr<Running> Awake() const {
    const base::MutexLock lock(&mutex_);
    if (running_ != nullptr && !stopped_) return running_;
    return absl::FailedPreconditionError("the guest does not run");
  }
  absl::Status Let(const Running& running) {
    if (shared_->hooks.on_woken != nullptr) {
      CATNAP_RETURN_IF_ERROR(shared_->hooks.on_woken(*running));
    }
    {
      const base::MutexLock lock(&mutex_);
      running_ = running;
      origin_ = running->origin();
    }
    shared_->Name(config_.vm_id, running);
    return running->machine().Start();
  }
  absl::StatusOr<runtime::StoredSizes> StoreNow(
      runtime::RunningMachine& now, const std::filesystem::path& directory,
      const runtime::StoreOptions& options) {
    if (shared_->hooks.on_standing != nullptr) {
      CATNAP_RETURN_IF_ERROR(shared_->hooks.on_standing(now));
    }
    Template origin;
    {
      const base::MutexLock lock(&mutex_);
      origin = origin_;
    }
    return runtime::StoreStanding(means_, now, origin.get(), directory,
                                  options);
  }

  const std::shared_ptr<Shared> shared_;
  const runtime::MachineMeans means_;
  const runtime::GuestConfig config_;
  const Template image_;
  base::Mutex change_mutex_;
  mutable base::Mutex mutex_;
  Running running_ ABSL_GUARDED_BY(mutex_);
  Template origin_ ABSL_GUARDED_BY(mutex_);
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t captures_ ABSL_GUARDED_BY(change_mutex_) = 0;
};

WriterFactory::WriterFactory(base::Clock* clock, Hooks hooks,
                             vmm::ShellPool::Options pool)
    : shared_(std::make_shared<Shared>()),
      pool_(pool),
      real_({.kernel = {}, .clock = clock}) {
  shared_->hooks = std::move(hooks);
  shared_->clock = clock;
}

WriterFactory::~WriterFactory() {
  auto& outstanding = *shared_->outstanding;
  const base::MutexLock lock(&outstanding.mutex);
  while (outstanding.holders > 0) outstanding.none.Wait(&outstanding.mutex);
}

absl::StatusOr<runtime::MachineMeans> WriterFactory::Means() {
  const base::MutexLock lock(&shared_->mutex);
  if (shared_->shells == nullptr) {
    CATNAP_ASSIGN_OR_RETURN(auto system, kvm::System::Open());
    CATNAP_ASSIGN_OR_RETURN(shared_->shells,
                            vmm::ShellPool::Create(std::move(system), pool_));
    CATNAP_ASSIGN_OR_RETURN(shared_->workers,
                            snapshot::WorkerPool::Create(/*threads=*/0));
  }
  runtime::MachineMeans means;
  means.shells = shared_->shells.get();
  means.workers = shared_->workers.get();
  means.clock = shared_->clock;
  means.outstanding = shared_->outstanding;
  means.layers = shared_->layers;
  return means;
}

absl::StatusOr<std::shared_ptr<const vmm::GuestTemplate>>
WriterFactory::TemplateOf(const runtime::ImageRecord& image) {
  CATNAP_ASSIGN_OR_RETURN(const runtime::MachineMeans means, Means());
  const base::MutexLock lock(&mutex_);
  if (image_ == nullptr) {
    CATNAP_ASSIGN_OR_RETURN(
        image_, vmm::GuestTemplate::Load(
                    (image.directory / runtime::kImageGuestName).string(),
                    vmm::GuestTemplate::Role::kImage, nullptr,
                    {.pool = means.workers}));
  }
  return image_;
}

absl::StatusOr<std::unique_ptr<runtime::Guest>> WriterFactory::Start(
    runtime::GuestConfig config) {
  CATNAP_ASSIGN_OR_RETURN(const runtime::MachineMeans means, Means());
  CATNAP_ASSIGN_OR_RETURN(auto image, TemplateOf(*config.image));
  if (!config.origin.has_value()) {
    return absl::UnimplementedError("such a guest does not boot");
  }
  const runtime::GuestOrigin& from = *config.origin;
  std::shared_ptr<const vmm::GuestTemplate> origin;
  if (from.captured != nullptr) {
    const auto& captured =
        static_cast<const runtime::CapturedMachine&>(*from.captured);
    origin = captured.guest_template();
    CATNAP_RETURN_IF_ERROR(runtime::TakeLayers(captured.layers(), config));
  } else if (from.directory ==
             config.image->directory / runtime::kImageGuestName) {
    origin = image;
  } else {
    CATNAP_ASSIGN_OR_RETURN(
        origin,
        vmm::GuestTemplate::Load(
            from.directory.string(), vmm::GuestTemplate::Role::kGuest, image,
            {.pool = means.workers, .prefetch = shared_->hooks.prefetch}));
  }
  if (from.captured == nullptr) {
    CATNAP_RETURN_IF_ERROR(runtime::TakeDisk(from.directory, *origin, config));
  }
  auto guest = std::make_unique<WriterGuest>(shared_, means, std::move(config),
                                             std::move(image));
  CATNAP_RETURN_IF_ERROR(guest->Begin(std::move(origin)));
  return guest;
}

absl::Status WriterFactory::Verify(const runtime::ImageRecord& image,
                                   const std::filesystem::path& directory,
                                   const agent::CallLimits& limits) {
  return real_.Verify(image, directory, limits);
}

absl::Status WriterFactory::Prewarm(const runtime::ImageRecord& image,
                                    int count) {
  CATNAP_ASSIGN_OR_RETURN(const runtime::MachineMeans means, Means());
  CATNAP_RETURN_IF_ERROR(TemplateOf(image).status());
  return means.shells->Prewarm(
      runtime::RunningMachine::ShellOf(image, means, /*disks=*/1),
      static_cast<uint64_t>(count));
}

std::shared_ptr<runtime::RunningMachine> WriterFactory::machine(
    const std::string& id) {
  const base::MutexLock lock(&shared_->mutex);
  return shared_->machines[id].lock();
}

absl::StatusOr<WriterProgress> WriterFactory::Progress(const std::string& id) {
  const auto running = machine(id);
  if (running == nullptr) return absl::NotFoundError(id + " does not run");
  return ProgressOf(running->machine().memory());
}

bool WriterFactory::WaitForSteps(const std::string& id, uint32_t steps) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  const auto from = Progress(id);
  if (!from.ok()) return false;
  while (std::chrono::steady_clock::now() < until) {
    const auto now = Progress(id);
    if (!now.ok()) return false;
    if (now->done - from->done >= steps) return true;
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  return false;
}

void WriterFactory::WaitIdle() {
  vmm::ShellPool* shells = nullptr;
  {
    const base::MutexLock lock(&shared_->mutex);
    shells = shared_->shells.get();
  }
  if (shells != nullptr) shells->WaitIdle();
}

}  // namespace catnap::test
