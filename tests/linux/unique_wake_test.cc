#include <algorithm>
#include <catch2/catch.hpp>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "catnap/catnap.h"
#include "linux/busybox_root.h"
#include "linux/microvm_shell.h"

// What programs that spin on two processors see of their machine's sleep, and
// of being copied: never a wrong time, and never what another copy drew.

namespace catnap {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using test::Sh;

constexpr char kDraws[] = "/run/draws";
// The emulated host reads its clocks that coarsely.
constexpr std::chrono::nanoseconds kBound = 50ms;

// As wake_probe.c writes it.
struct Sample {
  int64_t before;
  int64_t wall;
  int64_t after;
  uint64_t draw;
};

std::string GenerationOf(const MicroVM& vm) {
  return Sh(vm, "cat /run/catnap/generation").substr(0, 16);
}

// What the program on `cpu` sampled first since the machine's last wake.
std::vector<Sample> SamplesOf(const MicroVM& vm, int cpu) {
  const std::string path =
      std::string(kDraws) + "/" + GenerationOf(vm) + "." + std::to_string(cpu);
  const auto latest = std::chrono::steady_clock::now() + 60s;
  auto bytes = vm.ReadFile(path);
  while (!bytes.ok() && std::chrono::steady_clock::now() < latest) {
    std::this_thread::sleep_for(20ms);
    bytes = vm.ReadFile(path);
  }
  INFO(bytes.status().ToString());
  REQUIRE(bytes.ok());
  std::vector<Sample> samples(bytes->size() / sizeof(Sample));
  std::memcpy(samples.data(), bytes->data(), samples.size() * sizeof(Sample));
  REQUIRE(samples.size() == 1000);
  return samples;
}

// Wall clock minus monotonic clock of the machine now, which is right by this
// host's clock.
std::chrono::nanoseconds OffsetOf(const MicroVM& vm) {
  const auto now = [] {
    return std::chrono::nanoseconds(
        std::chrono::system_clock::now().time_since_epoch());
  };
  const std::chrono::nanoseconds before = now();
  std::istringstream answer(Sh(vm, "/bin/wake_probe time"));
  const std::chrono::nanoseconds after = now();
  int64_t wall = 0;
  int64_t monotonic = 0;
  answer >> wall >> monotonic;
  INFO(answer.str());
  CHECK(std::chrono::nanoseconds(wall) >= before - kBound);
  CHECK(std::chrono::nanoseconds(wall) <= after + kBound);
  return std::chrono::nanoseconds(wall - monotonic);
}

// Looks at what the machine's programs saw since its last wake, and adds what
// they drew.
void Check(const MicroVM& vm, std::set<uint64_t>* drawn) {
  const std::chrono::nanoseconds right = OffsetOf(vm);
  for (const int cpu : {0, 1}) {
    CAPTURE(vm.id(), cpu);
    int64_t worst = 0;
    int counted = 0;
    int repeated = 0;
    for (const Sample& sample : SamplesOf(vm, cpu)) {
      repeated += drawn->insert(sample.draw).second ? 0 : 1;
      // Somebody else had the processor: when the wall clock was read nobody
      // knows.
      if (sample.after - sample.before > 5'000'000) continue;
      ++counted;
      worst = std::max(worst, std::abs(sample.wall - sample.before -
                                       int64_t{right.count()}));
    }
    CHECK(repeated == 0);
    CHECK(counted > 500);
    CHECK(worst <= kBound.count());
  }
}

TEST_CASE(
    "After a wake no program sees a wrong time or draws what a copy did") {
  const test::RoomForFiles files;
  const auto& room = files.path();
  auto host = Host::Open({.state_dir = room / "state"});
  REQUIRE(host.ok());
  const fs::path root = test::MakeBusyboxRoot(room);
  fs::copy_file(CATNAP_WAKE_PROBE, root / "bin" / "wake_probe");
  ImageSpec spec = ImageSpec::FromDirectory("draws", root);
  spec.memory_bytes = uint64_t{256} << 20;
  spec.disk_bytes = uint64_t{1} << 30;
  spec.vcpus = 2;
  const std::string draws = kDraws;
  spec.entrypoint = {
      "/bin/sh", "-c",
      "mkdir " + draws + " && exec /bin/wake_probe draw " + draws};
  const auto image = Image::Build(**host, spec);
  INFO(image.status().ToString());
  REQUIRE(image.ok());

  std::set<uint64_t> drawn;
  // Both go on from the image's one guest.
  std::vector<MicroVM> vms;
  for (int i = 0; i < 2; ++i) {
    auto vm = MicroVM::Run(**host, *image);
    INFO(vm.status().ToString());
    REQUIRE(vm.ok());
    Check(*vm, &drawn);
    vms.push_back(*std::move(vm));
  }
  REQUIRE(vms.back().Terminate().ok());
  const MicroVM& vm = vms.front();
  const std::string sources = "/sys/devices/system/clocksource/clocksource0/";
  // tsc only where the processors' counters are in step; the machine's tests
  // have it everywhere.
  int tried = 0;
  std::istringstream available(
      Sh(vm, "cat " + sources + "available_clocksource"));
  for (std::string source; available >> source;) {
    if (source != "kvm-clock" && source != "tsc") continue;
    CAPTURE(source);
    std::string set = "cd ";
    set.append(sources).append("; echo ").append(source);
    set.append(" >current_clocksource; cat current_clocksource");
    CHECK(Sh(vm, set) == source + "\n");
    ++tried;
    REQUIRE(vm.Suspend().ok());
    std::this_thread::sleep_for(2s);
    const absl::Status awake = vm.Resume();
    INFO(awake.ToString());
    REQUIRE(awake.ok());
    Check(vm, &drawn);
    const auto forks = vm.Fork(2);
    INFO(forks.status().ToString());
    REQUIRE(forks.ok());
    for (const MicroVM& fork : *forks) {
      Check(fork, &drawn);
      CHECK(fork.Terminate().ok());
    }
  }
  CHECK(tried > 0);
  CHECK((*host)->Close({.running = AtClose::kTerminate}).ok());
}

}  // namespace
}  // namespace catnap
