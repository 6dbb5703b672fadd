// A web application that sleeps when nobody uses it.
//
//   sleeping_web ROOTFS.tar STATE_DIR
//
// Builds an image whose application (web/app.py, by gunicorn) is started
// already, runs a MicroVM of it, calls it by HTTP, lets it fall asleep, calls
// it again, and forks it ten times. The application counts visits in its memory
// and in a file: whatever the machine goes through, both must be as they were.
// Says how long each step took; ends with 1 when something is not as it should
// be.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>

#include "catnap/catnap.h"
#include "support.h"

namespace {

using examples::Fail;
using examples::Fetch;
using examples::Step;
using namespace std::chrono_literals;

constexpr uint16_t kWebPort = 8080;
constexpr int kForks = 10;

double Megabytes(uint64_t bytes) { return static_cast<double>(bytes) / 1e6; }

// Memory of this process that it shares with nobody: what its MicroVMs have
// written themselves, and the library's own.
uint64_t PrivateBytes() {
  std::ifstream maps("/proc/self/smaps_rollup");
  uint64_t sum = 0;
  for (std::string name; maps >> name;) {
    uint64_t kib = 0;
    if (name.rfind("Private_", 0) == 0 && maps >> kib) sum += kib << 10;
  }
  return sum;
}

catnap::ImageSpec WebImage(const std::filesystem::path& tar) {
  catnap::ImageSpec spec = catnap::ImageSpec::FromTar("web", tar);
  spec.memory_bytes = uint64_t{512} << 20;
  spec.entrypoint = {"gunicorn"};
  // Without a timeout: gunicorn measures its workers' silence by the time of
  // day, takes a machine's sleep for it, and kills them in the middle of a
  // request.
  spec.command = {"--chdir",   "/srv/web", "--bind", "127.0.0.1:8080",
                  "--timeout", "0",        "app:app"};
  // gunicorn listens before it has loaded the application: what counts is its
  // first answer. Each machine of the image goes on from there.
  spec.ready.port = kWebPort;
  spec.ready.command = {"python3", "-c",
                        "import urllib.request; urllib.request.urlopen("
                        "'http://127.0.0.1:8080/health')"};
  spec.ready.timeout = 180s;
  return spec;
}

// Whether the application of `vm` says so at `address`: that this is its visit
// number `visits`, with as many in the file, on the machine of this name.
bool Visit(const catnap::MicroVM& vm, const catnap::HostAddress& address,
           int visits) {
  const std::string answer = Fetch(address);
  const std::string number = std::to_string(visits);
  const std::string wanted =
      "visit " + number + ", " + number + " in the file, on " + vm.id() + "\n";
  if (answer.find(wanted) != std::string::npos) return true;
  std::fprintf(stderr, "wanted \"%s\", the application answered:\n%s\n",
               wanted.c_str(), answer.c_str());
  return false;
}

// Shows what the sleeping machine occupies.
int ShowSleeper(const catnap::MicroVM& vm) {
  // Of one that sleeps: what it stored, without waking it.
  const auto stored = vm.TakeSnapshot();
  if (!stored.ok()) return Fail("look at what is stored", stored.status());
  std::printf(
      "  asleep: %.1f MB of %.0f MB memory are its own, %.1f MB stored "
      "(%.1f : 1)\n",
      Megabytes(stored->own_bytes()), Megabytes(stored->memory_bytes()),
      Megabytes(stored->stored_bytes()),
      Megabytes(stored->own_bytes()) / Megabytes(stored->stored_bytes()));
  return 0;
}

// Forks a machine whose next visit is number `visits`; each goes its own way.
int Fork(const catnap::MicroVM& vm, const catnap::HostAddress& address,
         int visits) {
  const uint64_t before = PrivateBytes();
  const auto forks = [&] {
    const Step step("fork it ten times");
    // They are not to sleep while they are looked at.
    catnap::RunOptions options;
    options.idle_policy = catnap::IdlePolicy{};
    return vm.Fork(kForks, options);
  }();
  if (!forks.ok()) return Fail("fork", forks.status());
  uint64_t stored = 0;
  {
    const Step step("call each of the ten, twice");
    for (const catnap::MicroVM& fork : *forks) {
      const auto forward = fork.ForwardPort({}, kWebPort);
      if (!forward.ok()) return Fail("forward", forward.status());
      // Each counts on from where they parted, and sees nobody else's visits.
      for (const int visit : {visits, visits + 1}) {
        if (!Visit(fork, forward->address(), visit)) return 1;
      }
      stored += fork.GetUsage().stored_bytes;
    }
  }
  const uint64_t now = PrivateBytes();
  std::printf("  each costs %.1f MB of memory and %.1f MB of disk\n",
              Megabytes(now - std::min(before, now)) / kForks,
              Megabytes(stored) / kForks);
  if (!Visit(vm, address, visits)) return 1;  // Nor does their parent.
  const Step step("end the ten");
  for (const catnap::MicroVM& fork : *forks) {
    const absl::Status ended = fork.Terminate();
    if (!ended.ok()) return Fail("end a fork", ended);
  }
  return 0;
}

int Run(const std::filesystem::path& tar, const std::filesystem::path& room) {
  const auto host = catnap::Host::Open({.state_dir = room / "state"});
  if (!host.ok()) return Fail("open the host", host.status());
  const auto image = [&] {
    const Step step("build an image, its application started");
    return catnap::Image::GetOrBuild(**host, WebImage(tar));
  }();
  if (!image.ok()) return Fail("build the image", image.status());
  std::printf("  image: %.0f MB of memory, %.1f MB on disk\n",
              Megabytes(image->memory_bytes()),
              Megabytes(image->stored_bytes()));

  catnap::RunOptions options;
  options.idle_policy = catnap::IdlePolicy{};
  options.idle_policy->max_idle_duration = 5s;
  const auto vm = [&] {
    const Step step("run a MicroVM of it");
    return catnap::MicroVM::Run(**host, *image, options);
  }();
  if (!vm.ok()) return Fail("run", vm.status());
  const auto forward = vm->ForwardPort({}, kWebPort);
  if (!forward.ok()) return Fail("forward", forward.status());
  const catnap::HostAddress address = forward->address();
  {
    const Step step("call it by HTTP, twice");
    if (!Visit(*vm, address, 1) || !Visit(*vm, address, 2)) return 1;
  }
  {
    const Step step("leave it alone until it sleeps (5 s, and storing)");
    const auto state = vm->WaitForState(catnap::MicroVMState::kSuspended, 120s);
    if (!state.ok()) return Fail("fall asleep", state.status());
  }
  if (const int failed = ShowSleeper(*vm); failed != 0) return failed;
  {
    const Step step("call it: it wakes and answers");
    if (!Visit(*vm, address, 3)) return 1;
  }
  {
    const Step step("call it awake");
    if (!Visit(*vm, address, 4)) return 1;
  }
  {
    const Step step("run a Python snippet in it");
    const auto result =
        vm->Exec({.argv = {"python3", "-c",
                           "print('  says Python:', open('/var/lib/visits.txt')"
                           ".read().splitlines()[-1])"}});
    if (!result.ok()) return Fail("exec", result.status());
    std::printf("%s%s", result->stdout_data.c_str(),
                result->stderr_data.c_str());
    if (result->stdout_data != "  says Python: visit 4\n") {
      std::fprintf(stderr, "wanted \"visit 4\" of it; it ended with %d\n",
                   result->exit_code);
      return 1;
    }
  }
  if (const int failed = Fork(*vm, address, 5); failed != 0) return failed;
  const Step step("end it, close the host");
  const absl::Status closed =
      (*host)->Close({.running = catnap::AtClose::kTerminate});
  return closed.ok() ? 0 : Fail("close", closed);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: sleeping_web ROOTFS.tar STATE_DIR\n");
    return 2;
  }
  return Run(argv[1], argv[2]);
}
