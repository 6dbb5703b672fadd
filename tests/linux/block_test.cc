#include "virtio/block/block.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "disk/await.h"
#include "disk/cow_layer.h"
#include "disk/disk_stack.h"
#include "disk/loop_file.h"
#include "disk/raw_disk.h"
#include "io/event_loop.h"
#include "linux/agent_guest.h"
#include "linux/busybox_root.h"
#include "linux/linux_guest.h"
#include "runtime/tool_process.h"
#include "support/ext4_image_file.h"

namespace catnap::vmm {
namespace {

constexpr size_t kDiskBytes = 8 << 20;
constexpr size_t kPartBytes = 64 << 10;  // What the guest writes and discards.
constexpr char kBaseByte = 3;

std::shared_ptr<disk::LoopFile> OpenOn(io::EventLoop* loop,
                                       const std::filesystem::path& path) {
  auto file = disk::LoopFile::Open(path, O_RDWR | O_CREAT, loop);
  INFO(file.status().ToString());
  REQUIRE(file.ok());
  return *std::move(file);
}

std::vector<char> ReadPart(disk::BlockIo& disk, uint64_t offset) {
  std::vector<char> bytes(kPartBytes);
  const iovec buffer{bytes.data(), bytes.size()};
  std::promise<absl::Status> end;
  disk.Read({&buffer, 1}, offset,
            [&](const absl::Status& status) { end.set_value(status); });
  CHECK(end.get_future().get().ok());
  return bytes;
}

bool IsAll(const std::vector<char>& bytes, char wanted) {
  return std::all_of(bytes.begin(), bytes.end(),
                     [=](char byte) { return byte == wanted; });
}

TEST_CASE("Linux uses a copy-on-write disk") {
  const test::RoomForFiles files;
  const std::filesystem::path& room = files.path();
  auto loop = io::EventLoop::Create({});
  REQUIRE(loop.ok());
  const auto base_file = OpenOn(loop->get(), room / "base");
  const std::vector<uint8_t> content(kDiskBytes, kBaseByte);
  REQUIRE(base_file->WriteNow(content, 0).ok());
  auto base = disk::RawDisk::Create(base_file, {.id = {1}});
  REQUIRE(base.ok());
  const auto layer_file = OpenOn(loop->get(), room / "layer");
  {
    auto layer = disk::CowLayer::CreateOnTop(layer_file, *base, {});
    REQUIRE(layer.ok());
    const auto machine = test::PrepareLinux(
        test::GuestFile("vmlinux"),
        {.memory_bytes = 128 << 20, .vcpus = 2, .device_pages = 1},
        "catnap.action=disk");
    auto device = std::make_unique<virtio::Block>(
        *layer,
        virtio::BlockOptions{
            .serial = "catnap-test",
            .cancel_parked = [disk = *layer] { disk->CancelParked(); }},
        &machine->memory());
    REQUIRE(
        machine->AttachVirtio(0, std::move(device), loop->get(), base::Logger())
            .ok());
    CHECK(test::RunLinux(*machine).reason == EndReason::kPowerOff);
    INFO(test::ConsoleOf(*machine));
    CHECK_THAT(test::ConsoleOf(*machine), Catch::Contains("disk ok=1"));
    CHECK_THAT(test::ConsoleOf(*machine),
               Catch::Contains("disk sum=" + std::to_string(4096 * kBaseByte)));
    // What was discarded was not flushed.
    std::promise<absl::Status> flushed;
    (*layer)->Flush(
        [&](const absl::Status& status) { flushed.set_value(status); });
    CHECK(flushed.get_future().get().ok());
  }
  // The file alone has it all.
  auto layer = disk::CowLayer::Open(layer_file, *base, {});
  INFO(layer.status().ToString());
  REQUIRE(layer.ok());
  CHECK(IsAll(ReadPart(**layer, 0), kBaseByte));
  CHECK(IsAll(ReadPart(**layer, 1 << 20), 0x5a));
  CHECK(IsAll(ReadPart(**layer, (1 << 20) + kPartBytes), kBaseByte));
  CHECK(IsAll(ReadPart(**layer, 2 << 20), 0));
  CHECK(IsAll(ReadPart(**layer, (2 << 20) + kPartBytes), kBaseByte));
  CHECK(IsAll(ReadPart(**base, 1 << 20), kBaseByte));
}

// Runs a program of e2fsprogs; returns its exit code.
int RunTool(std::vector<std::string> words) {
  const std::string path = words.front();
  const auto end = runtime::RunTool(
      {.path = path,
       .arguments = std::move(words),
       .descriptors = {},
       .deadline = std::chrono::steady_clock::now() + std::chrono::minutes(1),
       .stop = {}});
  INFO(end.status().ToString());
  REQUIRE(end.ok());
  INFO(end->output << end->errors);
  return end->exit_code.value_or(-1);
}

// All that a disk reads as, as a sparse file.
void Export(disk::BlockIo* disk, const std::string& path) {
  constexpr uint64_t kPiece = 1 << 20;
  std::ofstream out(path, std::ios::binary);
  for (uint64_t at = 0; at < disk->capacity(); at += kPiece) {
    std::vector<char> bytes(std::min(kPiece, disk->capacity() - at));
    const iovec buffer{bytes.data(), bytes.size()};
    REQUIRE(disk::Await([&](disk::BlockCompletion done) {
              disk->Read({&buffer, 1}, at, std::move(done));
            }).ok());
    out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }
}

TEST_CASE("A disk that is frozen under a guest is whole, and grows") {
  constexpr uint64_t kBytes = uint64_t{64} << 20;
  const test::RoomForFiles files;
  const std::filesystem::path& room = files.path();
  for (const char* name : {"root/tmp", "layers", "saved"}) {
    std::filesystem::create_directories(room / name);
  }
  REQUIRE(RunTool({"/sbin/mke2fs", "-q", "-t", "ext4", "-d", room / "root",
                   room / "base", "64m"}) == 0);

  std::shared_ptr<disk::BlockIo> base;
  std::shared_ptr<disk::DiskStack> stack;
  virtio::Block* device = nullptr;
  test::AgentGuest guest(
      1, test::GuestFile("vmlinux"), "",
      [&](Machine& machine, io::EventLoop* loop) {
        auto disk =
            disk::RawDisk::Create(OpenOn(loop, room / "base"), {.id = {7}});
        REQUIRE(disk.ok());
        base = *disk;
        disk::DiskStackOptions options;
        options.directory = room / "layers";
        options.base = base;
        options.loop = loop;
        options.max_frozen = 2;
        auto opened = disk::DiskStack::Open(options);
        INFO(opened.status().ToString());
        REQUIRE(opened.ok());
        stack = *std::move(opened);
        auto block = std::make_unique<virtio::Block>(
            stack,
            virtio::BlockOptions{
                .serial = "root",
                .cancel_parked = [disk =
                                      stack.get()] { disk->CancelParked(); }},
            &machine.memory());
        device = block.get();
        REQUIRE(machine.AttachVirtio(1, std::move(block), loop, base::Logger())
                    .ok());
      });
  guest.CopyBusyboxIn();
  CHECK_THAT(guest.Shell("mount"), Catch::Contains("/dev/vda on / type ext4"));
  // Goes on writing while the disk is frozen below it.
  guest.Shell(
      "mkdir /data; (i=0; while true; do i=$((i+1)); "
      "echo $i $i $i >/data/$i; [ $((i % 10)) = 0 ] && sync; done) "
      ">/dev/null 2>&1 &");
  std::string before;
  for (int i = 0; i < 5; ++i) {
    before = guest.Shell("echo frozen " + std::to_string(i) +
                         " >/data/mark; sync; cat /data/mark");
    CHECK(stack->PrepareFreeze().ok());
    REQUIRE(guest.machine().Pause().ok());
    device->Quiesce();
    CHECK_FALSE(device->holds_requests());
    CHECK(stack->Freeze().ok());
    device->Resume();
    REQUIRE(guest.machine().Start().ok());
  }
  stack->WaitForMerges();
  CHECK(stack->frozen_layers().size() <= 2);
  CHECK(stack->LinkInto(room / "saved", disk::CopyMode::kLink).ok());
  CHECK(guest.Shell("cat /data/mark") == before);

  // The guest sees the disk grow.
  const absl::Status grown = disk::Await([&](disk::BlockCompletion done) {
    device->Resize(2 * kBytes, std::move(done));
  });
  CHECK(grown.ok());
  const std::string sectors = std::to_string(2 * kBytes / 512) + "\n";
  std::string seen;
  for (int i = 0; i < 50 && seen != sectors; ++i) {
    seen = guest.Shell("cat /sys/class/block/vda/size");
  }
  CHECK(seen == sectors);

  // The saved disk is that of a machine that lost power: the journal brings it
  // to a clean state, with all that was synced.
  disk::DiskStackOptions options;
  options.directory = room / "saved";
  options.base = base;
  auto loop = io::EventLoop::Create({});
  REQUIRE(loop.ok());
  options.loop = loop->get();
  const auto saved = disk::DiskStack::Open(options);
  INFO(saved.status().ToString());
  REQUIRE(saved.ok());
  CHECK((*saved)->capacity() == kBytes);
  const std::string raw = room / "raw";
  Export(saved->get(), raw);
  CHECK(RunTool({"/sbin/e2fsck", "-p", raw}) <= 1);
  const test::Ext4ImageFile image(raw);
  CHECK(image.Check().empty());
  CHECK(image.Content("/data/mark", room / "scratch") == before);
  stack.reset();
}

}  // namespace
}  // namespace catnap::vmm
