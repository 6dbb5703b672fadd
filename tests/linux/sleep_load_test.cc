#include <array>
#include <atomic>
#include <catch2/catch.hpp>
#include <chrono>
#include <memory>
#include <string>
#include <thread>

#include "base/mutex.h"
#include "catnap/catnap.h"
#include "linux/busybox_root.h"
#include "linux/microvm_shell.h"
#include "support/tcp.h"

// MicroVMs that are copied and sleep while disk, agent streams and a forwarded
// port are in use all the time.

namespace catnap {
namespace {

using namespace std::chrono_literals;
using test::Sh;
using test::Shell;

void Must(const absl::Status& status) {
  INFO(status.ToString());
  REQUIRE(status.ok());
}

// A thread that uses something again and again, until the end or a failure.
class Load {
 public:
  template <typename Once>
  explicit Load(Once once) {
    thread_ = std::thread([this, once = std::move(once)]() mutable {
      while (!stop_ && !failed_) {
        if (rest_) {
          std::this_thread::sleep_for(1ms);
          continue;
        }
        const base::MutexLock lock(&round_);
        if (once(rounds_.load())) {
          ++rounds_;
        } else {
          failed_ = true;
        }
      }
    });
  }
  ~Load() { Stop(); }
  void Stop() {
    stop_ = true;
    if (thread_.joinable()) thread_.join();
  }
  // Returns between two rounds; none begins until GoOn().
  void Rest() {
    rest_ = true;
    const base::MutexLock lock(&round_);
  }
  void GoOn() { rest_ = false; }
  uint32_t rounds() const { return rounds_; }
  bool failed() const { return failed_; }

 private:
  base::Mutex round_;
  std::atomic<bool> rest_ = false;
  std::atomic<bool> stop_ = false;
  std::atomic<bool> failed_ = false;
  std::atomic<uint32_t> rounds_ = 0;
  std::thread thread_;
};

// Each round sends a pattern through a program of the guest and back.
bool Echo(Process& cat, uint32_t round) {
  std::string sent(4096, '\0');
  for (size_t i = 0; i < sent.size(); ++i) {
    sent[i] = static_cast<char>(i * 31 + round);
  }
  if (!cat.Write(sent).ok()) return false;
  std::string back;
  std::array<char, 4096> buffer{};
  while (back.size() < sent.size()) {
    const auto got = cat.Read(Stream::kStdout, buffer);
    if (!got.ok() || *got == 0) return false;
    back.append(buffer.data(), *got);
  }
  return back == sent;
}

// Each round is a connection of its own.
bool Fetch(uint16_t port) {
  const base::UniqueFd fd = testing::ConnectTcp(port);
  return testing::SendAll(fd.get(), "GET /index.html HTTP/1.0\r\n\r\n") &&
         testing::ReceiveUpTo(fd.get(), 4096).find("a page") !=
             std::string::npos;
}

// The guest writes its disk and reads it back, counting in a file; it stops,
// and says so, when a byte is not what it was.
constexpr char kDiskLoad[] =
    "mkdir /load; i=0; while :; do i=$((i + 1)); "
    "dd if=/dev/urandom of=/load/a bs=64k count=4 2>/dev/null; "
    "dd if=/load/a of=/load/b bs=64k conv=fsync 2>/dev/null; "
    "echo 3 >/proc/sys/vm/drop_caches; "
    "set -- $(md5sum /load/a) $(md5sum /load/b); "
    "[ \"$1\" = \"$3\" ] || { echo broken >/load/count; exit; }; "
    "echo $i >/load/next; /bin/busybox mv /load/next /load/count; sleep 0.2; "
    "done";

class LoadedGuest {
 public:
  LoadedGuest() {
    auto host = Host::Open({.state_dir = files_.path() / "state"});
    Must(host.status());
    host_ = *std::move(host);
    ImageSpec spec =
        ImageSpec::FromDirectory("load", test::MakeBusyboxRoot(files_.path()));
    spec.memory_bytes = uint64_t{256} << 20;
    spec.disk_bytes = uint64_t{1} << 30;
    spec.vcpus = 2;
    spec.entrypoint = {"/bin/sh", "-c",
                       "mkdir /www; echo a page >/www/index.html; "
                       "exec /bin/httpd -f -p 8080 -h /www"};
    spec.ready.port = 8080;
    const auto image = Image::Build(*host_, spec);
    Must(image.status());
    auto vm = MicroVM::Run(*host_, *image);
    Must(vm.status());
    vm_ = *std::move(vm);
    auto disk = vm_.Start(Shell(kDiskLoad));
    Must(disk.status());
    (*disk)->Detach();
    auto cat = vm_.Start(Shell("exec cat"));
    Must(cat.status());
    cat_ = *std::move(cat);
    auto forward = vm_.ForwardPort({}, 8080);
    Must(forward.status());
    forward_ = std::make_unique<Forward>(*std::move(forward));
    streams_ = std::make_unique<Load>(
        [this](uint32_t round) { return Echo(*cat_, round); });
    connections_ = std::make_unique<Load>(
        [port = forward_->address().port](uint32_t) { return Fetch(port); });
  }
  ~LoadedGuest() {
    // Their last rounds need a guest that runs.
    streams_->Stop();
    connections_->Stop();
    CHECK(host_->Close({.running = AtClose::kTerminate}).ok());
  }

