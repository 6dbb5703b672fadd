#include <unistd.h>

#include <catch2/catch.hpp>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "agent/process.h"
#include "base/clock.h"
#include "base/random.h"
#include "io/event_loop.h"
#include "linux/busybox_root.h"
#include "runtime/image_record.h"
#include "runtime/machine_factory.h"
#include "runtime/root_disk.h"
#include "support/machine_fixture.h"

// Guests that sleep, wake and are copied, at the seam below MicroVMs.

namespace catnap::runtime {
namespace {

using namespace std::chrono_literals;

constexpr uint64_t kDiskBytes = uint64_t{1} << 30;

// What a Host has for its guests.
class Sleepers {
 public:
  explicit Sleepers(uint32_t vcpus = 1) {
    auto loop = io::EventLoop::Create({});
    REQUIRE(loop.ok());
    loop_ = *std::move(loop);
    MachineFactory::Options options;
    options.clock = &clock_;
    factory_ = std::make_unique<MachineFactory>(std::move(options));
    auto image = std::make_shared<ImageRecord>();
    image->name = "busybox";
    image->major = 1;
    image->memory_bytes = uint64_t{256} << 20;
    image->vcpus = vcpus;
    image->disk_bytes = kDiskBytes;
    image->directory = Make("image");
    const auto id = base::RandomBytes<16>();
    REQUIRE(id.ok());
    image->disk_id = *id;
    const absl::Status built =
        BuildRootDisk({.kind = RootSource::Kind::kDirectory,
                       .path = test::MakeBusyboxRoot(room_.path())},
                      image->directory / kRootDiskName, kDiskBytes, {}, {});
    INFO(built.ToString());
    REQUIRE(built.ok());
    image_ = std::move(image);
  }

  std::filesystem::path Make(const std::string& name) {
    auto path = room_.path() / name;
    std::filesystem::create_directories(path);
    return path;
  }
  std::unique_ptr<Guest> Start(const std::string& id,
                               std::optional<GuestOrigin> origin = {}) {
    GuestConfig config;
    config.image = image_;
    config.origin = std::move(origin);
    config.directory = Make(id + "/live");
    config.vm_id = id;
    config.loop = loop_.get();
    auto guest = factory_->Start(std::move(config));
    INFO(guest.status().ToString());
    REQUIRE(guest.ok());
    return *std::move(guest);
  }
  // The image gets the memory of this captured guest.
  void GiveMemory(CapturedGuest& captured) {
    auto image = std::make_shared<ImageRecord>(*image_);
    const auto stored = captured.Store(ImageGuest(), {.durable = false});
    INFO(stored.status().ToString());
    REQUIRE(stored.ok());
    image->has_guest = true;
    image_ = std::move(image);
    const absl::Status whole = factory_->Verify(*image_, ImageGuest(), {});
    INFO(whole.ToString());
    CHECK(whole.ok());
  }
  std::filesystem::path ImageGuest() {
    return Make(std::string("image/") + kImageGuestName);
  }

