#include "virtio/block/block.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstdlib>
#include <filesystem>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "disk/cow_layer.h"
#include "disk/loop_file.h"
#include "disk/raw_disk.h"
#include "io/event_loop.h"
#include "linux/linux_guest.h"
#include "support/temporary_directory.h"

namespace catnap::vmm {
namespace {

constexpr size_t kDiskBytes = 8 << 20;
constexpr size_t kPartBytes = 64 << 10;  // What the guest writes and discards.
constexpr char kBaseByte = 3;

// Where the layer's file can have holes.
std::filesystem::path RoomForFiles(const test::TemporaryDirectory& directory) {
  // NOLINTNEXTLINE(concurrency-mt-unsafe)
  if (std::getenv("CATNAP_EMULATED_HOST") == nullptr) return directory.path();
  std::filesystem::path room = "/scratch/ext4/catnap-block-test";
  std::filesystem::remove_all(room);
  std::filesystem::create_directories(room);
  return room;
}

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
  const test::TemporaryDirectory directory;
  const std::filesystem::path room = RoomForFiles(directory);
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

}  // namespace
}  // namespace catnap::vmm
