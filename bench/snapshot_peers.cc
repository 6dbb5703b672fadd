#include "snapshot_peers.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <thread>

#include "base/status.h"
#include "base/unique_fd.h"
#include "guest.h"
#include "peers/qemu_guest.h"
#include "peers/qmp.h"
#include "room.h"
#include "snapshot_guest.h"
#include "ticker.h"

namespace catnap::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr const char* kCompleted = "\"status\": \"completed\"";
constexpr const char* kFailed = "\"status\": \"failed\"";
// QEMU slows down by itself otherwise.
constexpr const char* kUnlimited = R"({"max-bandwidth": 1000000000000})";

// As one word of the shell.
std::string Quoted(const std::string& text) {
  std::string word = "'";
  for (const char c : text) {
    if (c == '\'') word += "'\\'";
    word += c;
  }
  return word + "'";
}

QemuGuest::Options OptionsOf(const Room& room, const std::string& root) {
  return {.memory_mib = static_cast<int>(kSleeperBytes >> 20),
          .disks = {{.path = root, .serial = "root", .read_only = true}},
          .initramfs = room / "qemu.initramfs",
          .control_socket = room / "qemu.qmp"};
}

void SetCapabilities(Qmp* qmp, bool background) {
  qmp->Run("migrate-set-capabilities",
           fmt::format(R"({{"capabilities": [)"
                       R"({{"capability": "events", "state": true}}, )"
                       R"({{"capability": "background-snapshot", )"
                       R"("state": {}}}]}})",
                       background));
}

// Memory and devices into a file; not its disk, which we copy with ours.
void SaveTo(Qmp* qmp, const std::string& path) {
  const base::UniqueFd file(
      ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!file.valid()) Check("open", ErrnoError(errno, "{}", path));
  qmp->SendFd("state", file.get());
  qmp->Run("migrate", R"({"uri": "fd:state"})");
  qmp->WaitForEvent("\"MIGRATION\"", kCompleted, kFailed);
  // Only then may it go on.
  while (qmp->Run("query-status").find("finish-migrate") != std::string::npos) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

// Does it while the guest ticks.
void WhileTicking(QemuGuest* guest, Report& report, const std::string& pause,
                  const std::string& total,
                  const std::function<void()>& action) {
  Ticks ticks;
  std::jthread other([&] {
    ticks.WaitFor(50);
    const auto start = Clock::now();
    action();
    const auto end = Clock::now();
    ticks.WaitFor(2);
    report.AddMicros(pause, ticks.LongestGap(start, end));
    report.AddMicros(total, end - start);
    guest->Type("\n");
  });
  guest->Listen("python3 -c " + Quoted(kTickerProgram), '.',
                [&ticks] { ticks.Add(); });
}

// A new QEMU that goes on with what is in `file`.
void Wake(const Room& room, const std::string& root, const std::string& file,
          const std::string& name, Report& report) {
  QemuGuest::Options options = OptionsOf(room, root);
  options.incoming = true;
  const base::UniqueFd from(::open(file.c_str(), O_RDONLY | O_CLOEXEC));
  if (!from.valid()) Check("open", ErrnoError(errno, "{}", file));
  std::filesystem::remove(options.control_socket);
  const auto start = Clock::now();
  QemuGuest guest(options);
  Qmp qmp(options.control_socket);
  const auto spawned = Clock::now();
  qmp.Run("migrate-set-parameters", kUnlimited);
  SetCapabilities(&qmp, /*background=*/false);
  qmp.SendFd("state", from.get());
  qmp.Run("migrate-incoming", R"({"uri": "fd:state"})");
  qmp.WaitForEvent("\"MIGRATION\"", kCompleted, kFailed);
  qmp.Run("cont");
  const auto loaded = Clock::now();
  guest.Shell("/bin/true");
  const auto ended = Clock::now();
  report.AddMicros(name, ended - start);
  report.AddMicros(name + "/spawn", spawned - start);
  report.AddMicros(name + "/load", loaded - spawned);
  report.AddMicros(name + "/exec", ended - loaded);
}

}  // namespace

void MeasureQemu(const std::string& root, Report& report) {
  const Room room;
  const std::string state = room / "qemu.state";
  std::filesystem::create_directories(state);
  const std::string file = state + "/memory";
  {
    QemuGuest guest(OptionsOf(room, root));
    Qmp qmp(room / "qemu.qmp");
    qmp.Run("migrate-set-parameters", kUnlimited);
    guest.Shell("python3 -c " + Quoted(kSleeperProgram) +
                " < /dev/null > /dev/null 2>&1 &\n"
                "until [ -e /tmp/ready ]; do sleep 0.2; done");
    WhileTicking(&guest, report, "live/pause/qemu_background",
                 "live/total/qemu_background", [&] {
                   SetCapabilities(&qmp, /*background=*/true);
                   SaveTo(&qmp, file);
                 });
    SetCapabilities(&qmp, /*background=*/false);
    WhileTicking(&guest, report, "live/pause/qemu_stop_save",
                 "live/total/qemu_stop_save", [&] {
                   qmp.Run("stop");
                   SaveTo(&qmp, file);
                   qmp.Run("cont");
                 });
    // At the shell's prompt, with nothing under way.
    qmp.Run("stop");
    SaveTo(&qmp, file);
    report.Add("live/bytes/qemu_stop_save", "bytes",
               static_cast<double>(std::filesystem::file_size(file)));
  }
  // The first after a save takes seconds longer than any other.
  Report discarded({});
  Wake(room, root, file, "first", discarded);
  DropFromCache(state);
  Wake(room, root, file, "resume/first_exec/qemu", report);
  Wake(room, root, file, "resume/first_exec/qemu_warm", report);
}

}  // namespace catnap::bench
