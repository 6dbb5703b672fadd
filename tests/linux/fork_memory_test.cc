#include <algorithm>
#include <catch2/catch.hpp>
#include <chrono>
#include <cstdint>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "catnap/catnap.h"
#include "linux/busybox_root.h"
#include "linux/microvm_shell.h"

// What forks write to memory of their own, by the public API and /proc.

namespace catnap {
namespace {

using namespace std::chrono_literals;

// Later than copies that rest give memory back.
constexpr auto kSettled = 1500ms;

// What guests of this process wrote to pages of their own. Their memory is told
// by its advice: not copied by fork(), not dumped, no huge pages.
int64_t GuestsOwnKib() {
  std::ifstream smaps("/proc/self/smaps");
  int64_t all = 0;
  int64_t anonymous = 0;  // Of the mapping whose lines are read.
  for (std::string line; std::getline(smaps, line);) {
    if (line.rfind("Anonymous:", 0) == 0) {
      anonymous = std::stoll(line.substr(10));
    } else if (line.rfind("VmFlags:", 0) == 0) {  // The last line of each.
      const auto has = [&line](const char* flag) {
        return line.find(flag) != std::string::npos;
      };
      if (has(" dc") && has(" dd") && has(" nh")) all += anonymous;
    }
  }
  return all;
}

// The driver gives the device for sockets half of its receive buffers anew when
// as many are used: half a MiB, which every fork of a parent wrote that was
// about to.
TEST_CASE("Forks write the same, however much their parent was used before") {
  constexpr int kForks = 4;
  // The receive buffers would be 600 for each fork; the rest differs by some
  // pages.
  constexpr int64_t kMostDifferentKib = kForks * int64_t{400};
  const test::RoomForFiles files;
  const auto& room = files.path();
  auto host = Host::Open({.state_dir = room / "state"});
  REQUIRE(host.ok());
  ImageSpec spec =
      ImageSpec::FromDirectory("forks", test::MakeBusyboxRoot(room));
  spec.memory_bytes = uint64_t{128} << 20;
  spec.disk_bytes = uint64_t{1} << 30;
  const auto image = Image::Build(**host, spec);
  INFO(image.status().ToString());
  REQUIRE(image.ok());
  const auto parent = MicroVM::Run(**host, *image);
  INFO(parent.status().ToString());
  REQUIRE(parent.ok());

  // Five packets or so each, of which forks take as many: all that may be left
  // of 128 is seen.
  std::vector<int64_t> own_kib;
  for (int i = 0; i < 36; ++i) {
    for (int used = 0; used < 2; ++used) {
      REQUIRE(test::Sh(*parent, "echo used") == "used\n");
    }
    const auto forks = parent->Fork(kForks);
    INFO(forks.status().ToString());
    REQUIRE(forks.ok());
    std::this_thread::sleep_for(kSettled);
    // The parent's share is the same each time: it is the forks' template.
    own_kib.push_back(GuestsOwnKib());
    for (const MicroVM& fork : *forks) REQUIRE(fork.Terminate().ok());
  }
  CAPTURE(own_kib);
  const auto [least, most] =
      std::minmax_element(own_kib.begin(), own_kib.end());
  CHECK(*most - *least < kMostDifferentKib);
}

// A third or more of what a woken fork wrote holds what its parent has there:
// locks that were taken and let go of, counts that are as before.
TEST_CASE("Forks that rest give back the memory that they did not change") {
  constexpr int kForks = 4;
  const test::RoomForFiles files;
  const auto& room = files.path();
  auto host = Host::Open({.state_dir = room / "state"});
  REQUIRE(host.ok());
  ImageSpec spec =
      ImageSpec::FromDirectory("rest", test::MakeBusyboxRoot(room));
  spec.memory_bytes = uint64_t{128} << 20;
  spec.disk_bytes = uint64_t{1} << 30;
  const auto image = Image::Build(**host, spec);
  INFO(image.status().ToString());
  REQUIRE(image.ok());
  const auto parent = MicroVM::Run(**host, *image);
  REQUIRE(parent.ok());
  std::this_thread::sleep_for(kSettled);

  const auto forks = parent->Fork(kForks);
  INFO(forks.status().ToString());
  REQUIRE(forks.ok());
  // Their first half second is not over.
  const int64_t before_kib = GuestsOwnKib();
  std::this_thread::sleep_for(kSettled);
  const int64_t after_kib = GuestsOwnKib();
  CAPTURE(before_kib, after_kib);
  CHECK(after_kib < before_kib - kForks * int64_t{100});
  for (const MicroVM& fork : *forks) {
    CHECK(test::Sh(fork, "cat /proc/uptime > /tmp/up && sync && echo fine") ==
          "fine\n");
  }
}

}  // namespace
}  // namespace catnap
