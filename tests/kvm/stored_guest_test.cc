// What is stored of a MicroVM with a real machine, and is not as it was left.
#include <fcntl.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <catch2/catch.hpp>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/status.h"
#include "base/unique_fd.h"
#include "catnap/catnap.h"
#include "catnap/errors.h"
#include "runtime/host_core.h"
#include "support/temporary_directory.h"
#include "support/writer_factory.h"
#include "vmm/guest_template.h"

namespace catnap {
namespace {

using test::WriterFactory;
using test::WriterProgress;

constexpr char kId[] = "writer";

// A Host with an image of guests that write, each looked at when it wakes and
// before it is stored.
class WriterHost {
 public:
  // In a directory of its own, in `parent`.
  explicit WriterHost(const std::filesystem::path& parent =
                          std::filesystem::temp_directory_path())
      : directory_(parent) {
    const absl::Status made = test::MakeWriterImage(state_ / "images");
    INFO(made.ToString());
    REQUIRE(made.ok());
    Open();
  }

  void Open() {
    auto core = runtime::HostCore::Open(
        {.state_dir = state_}, [this](base::Clock* clock) {
          WriterFactory::Hooks hooks;
          hooks.on_woken = [this](runtime::RunningMachine& machine) {
            ++looks;
            return Check(machine, &woken);
          };
          hooks.on_standing =
              [this](runtime::RunningMachine& machine) -> absl::Status {
            CATNAP_RETURN_IF_ERROR(machine.machine().Save().status());
            return Check(machine, &slept);
          };
          auto made = std::make_unique<WriterFactory>(clock, std::move(hooks));
          factory_ = made.get();
          return made;
        });
    INFO(core.status().ToString());
    REQUIRE(core.ok());
    host_ = runtime::HostCore::MakeHost(*std::move(core));
  }
  void Close() {
    const absl::Status closed = host_->Close();
    INFO(closed.ToString());
    REQUIRE(closed.ok());
    host_.reset();
  }

  MicroVM Run(const std::string& id = kId) {
    auto image = host_->GetImage(test::kWriterImage);
    REQUIRE(image.ok());
    auto vm = MicroVM::Run(*host_, *image, {.id = id});
    INFO(vm.status().ToString());
    REQUIRE(vm.ok());
    REQUIRE(factory_->WaitForSteps(id, 5));
    return *std::move(vm);
  }

  Host& host() { return *host_; }
  WriterFactory& factory() { return *factory_; }
  const std::filesystem::path& state() const { return state_; }
  // The one snapshot of a MicroVM that sleeps.
  std::filesystem::path SnapshotOf(const std::string& id) const {
    for (const auto& entry :
         std::filesystem::directory_iterator(state_ / "vms" / id)) {
      const std::string name = entry.path().filename().string();
      if (name.front() == 's') return entry.path();
    }
    return {};
  }

  // How often one was about to run.
  int looks = 0;
  WriterProgress woken, slept;

 private:
  static absl::Status Check(runtime::RunningMachine& machine,
                            WriterProgress* at) {
    CATNAP_ASSIGN_OR_RETURN(
        *at, test::CheckWriter(machine.machine().memory(), machine.root().get(),
                               /*whole=*/true));
    return absl::OkStatus();
  }

