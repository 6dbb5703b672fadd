#ifndef CATNAP_TESTS_SUPPORT_HOST_FIXTURE_H_
#define CATNAP_TESTS_SUPPORT_HOST_FIXTURE_H_

#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <utility>

#include "catnap/catnap.h"
#include "runtime/host_core.h"
#include "support/process_guests.h"
#include "support/temporary_directory.h"

namespace catnap::testing {

// A Host whose guests are processes, and an image.
class TestHost {
 public:
  explicit TestHost(ImageSpec spec = {}, HostOptions options = {}) {
    Open(std::move(options));
    const auto root = Root();
    std::filesystem::create_directories(root / "etc");
    std::ofstream(root / "etc" / "hostname") << "guest\n";
    if (spec.name.empty()) spec.name = "test";
    auto image = Build(spec);
    INFO(image.status().ToString());
    REQUIRE(image.ok());
    image_ = *std::move(image);
  }

  // Another Host of the same directories. REQUIRES: there is none.
  void Open(HostOptions options = {}) {
    options.state_dir = path_ / "state";
    auto core = runtime::HostCore::Open(
        std::move(options), [this](base::Clock* /*clock*/) {
          auto factory = std::make_unique<ProcessGuestFactory>(
              CATNAP_GUEST_AGENT, faults_);
          factory_ = factory.get();
          return factory;
        });
    INFO(core.status().ToString());
    REQUIRE(core.ok());
    host_ = runtime::HostCore::MakeHost(*std::move(core));
  }

  // Of this fixture's directory.
  absl::StatusOr<Image> Build(ImageSpec spec, BuildObserver* observer = nullptr,
                              CallOptions call = {}) {
    spec.source = DirectorySource{Root()};
    spec.disk_bytes = uint64_t{1} << 30;
    return Image::Build(*host_, spec, observer, std::move(call));
  }
  absl::StatusOr<Image> GetOrBuild(ImageSpec spec) {
    spec.source = DirectorySource{Root()};
    spec.disk_bytes = uint64_t{1} << 30;
    return Image::GetOrBuild(*host_, spec);
  }

  Host& host() { return *host_; }
  // Lets go of the Host itself.
  void Release() { host_.reset(); }
  // As if its process had been killed now: a copy of what is on the disk is
  // what the next Host finds.
  void Crash() {
    const auto state = path_ / "state";
    const auto copy = path_ / "copy";
    const auto names = {"vms", "snapshots"};
    for (const char* name : names) {
      if (!std::filesystem::exists(state / name)) continue;
      std::filesystem::create_directories(copy);
      std::filesystem::copy(state / name, copy / name,
                            std::filesystem::copy_options::recursive);
    }
    REQUIRE(host_->Close({.running = AtClose::kTerminate}).ok());
    host_.reset();
    for (const char* name : names) {
      std::filesystem::remove_all(state / name);
      if (std::filesystem::exists(copy / name)) {
        std::filesystem::rename(copy / name, state / name);
      }
    }
    std::filesystem::remove_all(copy);
    Open();
  }
  // Closes it, and opens another.
  void Restart() {
    const absl::Status closed = host_->Close();
    INFO(closed.ToString());
    REQUIRE(closed.ok());
    host_.reset();
    Open();
  }
  const Image& image() const { return image_; }
  ProcessGuestFactory& factory() { return *factory_; }
  GuestFaults& faults() { return *faults_; }
  ProcessGuest& guest() { return *factory_->latest(); }
  const std::filesystem::path& path() const { return path_; }

  MicroVM Run(RunOptions options = {}) {
    auto vm = MicroVM::Run(*host_, image_, std::move(options));
    INFO(vm.status().ToString());
    REQUIRE(vm.ok());
    return *std::move(vm);
  }
  MicroVM Get(const std::string& id) {
    auto vm = host_->GetMicroVM(id);
    INFO(vm.status().ToString());
    REQUIRE(vm.ok());
    return *std::move(vm);
  }

 private:
  std::filesystem::path Root() const { return path_ / "root"; }

  test::TemporaryDirectory directory_;
  const std::filesystem::path path_ = directory_.path();
  const std::shared_ptr<GuestFaults> faults_ = std::make_shared<GuestFaults>();
  ProcessGuestFactory* factory_ = nullptr;
  Image image_;
  std::shared_ptr<Host> host_;
};

inline Command Shell(const std::string& script) {
  Command command;
  command.argv = {"sh", "-c", script};
  return command;
}

}  // namespace catnap::testing

#endif  // CATNAP_TESTS_SUPPORT_HOST_FIXTURE_H_