  MicroVM& vm() { return vm_; }
  absl::Status Copy() {
    absl::Status status = vm_.TakeSnapshot().status();
    // A program that waits for the disk may take longer to stop than it may.
    for (int i = 0; i < 20 && absl::IsFailedPrecondition(status); ++i) {
      status = vm_.TakeSnapshot().status();
    }
    return status;
  }
  // Whoever uses it from outside would keep it awake.
  void SleepAndWake() {
    streams_->Rest();
    connections_->Rest();
    absl::Status status = vm_.Suspend();
    for (int i = 0; i < 20 && absl::IsFailedPrecondition(status); ++i) {
      status = vm_.Suspend();
    }
    Must(status);
    Must(vm_.Resume());
    streams_->GoOn();
    connections_->GoOn();
  }
  // All three go on, and were right so far.
  void CheckGoesOn() {
    const uint32_t streams = streams_->rounds();
    const uint32_t connections = connections_->rounds();
    const std::string disk = Sh(vm_, "cat /load/count");
    const auto latest = std::chrono::steady_clock::now() + 60s;
    bool goes_on = false;
    while (!goes_on && std::chrono::steady_clock::now() < latest) {
      std::this_thread::sleep_for(20ms);
      goes_on = streams_->rounds() > streams &&
                connections_->rounds() > connections &&
                Sh(vm_, "cat /load/count") != disk;
    }
    CHECK(streams_->rounds() > streams);
    CHECK(connections_->rounds() > connections);
    CHECK_FALSE(streams_->failed());
    CHECK_FALSE(connections_->failed());
    const std::string now = Sh(vm_, "cat /load/count");
    INFO(now);
    CHECK(now != disk);
    CHECK(now != "broken\n");
    REQUIRE(goes_on);
  }

 private:
  const test::RoomForFiles files_;
  std::shared_ptr<Host> host_;
  MicroVM vm_;
  std::unique_ptr<Process> cat_;
  std::unique_ptr<Forward> forward_;
  std::unique_ptr<Load> streams_, connections_;
};

TEST_CASE("A hundred snapshots under load leave no queue hanging") {
  LoadedGuest guest;
  guest.CheckGoesOn();
  for (int i = 1; i <= 100; ++i) {
    CAPTURE(i);
    Must(guest.Copy());
    if (i % 20 == 0) guest.CheckGoesOn();
  }
}

TEST_CASE("Thirty sleeps under load leave no queue hanging") {
  LoadedGuest guest;
  // What only memory has.
  const std::string sum =
      Sh(guest.vm(),
         "mkdir /mem && /bin/busybox mount -t tmpfs none /mem && "
         "dd if=/dev/urandom of=/mem/file bs=1M count=4 2>/dev/null; "
         "md5sum /mem/file");
  for (int i = 1; i <= 30; ++i) {
    CAPTURE(i);
    guest.SleepAndWake();
    if (i % 10 != 0) continue;
    CHECK(Sh(guest.vm(), "md5sum /mem/file") == sum);
    guest.CheckGoesOn();
  }
}

}  // namespace
}  // namespace catnap