  const test::TemporaryDirectory directory_;
  const std::filesystem::path state_ =
      std::filesystem::path(directory_.path()) / "state";
  WriterFactory* factory_ = nullptr;
  std::shared_ptr<Host> host_;
};

std::vector<std::string> NamesIn(const std::filesystem::path& directory) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

TEST_CASE(
    "A stored guest without any one of its files stays asleep, until it "
    "is back") {
  WriterHost host;
  const MicroVM vm = host.Run();
  // More than one chunk file, and more than one layer.
  for (int i = 0; i < 3; ++i) {
    REQUIRE(vm.Suspend().ok());
    REQUIRE(vm.Resume().ok());
    REQUIRE(host.factory().WaitForSteps(kId, 5));
  }
  REQUIRE(vm.Suspend().ok());
  const auto directory = host.SnapshotOf(kId);
  const auto aside = host.state() / "aside";
  const std::vector<std::string> names = NamesIn(directory);
  const int looks = host.looks;
  const auto layers =
      std::count_if(names.begin(), names.end(), [](const std::string& name) {
        return name.find(".layer") != std::string::npos;
      });
  CHECK(layers >= 3);
  CHECK(names.size() - static_cast<size_t>(layers) >= 3);
  for (const std::string& name : names) {
    CAPTURE(name);
    std::filesystem::rename(directory / name, aside);
    const absl::Status refused = vm.Resume();
    INFO(refused.ToString());
    CHECK((absl::IsDataLoss(refused) || absl::IsNotFound(refused)));
    CHECK(vm.state() == MicroVMState::kSuspended);
    CHECK(host.looks == looks);  // No guest was to run on what is left.
    std::filesystem::rename(aside, directory / name);
  }
  // All of its layers at once.
  std::filesystem::create_directory(aside);
  for (const std::string& name : names) {
    if (name.find(".layer") != std::string::npos) {
      std::filesystem::rename(directory / name, aside / name);
    }
  }
  CHECK(absl::IsDataLoss(vm.Resume()));
  CHECK(host.looks == looks);
  for (const std::string& name : NamesIn(aside)) {
    std::filesystem::rename(aside / name, directory / name);
  }
  const absl::Status woken = vm.Resume();
  INFO(woken.ToString());
  REQUIRE(woken.ok());
  CHECK(host.woken == host.slept);
  CHECK(host.factory().WaitForSteps(kId, 5));
}

TEST_CASE("Verify() finds a layer of the disk that is missing or damaged") {
  WriterHost host;
  const MicroVM vm = host.Run();
  REQUIRE(vm.Suspend().ok());
  REQUIRE(vm.Resume().ok());
  REQUIRE(host.factory().WaitForSteps(kId, 5));
  const auto snapshot = vm.TakeSnapshot({.name = "one"});
  INFO(snapshot.status().ToString());
  REQUIRE(snapshot.ok());
  REQUIRE(snapshot->Verify().ok());
  const auto guest = host.state() / "snapshots" / snapshot->id() / "guest";
  std::vector<std::string> layers;
  for (const std::string& name : NamesIn(guest)) {
    if (name.find(".layer") != std::string::npos) layers.push_back(name);
  }
  REQUIRE(layers.size() >= 2);
  const auto top = guest / layers.back();
  const auto aside = host.state() / "aside";
  SECTION("missing") { std::filesystem::rename(top, aside); }
  SECTION("another one's") {
    std::filesystem::rename(top, aside);
    std::filesystem::copy_file(guest / layers.front(), top);
  }
  SECTION("cut") {
    // Not the file that the running MicroVM has a link to.
    std::filesystem::copy_file(top, aside);
    std::filesystem::rename(aside, top);
    std::filesystem::resize_file(top, 12'288);
  }
  const absl::Status verified = snapshot->Verify();
  INFO(verified.ToString());
  CHECK(absl::IsDataLoss(verified));
  const int looks = host.looks;
  CHECK_FALSE(MicroVM::Restore(host.host(), *snapshot, {.id = "copy"}).ok());
  CHECK(host.looks == looks);
  CHECK(host.factory().WaitForSteps(kId, 5));
}

TEST_CASE("A guest is stored whole after a copy of it that failed") {
  WriterHost host;
  const MicroVM vm = host.Run();
  // With and without a snapshot that it was woken from.
  const bool woken = GENERATE(false, true);
  if (woken) {
    REQUIRE(vm.Suspend().ok());
    REQUIRE(vm.Resume().ok());
    REQUIRE(host.factory().WaitForSteps(kId, 5));
  }
  {
    // It is given up when its memory is the copy's already.
    const auto running = host.factory().machine(kId);
    vmm::Machine& machine = running->machine();
    const auto before = machine.memory().image();
    auto capture = vmm::MachineCapture::Prepare(
        &machine, running->origin(), vmm::MachineCapture::Memory::kShared);
    REQUIRE(capture.ok());
    REQUIRE(machine.Pause().ok());
    auto sections = machine.Save();
    REQUIRE(sections.ok());
    const absl::Status taken = (*capture)->Take(&machine, *std::move(sections));
    REQUIRE(taken.ok());
    CHECK(machine.memory().image() != before);
    REQUIRE(machine.Start().ok());
  }
  REQUIRE(host.factory().WaitForSteps(kId, 5));
  for (int i = 0; i < 2; ++i) {
    CAPTURE(i);
    REQUIRE(vm.Suspend().ok());
    const absl::Status status = vm.Resume();
    INFO(status.ToString());
    REQUIRE(status.ok());
    CHECK(host.woken == host.slept);
    REQUIRE(host.factory().WaitForSteps(kId, 5));
  }
}

TEST_CASE("A guest keeps its pages when a copy of it is stored") {
  WriterHost host;
  const MicroVM vm = host.Run();
  REQUIRE(vm.Suspend().ok());
  REQUIRE(vm.Resume().ok());
  REQUIRE(host.factory().WaitForSteps(kId, 5));
  const auto running = host.factory().machine(kId);
  const auto image = running->machine().memory().image();
  const auto stored = vm.TakeSnapshot({.name = "stored"});
  REQUIRE(stored.ok());
  CHECK(running->machine().memory().image() == image);
  // Guests start from this one: they share what the guest goes on over.
  const auto kept = vm.TakeSnapshot({.where = SnapshotOptions::Where::kMemory});
  REQUIRE(kept.ok());
  CHECK(running->machine().memory().image() != image);
  REQUIRE(host.factory().WaitForSteps(kId, 5));
  REQUIRE(vm.Suspend().ok());
  for (const auto& snapshot : {*stored, *kept}) {
    const auto copy = MicroVM::Restore(host.host(), snapshot, {.id = "copy"});
    INFO(copy.status().ToString());
    REQUIRE(copy.ok());
    CHECK(host.factory().WaitForSteps("copy", 5));
    REQUIRE(copy->Terminate().ok());
  }
  REQUIRE(vm.Resume().ok());
  CHECK(host.factory().WaitForSteps(kId, 5));
}

TEST_CASE("A suspend after a stored copy writes only what changed") {
  WriterHost host;
  const MicroVM vm = host.Run();
  REQUIRE(vm.Suspend().ok());
  REQUIRE(vm.Resume().ok());
  REQUIRE(host.factory().WaitForSteps(kId, 5));
  const uint64_t first = vm.GetUsage().snapshot_bytes_written;
  REQUIRE(vm.TakeSnapshot({.name = "one"}).ok());
  REQUIRE(vm.Suspend().ok());
  const uint64_t second = vm.GetUsage().snapshot_bytes_written - first;
  CAPTURE(first, second);
  CHECK(second < first);
}

TEST_CASE("A guest does not wake over the memory of another image") {
  WriterHost host;
  WriterHost other;
  {
    const MicroVM vm = host.Run();
    REQUIRE(vm.Suspend().ok());
  }
  const auto guest_of = [](const WriterHost& of) {
    return of.state() / "images" / test::kWriterImage / "1.0" / "guest";
  };
  const auto aside = host.state() / "aside";
  host.Close();
  std::filesystem::rename(guest_of(host), aside);
  std::filesystem::copy(guest_of(other), guest_of(host),
                        std::filesystem::copy_options::recursive);
  host.Open();
  const int looks = host.looks;
  {
    const auto vm = host.host().GetMicroVM(kId);
    REQUIRE(vm.ok());
    const absl::Status refused = vm->Resume();
    CHECK(absl::IsFailedPrecondition(refused));
    CHECK_THAT(refused.ToString(), Catch::Contains("image"));
    CHECK(vm->state() == MicroVMState::kSuspended);
  }
  CHECK(host.looks == looks);
  host.Close();
  std::filesystem::remove_all(guest_of(host));
  std::filesystem::rename(aside, guest_of(host));
  host.Open();
  const auto vm = host.host().GetMicroVM(kId);
  REQUIRE(vm.ok());
  const absl::Status woken = vm->Resume();
  INFO(woken.ToString());
  REQUIRE(woken.ok());
  CHECK(host.woken == host.slept);
}

// A file system of 64 MiB, where that may be had.
class SmallDisk {
 public:
  SmallDisk()
      : mounted_(::mount("tmpfs", directory_.path().c_str(), "tmpfs", 0,
                         "size=64m") == 0) {}
  ~SmallDisk() {
    if (mounted_) ::umount2(directory_.path().c_str(), MNT_DETACH);
  }
  SmallDisk(const SmallDisk&) = delete;
  SmallDisk& operator=(const SmallDisk&) = delete;

  bool mounted() const { return mounted_; }
  const std::string& path() const { return directory_.path(); }
  // Leaves so many bytes free, about.
  void Fill(uint64_t left) const {
    const base::UniqueFd file(
        ::open(Filler().c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    REQUIRE(file.valid());
    // A guest writes meanwhile, and may be faster.
    bool filled = false;
    for (int i = 0; i < 1000 && !filled; ++i) {
      struct statvfs info {};
      REQUIRE(::statvfs(path().c_str(), &info) == 0);
      const uint64_t free = info.f_bavail * info.f_frsize;
      filled =
          free <= left ||
          ::fallocate(file.get(), 0, 0, static_cast<off_t>(free - left)) == 0;
    }
    REQUIRE(filled);
  }
  void Empty() const { std::filesystem::remove(Filler()); }

 private:
  std::string Filler() const { return directory_.File("filler"); }

  const test::TemporaryDirectory directory_;
  const bool mounted_;
};

TEST_CASE("A suspend on a full disk leaves the guest running, however full") {
  const SmallDisk disk;
  if (!disk.mounted()) {
    WARN("not tried: this process may not mount a tmpfs");
    return;
  }
  WriterHost host(disk.path());
  const MicroVM vm = host.Run();
  REQUIRE(vm.Suspend().ok());
  REQUIRE(vm.Resume().ok());
  int refused = 0;
  for (const uint64_t left_kib : {0U, 8U, 32U, 64U, 128U, 256U, 512U}) {
    CAPTURE(left_kib);
    REQUIRE(host.factory().WaitForSteps(kId, 20));
    disk.Fill(left_kib << 10);
    const absl::Status slept = vm.Suspend();
    INFO(slept.ToString());
    if (!slept.ok()) {
      ++refused;
      CHECK(absl::IsResourceExhausted(slept));
      CHECK(vm.state() == MicroVMState::kRunning);
    }
    disk.Empty();
    if (slept.ok()) REQUIRE(vm.Resume().ok());
  }
  CHECK(refused > 0);
  REQUIRE(host.factory().WaitForSteps(kId, 20));
  const absl::Status slept = vm.Suspend();
  INFO(slept.ToString());
  REQUIRE(slept.ok());
  REQUIRE(vm.Resume().ok());
  CHECK(host.woken == host.slept);
}

TEST_CASE("A snapshot that is being saved is not there, or whole") {
  WriterHost host;
  const MicroVM vm = host.Run();
  const auto snapshot = vm.TakeSnapshot();
  REQUIRE(snapshot.ok());
  const auto to = host.state() / "saved";
  std::atomic<bool> ended{false};
  absl::Status saved;
  std::thread saver([&] {
    saved = snapshot->Save(to);
    ended = true;
  });
  bool last = false;
  int found = 0;
  while (!last) {
    last = ended;  // One more look when it is there for certain.
    const auto loaded = Snapshot::Load(host.host(), to);
    if (loaded.ok()) {
      ++found;
      const absl::Status whole = loaded->Verify();
      INFO(whole.ToString());
      CHECK(whole.ok());
    } else {
      INFO(loaded.status().ToString());
      CHECK(absl::IsNotFound(loaded.status()));
    }
  }
  saver.join();
  INFO(saved.ToString());
  CHECK(saved.ok());
  CHECK(found > 0);
}

TEST_CASE("A state directory is one process's, until that is gone") {
  const test::TemporaryDirectory directory;
  const auto state = std::filesystem::path(directory.path()) / "state";
  std::array<int, 2> opened{};
  REQUIRE(::pipe2(opened.data(), O_CLOEXEC) == 0);
  const pid_t child = ::fork();  // While there are no threads.
  if (child == 0) {
    const auto host = Host::Open({.state_dir = state});
    const char tells = host.ok() ? 'y' : 'n';
    if (::write(opened[1], &tells, 1) != 1) ::_exit(1);
    for (;;) ::pause();
  }
  REQUIRE(child > 0);
  char tells = 0;
  CHECK(::read(opened[0], &tells, 1) == 1);
  CHECK(tells == 'y');
  const auto refused = Host::Open({.state_dir = state});
  CHECK(ReasonOf(refused.status()) == ErrorReason::kStateDirInUse);
  ::kill(child, SIGKILL);
  REQUIRE(::waitpid(child, nullptr, 0) == child);
  const auto host = Host::Open({.state_dir = state});
  INFO(host.status().ToString());
  CHECK(host.ok());
  ::close(opened[0]);
  ::close(opened[1]);
}

}  // namespace
}  // namespace catnap