 private:
  const test::RoomForFiles room_;
  base::SystemClock clock_;
  std::unique_ptr<io::EventLoop> loop_;
  std::unique_ptr<MachineFactory> factory_;
  std::shared_ptr<const ImageRecord> image_;
};

// What a shell's commands write.
std::string Sh(Guest& guest, const std::string& script) {
  const auto client = guest.WaitForClient(test::Deadline(), nullptr);
  if (!client.ok()) return client.status().ToString();
  std::promise<absl::StatusOr<agent::ExecOutcome>> done;
  agent::ExecRequest request;
  request.argv = {"/bin/sh", "-c", "exec 2>&1; " + script};
  request.env = {"PATH=/bin"};
  const auto stream =
      agent::Exec(client->get(), std::move(request), 1 << 20, test::Deadline(),
                  [&done](absl::StatusOr<agent::ExecOutcome> outcome) {
                    done.set_value(std::move(outcome));
                  });
  if (!stream.ok()) return stream.status().ToString();
  const auto outcome = done.get_future().get();
  return outcome.ok() ? outcome->stdout_data : outcome.status().ToString();
}

// A shell that counts in its memory, and shows the count in a file.
constexpr const char* kCount =
    "i=0; (while :; do i=$((i+1)); echo $i >/tmp/count; sleep 0.1; done) "
    ">/dev/null </dev/null & echo started";

// 0: there is none. The file is empty for a moment at each step.
int CountOf(Guest& guest) {
  int count = 0;
  for (int i = 0; count == 0 && i < 20; ++i) {
    count = std::atoi(Sh(guest, "cat /tmp/count").c_str());
  }
  return count;
}

StoredSizes Sleep(Guest& guest, const std::filesystem::path& directory) {
  const auto stored = guest.Suspend(directory, {.durable = false});
  INFO(guest.ConsoleTail());
  INFO(stored.status().ToString());
  REQUIRE(stored.ok());
  return *stored;
}

TEST_CASE("A Linux guest sleeps and wakes as if nothing had happened") {
  Sleepers host(/*vcpus=*/2);
  const auto guest = host.Start("one");
  REQUIRE(Sh(*guest, kCount) == "started\n");
  REQUIRE(Sh(*guest,
             "echo kept >/etc/file; sync; echo late >>/etc/file; "
             "cat /etc/file") == "kept\nlate\n");

  Sh(*guest, "dmesg -c >/dev/null");  // Of the boot.

  const StoredSizes first = Sleep(*guest, host.Make("s1"));
  CHECK(first.stored_bytes > 0);
  CHECK(first.stored_bytes < first.own_bytes);
  std::this_thread::sleep_for(1s);
  absl::Status awake = guest->Resume(host.Make("s1"), test::Deadline());
  INFO(awake.ToString());
  REQUIRE(awake.ok());
  CHECK(Sh(*guest, "cat /etc/file") == "kept\nlate\n");
  const int before = CountOf(*guest);
  std::this_thread::sleep_for(1s);
  CHECK(CountOf(*guest) > before);
  CHECK_THAT(Sh(*guest, "dmesg"), !Catch::Contains("lockup") &&
                                      !Catch::Contains("unstable") &&
                                      !Catch::Contains("I/O error"));

  // Only what changed is written again, and the first directory is not needed.
  const StoredSizes second = Sleep(*guest, host.Make("s2"));
  CHECK(second.stored_bytes < first.stored_bytes / 2);
  std::filesystem::remove_all(host.Make("s1"));
  awake = guest->Resume(host.Make("s2"), test::Deadline());
  INFO(awake.ToString());
  REQUIRE(awake.ok());
  CHECK(Sh(*guest, "cat /etc/file") == "kept\nlate\n");
  CHECK(CountOf(*guest) > before);
}

TEST_CASE("A Linux guest's copies go their own ways") {
  Sleepers host;
  const auto parent = host.Start("parent");
  REQUIRE(Sh(*parent, kCount) == "started\n");
  REQUIRE(Sh(*parent, "echo common >/etc/file").empty());
  auto captured = parent->Capture(CaptureUse::kRun, test::Deadline());
  INFO(captured.status().ToString());
  REQUIRE(captured.ok());
  CHECK((*captured)->own_bytes() > 0);
  // The parent goes on, on the same disk.
  CHECK(Sh(*parent, "echo parent >>/etc/file; cat /etc/file") ==
        "common\nparent\n");

  GuestOrigin origin;
  origin.captured = *captured;
  origin.is_copy = true;
  const auto one = host.Start("child-1", origin);
  const auto two = host.Start("child-2", origin);
  CHECK(Sh(*one, "hostname") == "child-1\n");
  CHECK(Sh(*two, "hostname") == "child-2\n");
  CHECK(Sh(*one, "echo one >>/etc/file; cat /etc/file") == "common\none\n");
  CHECK(Sh(*two, "echo two >>/etc/file; cat /etc/file") == "common\ntwo\n");
  CHECK(Sh(*one, "dd if=/dev/urandom bs=16 count=1 2>/dev/null | md5sum") !=
        Sh(*two, "dd if=/dev/urandom bs=16 count=1 2>/dev/null | md5sum"));
  const int count = CountOf(*one);
  CHECK(count > 0);
  std::this_thread::sleep_for(1s);
  CHECK(CountOf(*one) > count);

  // As an image's memory: its guests start with the program running, sleep by
  // what they changed, and come back.
  host.GiveMemory(**captured);
  origin = {.directory = host.ImageGuest(), .captured = {}, .is_copy = true};
  const auto third = host.Start("third", origin);
  CHECK(Sh(*third, "cat /etc/file") == "common\n");
  CHECK(CountOf(*third) > 0);
  const StoredSizes stored = Sleep(*third, host.Make("s3"));
  CHECK(stored.own_bytes < (*captured)->own_bytes());
  const absl::Status awake = third->Resume(host.Make("s3"), test::Deadline());
  INFO(awake.ToString());
  REQUIRE(awake.ok());
  CHECK(Sh(*third, "echo third >>/etc/file; cat /etc/file") ==
        "common\nthird\n");

  // Another process would find it so.
  Sleep(*third, host.Make("s4"));
  origin = {.directory = host.Make("s4"), .captured = {}, .is_copy = false};
  const auto again = host.Start("third-again", origin);
  CHECK(Sh(*again, "cat /etc/file") == "common\nthird\n");
  CHECK(Sh(*again, "hostname") == "third\n");
}

TEST_CASE("A Linux guest runs on when it cannot be stored") {
  Sleepers host;
  const auto guest = host.Start("one");
  REQUIRE(Sh(*guest, kCount) == "started\n");
  std::stop_source stop;
  stop.request_stop();
  CHECK(guest->Suspend(host.Make("s1"), {.stop = stop.get_token()})
            .status()
            .code() == absl::StatusCode::kCancelled);
  CHECK_FALSE(guest->Suspend("/no/such/directory", {}).ok());
  // A copy that fails leaves nothing either.
  CHECK_FALSE(guest
                  ->Capture(CaptureUse::kStore,
                            agent::CallLimits(std::chrono::steady_clock::now(),
                                              stop.get_token()))
                  .ok());
  for (const auto& entry :
       std::filesystem::directory_iterator(host.Make("."))) {
    CHECK(entry.path().filename().string().rfind(".captured-", 0) != 0);
  }
  const int count = CountOf(*guest);
  std::this_thread::sleep_for(1s);
  CHECK(CountOf(*guest) > count);
  CHECK(Sh(*guest, "echo written >/etc/file; sync; cat /etc/file") ==
        "written\n");
}

}  // namespace
}  // namespace catnap::runtime
