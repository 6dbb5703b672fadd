#include <catch2/catch.hpp>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <string>

#include "catnap/catnap.h"
#include "linux/busybox_root.h"
#include "linux/microvm_shell.h"

// MicroVMs that run while their memory is still being read, by the public API.

namespace catnap {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using test::Sh;

void Must(const absl::Status& status) {
  INFO(status.ToString());
  REQUIRE(status.ok());
}

// Damages a byte in the middle of the largest file of a MicroVM's memory: among
// the pages of a large file in the guest.
void DamageMemoryOf(const std::string& id, const fs::path& state) {
  fs::path largest;
  for (const auto& entry : fs::recursive_directory_iterator(state)) {
    const fs::path& path = entry.path();
    if (path.extension() == ".chunks" &&
        path.string().find(id) != std::string::npos &&
        (largest.empty() || fs::file_size(path) > fs::file_size(largest))) {
      largest = path;
    }
  }
  REQUIRE_FALSE(largest.empty());
  const auto at = static_cast<std::streamoff>(fs::file_size(largest) / 2);
  std::fstream stream(largest, std::ios::in | std::ios::out | std::ios::binary);
  stream.seekg(at);
  const auto byte = static_cast<char>(stream.get());
  stream.seekp(at);
  stream.put(static_cast<char>(~byte));
  REQUIRE(stream.good());
}

TEST_CASE("A MicroVM wakes before its memory is read, and has all of it") {
  const test::RoomForFiles files;
  const auto& room = files.path();
  auto host = Host::Open({.state_dir = room / "state"});
  REQUIRE(host.ok());
  REQUIRE(Host::Probe().userfaultfd);
  ImageSpec spec =
      ImageSpec::FromDirectory("lazy", test::MakeBusyboxRoot(room));
  spec.memory_bytes = uint64_t{256} << 20;
  spec.disk_bytes = uint64_t{1} << 30;
  spec.entrypoint = {
      "/bin/sh", "-c",
      "/bin/busybox mount -t tmpfs none /tmp; i=0; "
      "while :; do i=$((i + 1)); echo $i >/tmp/next; "
      "/bin/busybox mv /tmp/next /tmp/count; /bin/sleep 0.3; done"};
  const auto image = Image::Build(**host, spec);
  INFO(image.status().ToString());
  REQUIRE(image.ok());

  for (const Prefetch prefetch :
       {Prefetch::kLazy, Prefetch::kHotSet, Prefetch::kAll}) {
    RunOptions options;
    options.memory = prefetch;
    options.id = "memory-" + std::to_string(static_cast<int>(prefetch));
    const auto vm = MicroVM::Run(**host, *image, options);
    INFO(vm.status().ToString());
    REQUIRE(vm.ok());
    const std::string sum =
        Sh(*vm,
           "dd if=/dev/urandom of=/tmp/file bs=1M count=12 2>/dev/null; "
           "md5sum /tmp/file");
    const std::string count = Sh(*vm, "cat /tmp/count");
    Must(vm->Suspend());
    Must(vm->Resume());
    // Asleep again while most of it is missing, with some that is new.
    Sh(*vm, "echo new >/tmp/new");
    Must(vm->Suspend());
    Must(vm->Resume());
    CHECK(Sh(*vm, "md5sum /tmp/file") == sum);
    CHECK(Sh(*vm, "cat /tmp/new") == "new\n");
    CHECK(std::stoi(Sh(*vm, "cat /tmp/count")) >= std::stoi(count));
    // A copy made of it is whole.
    const auto forks = vm->Fork(1);
    INFO(forks.status().ToString());
    REQUIRE(forks.ok());
    CHECK(Sh(forks->front(), "md5sum /tmp/file") == sum);
    Must(forks->front().Terminate());

    // Damage: before it wakes where all is read, else when it is found.
    Must(vm->Suspend());
    DamageMemoryOf(vm->id(), room / "state");
    const absl::Status woken = vm->Resume();
    if (prefetch == Prefetch::kAll) {
      CHECK(absl::IsDataLoss(woken));
      CHECK(vm->state() == MicroVMState::kSuspended);
    } else {
      // In the background it may be found before the agent has answered.
      CHECK((woken.ok() || ReasonOf(woken) == ErrorReason::kVmTerminated));
      CHECK_FALSE(Sh(*vm, "md5sum /tmp/file") == sum);
      Must(vm->WaitForState(MicroVMState::kTerminated, 60s).status());
      CHECK(vm->termination_reason() == TerminationReason::kStorage);
      CHECK_THAT(vm->state_reason(),
                 Catch::Contains("DATA_LOSS") && Catch::Contains(".chunks"));
    }
  }
  CHECK((*host)->Close({.running = AtClose::kTerminate}).ok());
}

}  // namespace
}  // namespace catnap
