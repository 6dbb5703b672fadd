// Guests that run while their memory is still being read from a snapshot.
#include <algorithm>
#include <catch2/catch.hpp>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "memory/page_map.h"
#include "memory/page_ranges.h"
#include "snapshot/reader.h"
#include "support/machine_fixture.h"
#include "support/process_use.h"
#include "support/temporary_directory.h"
#include "vmm/guest_template.h"
#include "vmm/stored_pages.h"

namespace catnap::vmm {
namespace {

namespace fs = std::filesystem;
using base::kPageBytes;
using base::PageRange;
using Template = std::shared_ptr<const GuestTemplate>;

constexpr uint64_t kMemory = test::kSmallMemory;
// The guest counts in the first word of every third page from here on; between
// and behind those words is noise.
constexpr uint64_t kFirst = 0x40'0000;
constexpr uint32_t kCounted = 3000;
constexpr uint64_t kStep = 3 * kPageBytes;
constexpr uint32_t kRounds = 12;
static_assert(kFirst + kCounted * kStep < kMemory);

// Goes through all counted pages again and again: each must have the number of
// rounds so far, and gets one more. Powers off when all were made; resets when
// a page has anything else.
test::Assembler Counting() {
  const size_t failure_bytes = test::Assembler().Reset().code().size();
  constexpr size_t kJumpBytes = 5;
  test::Assembler code;
  code.Cli();
  code.Jump(code.here() + kJumpBytes + failure_bytes);
  const uint64_t failure = code.here();
  code.Reset();
  code.MovEax(0);
  const uint64_t round = code.here();
  code.MovRdi(kFirst).MovEcx(kCounted);
  const uint64_t page = code.here();
  code.Bytes({0x39, 0x07})  // cmp [rdi], eax
      .JumpIfNotEqual(failure)
      .Bytes({0xff, 0x07})                             // inc dword [rdi]
      .Bytes({0x48, 0x81, 0xc7, 0, kStep >> 8, 0, 0})  // add rdi, kStep
      .DecEcxJumpIfNotZero(page)
      .IncEax()
      .CompareEax(kRounds)
      .JumpIfNotEqual(round)
      .PowerOff();
  return code;
}
static_assert(kStep % 256 == 0 && kStep >> 8 < 256);

std::vector<uint8_t> NoiseOf(uint64_t offset) {
  std::vector<uint8_t> bytes(kPageBytes);
  std::mt19937_64 random(offset);
  for (size_t at = 0; at < bytes.size(); at += sizeof(uint64_t)) {
    // Half of it compresses, as memory does.
    const uint64_t word = at % 16 == 0 ? random() : offset;
    std::memcpy(bytes.data() + at, &word, sizeof(word));
  }
  if (offset >= kFirst && (offset - kFirst) % kStep == 0 &&
      offset < kFirst + kCounted * kStep) {
    std::memset(bytes.data(), 0, sizeof(uint32_t));
  }
  return bytes;
}

// The memory in which Counting() begins.
std::shared_ptr<const memory::MemoryImage> FirstImage(
    const test::TinyGuest& guest) {
  auto file = memory::MemoryFile::Create("test", kMemory);
  REQUIRE(file.ok());
  const auto bytes = (*file)->Writable({0, kMemory});
  REQUIRE(bytes.ok());
  REQUIRE(::pread(guest.memfd.get(), bytes->data(), kFirst, 0) ==
          static_cast<ssize_t>(kFirst));
  for (uint64_t at = kFirst; at < kMemory; at += kPageBytes) {
    const auto noise = NoiseOf(at);
    std::memcpy(bytes->data() + at, noise.data(), kPageBytes);
  }
  REQUIRE((*file)->Seal().ok());
  auto image = memory::MemoryImage::FromFile(
      std::shared_ptr<memory::MemoryFile>(*std::move(file)));
  REQUIRE(image.ok());
  return *std::move(image);
}

std::vector<state::SavedSection> PauseAndSave(Machine& machine) {
  REQUIRE(machine.Pause().ok());
  auto sections = machine.Save();
  INFO(sections.status().ToString());
  REQUIRE(sections.ok());
  return *std::move(sections);
}

// How far the guest is: rounds that the first page has.
uint32_t RoundsOf(Machine& machine) {
  const auto value = machine.memory().Load<uint32_t>(memory::Gpa{kFirst});
  REQUIRE(value.ok());
  return *value;
}

// Lets the guest run until it has made `rounds`, or ends.
void RunUntilRound(Machine& machine, uint32_t rounds) {
  REQUIRE(machine.Start().ok());
  while (RoundsOf(machine) < rounds &&
         machine.state() == MachineState::kRunning) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

void CheckGoesToItsEnd(Machine& machine) {
  if (machine.state() != MachineState::kEnded) REQUIRE(machine.Start().ok());
  REQUIRE(machine.WaitForEnd(test::Deadline()));
  INFO(machine.exit()->detail);
  REQUIRE(machine.exit()->reason == EndReason::kPowerOff);
  uint64_t wrong = 0;
  for (uint64_t at = kFirst; at < kMemory; at += kPageBytes) {
    auto wanted = NoiseOf(at);
    if ((at - kFirst) % kStep == 0 && at < kFirst + kCounted * kStep) {
      std::memcpy(wanted.data(), &kRounds, sizeof(kRounds));
    }
    wrong += std::memcmp(machine.memory().host_base() + at, wanted.data(),
                         kPageBytes) != 0
                 ? 1
                 : 0;
  }
  CHECK(wrong == 0);
}

// Directories with a stored guest, and what it takes to start from them.
class Store {
 public:
  Store() {
    auto pool = snapshot::WorkerPool::Create(2);
    REQUIRE(pool.ok());
    pool_ = *std::move(pool);
  }

  StorageOptions options(Prefetch prefetch = Prefetch::kAll) const {
    return {.pool = pool_.get(), .durable = false, .prefetch = prefetch};
  }

  std::string Directory(const std::string& name) {
    const fs::path path = fs::path(directory_.path()) / name;
    fs::create_directory(path);
    return path.string();
  }

  // Stores a guest that has made some rounds.
  std::string StoreFirst() {
    const test::TinyGuest guest = test::MakeGuest(Counting(), kMemory);
    auto machine = test::MakeShell();
    REQUIRE(machine->Launch({.image = FirstImage(guest), .state = guest.state})
                .ok());
    RunUntilRound(*machine, 2);
    const auto sections = PauseAndSave(*machine);
    std::string to = Directory("first");
    const auto stored =
        StoreMachine(machine.get(), sections, nullptr, to, options());
    INFO(stored.status().ToString());
    REQUIRE(stored.ok());
    return to;
  }

  absl::StatusOr<Template> Load(const std::string& from, Prefetch prefetch,
                                Template parent = nullptr) {
    const auto role = parent == nullptr ? GuestTemplate::Role::kImage
                                        : GuestTemplate::Role::kGuest;
    return GuestTemplate::Load(from, role, std::move(parent),
                               options(prefetch));
  }

 private:
  const test::TemporaryDirectory directory_;
  std::unique_ptr<snapshot::WorkerPool> pool_;
};

Template Must(absl::StatusOr<Template> loaded) {
  INFO(loaded.status().ToString());
  REQUIRE(loaded.ok());
  return *std::move(loaded);
}

absl::Status LaunchFrom(Machine& shell, const Template& origin) {
  return shell.Launch(
      {.image = origin->memory(), .saved = &origin->sections()});
}

std::unique_ptr<Machine> Launched(const Template& origin) {
  auto machine = test::MakeShell();
  const absl::Status launched = LaunchFrom(*machine, origin);
  INFO(launched.ToString());
  REQUIRE(launched.ok());
  return machine;
}

fs::path ChunksIn(const std::string& directory) {
  for (const auto& entry : fs::directory_iterator(directory)) {
    if (entry.path().extension() == ".chunks") return entry.path();
  }
  FAIL("no chunks");
  return {};
}

// Damages a byte at `part` of the file's length.
void Damage(const fs::path& file, double part) {
  const auto at = static_cast<std::streamoff>(
      static_cast<double>(fs::file_size(file)) * part);
  std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
  stream.seekg(at);
  const auto byte = static_cast<char>(stream.get());
  stream.seekp(at);
  stream.put(static_cast<char>(~byte));
  REQUIRE(stream.good());
}

bool IsRefused() {
  const absl::Status status = memory::Userfault::Open().status();
  if (status.ok()) return false;
  WARN("nothing was looked at: " << status.ToString());
  return true;
}

TEST_CASE("A guest goes on while its memory is read, and misses nothing") {
  const auto prefetch =
      GENERATE(Prefetch::kLazy, Prefetch::kHotSet, Prefetch::kAll);
  Store store;
  const std::string first = store.StoreFirst();
  const Template origin = Must(store.Load(first, prefetch));
  const auto machine = Launched(origin);
  // Files that are open may go.
  fs::remove_all(first);
  CheckGoesToItsEnd(*machine);
  // What was only read is nobody's own: the guest's are what it wrote, and the
  // page tables.
  const auto own = memory::OwnPages(machine->memory());
  REQUIRE(own.ok());
  CHECK(memory::TotalBytes(*own) <= (kCounted + 16) * kPageBytes);
  CHECK(origin->memory_status().ok());
}

TEST_CASE("Guests of one image that is being read share what comes") {
  Store store;
  const Template image = Must(store.Load(store.StoreFirst(), Prefetch::kLazy));
  const auto one = Launched(image);
  const auto other = Launched(image);
  REQUIRE(one->Start().ok());
  CheckGoesToItsEnd(*other);
  CheckGoesToItsEnd(*one);
  const auto allocated = image->memory()->AllocatedBytes();
  REQUIRE(allocated.ok());
  CHECK(*allocated <= kMemory);
}

TEST_CASE("A guest that is stored while it is read loses nothing") {
  const auto prefetch = GENERATE(Prefetch::kLazy, Prefetch::kHotSet);
  const bool removed = GENERATE(false, true);
  Store store;
  const Template image = Must(store.Load(store.StoreFirst(), prefetch));
  // Its own state over the image's, twice.
  std::string from = store.Directory("second");
  {
    const auto machine = Launched(image);
    RunUntilRound(*machine, 3);
    const auto sections = PauseAndSave(*machine);
    REQUIRE(StoreMachine(machine.get(), sections, image.get(), from,
                         store.options())
                .ok());
  }
  for (const uint32_t rounds : {5U, 7U}) {
    const Template origin = Must(store.Load(from, prefetch, image));
    const auto machine = Launched(origin);
    if (removed) fs::remove_all(from);
    // At once in the first case: most is missing then.
    if (rounds > 5) RunUntilRound(*machine, rounds);
    const auto sections = PauseAndSave(*machine);
    const std::string to = store.Directory("at" + std::to_string(rounds));
    const auto stored = StoreMachine(machine.get(), sections, origin.get(), to,
                                     store.options());
    INFO(stored.status().ToString());
    REQUIRE(stored.ok());
    from = to;
  }
  const auto machine = Launched(Must(store.Load(from, Prefetch::kAll, image)));
  CHECK(RoundsOf(*machine) >= 3);
  CheckGoesToItsEnd(*machine);
}

bool IsFull(const GuestTemplate& guest) {
  const auto& files = guest.memory()->files();
  return std::all_of(files.begin(), files.end(), [](const auto& file) {
    return file->pager() == nullptr || file->pager()->full();
  });
}

TEST_CASE("A guest that is copied while it is read has whole children") {
  const auto prefetch = GENERATE(Prefetch::kLazy, Prefetch::kHotSet);
  const auto memory =
      GENERATE(MachineCapture::Memory::kShared, MachineCapture::Memory::kApart);
  Store store;
  const Template image = Must(store.Load(store.StoreFirst(), prefetch));
  const auto machine = Launched(image);
  REQUIRE(machine->Start().ok());
  // It would come to its end while a slow machine reads the rest.
  REQUIRE(machine->Pause().ok());
  auto capture =
      MachineCapture::Prepare(machine.get(), image, memory, store.options());
  REQUIRE(capture.ok());
  // One that is to be stored does not wait for what it does not hold.
  if (prefetch == Prefetch::kLazy && image->no_paging().ok()) {
    CHECK(IsFull(*image) == (memory == MachineCapture::Memory::kShared));
  }
  REQUIRE(machine->Start().ok());
  REQUIRE((*capture)->Take(machine.get(), PauseAndSave(*machine)).ok());
  REQUIRE(machine->Start().ok());
  const auto captured = Must((*capture)->Finish());
  const auto child = Launched(captured);
  CheckGoesToItsEnd(*child);
  CheckGoesToItsEnd(*machine);
  const std::string to = store.Directory("copy");
  REQUIRE(captured->Store(to, store.options()).ok());
  CheckGoesToItsEnd(*Launched(Must(store.Load(to, Prefetch::kLazy, image))));
}

TEST_CASE("A damaged frame that is found late ends the guest, never wrong") {
  if (IsRefused()) return;
  const auto prefetch = GENERATE(Prefetch::kLazy, Prefetch::kHotSet);
  Store store;
  const std::string first = store.StoreFirst();
  Damage(ChunksIn(first), 0.3);
  CHECK(absl::IsDataLoss(store.Load(first, Prefetch::kAll).status()));
  const Template origin = Must(store.Load(first, prefetch));
  const auto machine = test::MakeShell();
  if (LaunchFrom(*machine, origin).ok() && machine->Start().ok()) {
    REQUIRE(machine->WaitForEnd(test::Deadline()));
  } else {
    // Found before the guest could run.
    REQUIRE(prefetch == Prefetch::kHotSet);
  }
  const absl::Status lost = origin->memory_status();
  CHECK(absl::IsDataLoss(lost));
  CHECK(std::string(lost.message()).find(".chunks frame") != std::string::npos);
  if (const auto exit = machine->exit(); exit.has_value()) {
    CHECK(exit->reason == EndReason::kMemoryLost);
    CHECK(exit->detail == lost.ToString());
  }
  machine->Stop();
  SECTION("nothing is made of it any more") {
    CHECK(absl::IsDataLoss(LaunchFrom(*test::MakeShell(), origin)));
    CHECK(absl::IsDataLoss(
        origin->Store(store.Directory("copy"), store.options()).status()));
    CHECK(absl::IsDataLoss(origin->Fetch(store.options())));
  }
}

TEST_CASE("A damaged frame ends a guest that has not touched it") {
  if (IsRefused()) return;
  Store store;
  const auto machine = test::MakeShell();
  const test::TinyGuest guest = test::MakeGuest(test::BusyLoop(), kMemory);
  REQUIRE(
      machine->Launch({.image = FirstImage(guest), .state = guest.state}).ok());
  const auto sections = PauseAndSave(*machine);
  const std::string first = store.Directory("first");
  REQUIRE(StoreMachine(machine.get(), sections, nullptr, first, store.options())
              .ok());
  Damage(ChunksIn(first), 0.999);
  const Template origin = Must(store.Load(first, Prefetch::kLazy));
  const auto spinning = Launched(origin);
  REQUIRE(spinning->Start().ok());
  CHECK(absl::IsDataLoss(origin->Fetch(store.options())));
  REQUIRE(spinning->WaitForEnd(test::Deadline()));
  CHECK(spinning->exit()->reason == EndReason::kMemoryLost);
  // It is not stored either.
  CHECK(absl::IsDataLoss(StoreMachine(spinning.get(), sections, origin.get(),
                                      store.Directory("never"), store.options())
                             .status()));
}

TEST_CASE("What is touched first is recorded, and stored first") {
  if (IsRefused()) return;
  Store store;
  const std::string first = store.StoreFirst();
  const Template recorded = Must(store.Load(first, Prefetch::kRecord));
  CheckGoesToItsEnd(*Launched(recorded));
  const std::vector<PageRange> touched = recorded->Touched();
  // Every page once, and those that the guest counts in in its order. It was
  // stopped somewhere among them.
  std::set<uint64_t> pages;
  std::vector<uint64_t> counted;
  for (const PageRange& range : touched) {
    CHECK(range.length == kPageBytes);
    CHECK(pages.insert(range.offset).second);
    if (range.offset >= kFirst && (range.offset - kFirst) % kStep == 0 &&
        range.offset < kFirst + kCounted * kStep) {
      counted.push_back(range.offset);
    }
  }
  REQUIRE(counted.size() == kCounted);
  std::rotate(counted.begin(), std::min_element(counted.begin(), counted.end()),
              counted.end());
  CHECK(std::is_sorted(counted.begin(), counted.end()));

  const Template image = Must(store.Load(first, Prefetch::kAll));
  const auto hot_first = [&](const std::string& directory) {
    const auto reader = snapshot::SnapshotReader::Open(directory);
    REQUIRE(reader.ok());
    std::vector<uint64_t> order;
    const auto frames = (*reader)->FramesInOrder();
    for (size_t i = 0; i < (*reader)->hot_frames(); ++i) {
      for (const auto& place : (*reader)->PlacesOf(frames[i])) {
        for (uint64_t at = 0; at < place.range.length; at += kPageBytes) {
          order.push_back(place.range.offset + at);
        }
      }
    }
    return order;
  };
  StorageOptions options = store.options();
  options.hot = touched;
  const std::string to = store.Directory("trained");
  REQUIRE(image->Store(to, options).ok());
  std::vector<uint64_t> wanted;
  wanted.reserve(touched.size());
  for (const PageRange& range : touched) wanted.push_back(range.offset);
  CHECK(hot_first(to) == wanted);

  // A pager that has the rest brought knows that these are there.
  std::shared_ptr<const snapshot::SnapshotReader> reader =
      *snapshot::SnapshotReader::Open(to);
  std::vector<uint64_t> there;
  for (const PageRange& range :
       StoredPages(reader, nullptr, Bringing::kRest).There()) {
    for (uint64_t at = 0; at < range.length; at += kPageBytes) {
      there.push_back(range.offset + at);
    }
  }
  CHECK(there == wanted);
  CHECK(StoredPages(reader, nullptr, Bringing::kAll).There().empty());

  // A guest of that image stores what it has of them first, too.
  const Template trained = Must(store.Load(to, Prefetch::kHotSet));
  const auto machine = Launched(trained);
  CheckGoesToItsEnd(*Launched(trained));
  // Once through all pages, and more.
  RunUntilRound(*machine, RoundsOf(*machine) + 2);
  const std::string own = store.Directory("own");
  REQUIRE(StoreMachine(machine.get(), PauseAndSave(*machine), trained.get(),
                       own, store.options())
              .ok());
  CHECK(hot_first(own).size() >= kCounted);
  const Template slept = Must(store.Load(own, Prefetch::kHotSet, trained));
  CheckGoesToItsEnd(*Launched(slept));

  // Woken, it has its own copies of those before it runs, and reads as before.
  const auto own_of = [](Machine& woken) {
    const auto ranges = memory::OwnPages(woken.memory());
    REQUIRE(ranges.ok());
    return memory::TotalBytes(*ranges);
  };
  const auto woken = Launched(slept);
  CHECK(own_of(*woken) < kCounted * kPageBytes);
  // A copy, beside which others may be, has none.
  using Access = memory::GuestMemory::Access;
  slept->Populate(&woken->memory(), Access::kRead);
  CHECK(own_of(*woken) < kCounted * kPageBytes);
  slept->Populate(&woken->memory(), Access::kWrite);
  CHECK(own_of(*woken) >= kCounted * kPageBytes);
  CHECK(own_of(*woken) <= (hot_first(own).size() + 16) * kPageBytes);
  CheckGoesToItsEnd(*woken);

  // Not when the caller wanted nothing ahead; and guests of an image share.
  const Template lazy = Must(store.Load(own, Prefetch::kLazy, trained));
  for (const Template& origin : {lazy, trained}) {
    const auto launched = Launched(origin);
    const uint64_t before = own_of(*launched);
    origin->Populate(&launched->memory(), Access::kWrite);
    CHECK(own_of(*launched) == before);
  }
}

TEST_CASE("Damage to state or index is found before anything runs") {
  Store store;
  const std::string first = store.StoreFirst();
  const double part = GENERATE(0.001, 0.3, 0.999);
  Damage(fs::path(first) / "memory.catnap", part);
  CHECK(absl::IsDataLoss(store.Load(first, Prefetch::kLazy).status()));
}

TEST_CASE("Waking and ending a hundred times takes nothing for good") {
  Store store;
  const std::string first = store.StoreFirst();
  std::optional<size_t> threads;
  std::optional<size_t> descriptors;
  for (int i = 0; i < 100; ++i) {
    {
      const Template origin = Must(
          store.Load(first, i % 2 == 0 ? Prefetch::kLazy : Prefetch::kHotSet));
      const auto machine = Launched(origin);
      REQUIRE(machine->Start().ok());
    }
    if (!threads.has_value()) {
      threads = test::OwnThreads().size();
      descriptors = test::OpenDescriptors();
    }
    REQUIRE(test::OwnThreadsWithin(*threads).size() <= *threads);
    REQUIRE(test::OpenDescriptors() == *descriptors);
  }
}

TEST_CASE("Where userfaultfd is refused all is read at once, and it is told",
          "[.refused_userfaultfd]") {
  Store store;
  const Template origin = Must(store.Load(
      store.StoreFirst(), GENERATE(Prefetch::kLazy, Prefetch::kHotSet)));
  CHECK(std::string(origin->no_paging().message()).find("userfaultfd") !=
        std::string::npos);
  CheckGoesToItsEnd(*Launched(origin));
}

}  // namespace
}  // namespace catnap::vmm
