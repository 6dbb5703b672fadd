// What is stored of a MicroVM with a real machine, and is not as it was left.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <catch2/catch.hpp>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "catnap/catnap.h"
#include "catnap/errors.h"
#include "runtime/host_core.h"
#include "support/temporary_directory.h"
#include "support/writing_guest.h"

namespace catnap {
namespace {

using test::WriterFactory;
using test::WriterProgress;

constexpr char kId[] = "writer";

// A Host with an image of guests that write, each looked at when it wakes and
// before it is stored.
class WriterHost {
 public:
  explicit WriterHost(bool image = true) {
    if (image) {
      const absl::Status made = test::MakeWriterImage(state_ / "images");
      INFO(made.ToString());
      REQUIRE(made.ok());
    }
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
    REQUIRE(core.ok());
    host_ = runtime::HostCore::MakeHost(*std::move(core));
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
    std::filesystem::resize_file(top, 4096 * 3);
  }
  const absl::Status verified = snapshot->Verify();
  INFO(verified.ToString());
  CHECK(absl::IsDataLoss(verified));
  const int looks = host.looks;
  CHECK_FALSE(MicroVM::Restore(host.host(), *snapshot, {.id = "copy"}).ok());
  CHECK(host.looks == looks);
  CHECK(host.factory().WaitForSteps(kId, 5));
}

}  // namespace
}  // namespace catnap
