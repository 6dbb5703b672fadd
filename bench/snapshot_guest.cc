#include "snapshot_guest.h"

#include <fmt/format.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <utility>

#include "base/status.h"
#include "guest.h"
#include "room.h"

namespace catnap::bench {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

// Resident bytes of guests' RAM in this process: private mappings that are
// neither inherited nor dumped nor of huge pages. No others are all of that. 0:
// one lies over a copy that was made of it.
uint64_t ResidentOfGuests() {
  std::ifstream maps("/proc/self/smaps");
  uint64_t resident = 0;
  uint64_t kib = 0;
  for (std::string line; std::getline(maps, line);) {
    if (line.find("p ") != std::string::npos &&
        line.find("/memfd:catnap-arena") != std::string::npos) {
      return 0;
    }
    if (line.rfind("Rss:", 0) == 0) {
      std::istringstream(line.substr(4)) >> kib;
    } else if (line.rfind("VmFlags:", 0) == 0) {
      const auto has = [&line](const char* flag) {
        return line.find(flag) != std::string::npos;
      };
      if (has(" dc") && has(" dd") && has(" nh") && !has(" sh")) {
        resident += kib << 10;
      }
    }
  }
  return resident;
}

// Looks at the guest of a build until its memory is copied, to be stored. From
// then on the guest's pages are the copy's, and what is resident says nothing.
class ResidentWatch final : public BuildObserver {
 public:
  ResidentWatch()
      : thread_([this](const std::stop_token& stop) { Run(stop); }) {}
  void OnPhase(BuildPhase phase, std::string_view /*detail*/) override {
    if (phase == BuildPhase::kSnapshotting) thread_.request_stop();
  }
  uint64_t last() const { return last_; }

 private:
  void Run(const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      const uint64_t now = ResidentOfGuests();
      if (now != 0) last_ = now;
      std::this_thread::sleep_for(100ms);
    }
  }

  std::atomic<uint64_t> last_ = 0;
  std::jthread thread_;  // Last: it uses the rest.
};

// FNV-1a, the same in every build.
uint64_t Fingerprint(const std::string& text) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : text) {
    hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3;
  }
  return hash;
}

std::string CacheDirectory() {
  // No thread changes the environment here.
  // NOLINTBEGIN(concurrency-mt-unsafe)
  if (const char* named = std::getenv("CATNAP_CACHE")) return named;
  const char* const home = std::getenv("HOME");
  // NOLINTEND(concurrency-mt-unsafe)
  return std::string(home == nullptr ? "/root" : home) + "/.cache/catnap";
}

}  // namespace

std::shared_ptr<Host> OpenHost(const std::string& state_dir) {
  HostOptions options;
  options.state_dir = state_dir;
  options.kernel = std::string(CATNAP_GUEST_DIR) + "/vmlinux";
  auto host = Host::Open(std::move(options));
  Check("open the Host", host.status());
  return *std::move(host);
}

Image SleeperImage(Host& host, BuildObserver* observer) {
  ImageSpec spec = ImageSpec::FromTar("sleeper", FindRootfs(CATNAP_SOURCE_DIR));
  spec.memory_bytes = kSleeperBytes;
  spec.entrypoint = {"python3", "-c", kSleeperProgram};
  spec.ready.port = kSleeperPort;
  spec.ready.timeout = 300s;
  spec.build_egress = NetworkPolicy::DenyAll();
  auto image = Image::GetOrBuild(host, spec, observer);
  Check("build the image", image.status());
  return *std::move(image);
}

void SaveGuest(const std::string& directory) {
  const Room room;
  uint64_t resident = 0;
  const auto host = OpenHost(room / "state");
  {
    ResidentWatch watch;
    SleeperImage(*host, &watch);
    resident = watch.last();
  }
  if (resident == 0) Check("look at the guest", absl::InternalError("unseen"));
  const fs::path stored = fs::path(room / "state") / "images/sleeper/1.0/guest";
  fs::create_directories(directory);
  for (const auto& entry : fs::directory_iterator(stored)) {
    const std::string name = entry.path().filename();
    if (name == "memory.catnap" || name.ends_with(".chunks")) {
      fs::copy_file(entry.path(), fs::path(directory) / name);
    }
  }
  std::ofstream out(directory + "/resident");
  out << resident << "\n";
  out.flush();
  if (!out) Check(directory.c_str(), absl::InternalError("cannot write"));
}

std::string FindSavedGuest() {
  // By what it is made of: another program or root is another guest.
  const std::string made_of = FindRootfs(CATNAP_SOURCE_DIR) + kSleeperProgram;
  std::string guest = fmt::format("{}/bench-guest/{:016x}", CacheDirectory(),
                                  Fingerprint(made_of));
  if (fs::exists(guest + "/memory.catnap")) return guest;
  const std::string draft = guest + ".draft";
  fs::remove_all(draft);
  const std::string command =
      CATNAP_SOURCE_DIR
      "/tests/emulated_host/run.sh --if-needed --timeout 1500 --out '" +
      draft + "' -- '" + fs::read_symlink("/proc/self/exe").string() +
      "' --save-guest '" + draft + "'";
  // No other thread waits for children.
  // NOLINTNEXTLINE(concurrency-mt-unsafe,cert-env33-c)
  if (std::system(command.c_str()) != 0) {
    Check("save a guest", absl::InternalError(command + " failed"));
  }
  fs::rename(draft, guest);
  return guest;
}

}  // namespace catnap::bench
