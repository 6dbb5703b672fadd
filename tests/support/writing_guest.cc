#include "support/writing_guest.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstring>
#include <string>
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
#include "runtime/running_machine.h"
#include "snapshot/worker_pool.h"
#include "support/resting_code.h"
#include "support/temporary_directory.h"
#include "support/tiny_guest.h"
#include "virtio/mmio_transport.h"
#include "vmm/guest_devices.h"
#include "vmm/guest_template.h"

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

}  // namespace catnap::test
