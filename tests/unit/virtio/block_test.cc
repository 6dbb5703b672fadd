#include "virtio/block/block.h"

#include <array>
#include <catch2/catch.hpp>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/byte_order.h"
#include "support/memory_disk.h"
#include "support/virtio_driver.h"

namespace catnap::virtio {
namespace {

using test::MemoryDisk;
using test::Piece;
using test::UsedBuffer;
using test::VirtioDriver;

constexpr uint64_t kHeader = VirtioDriver::kBuffers;
constexpr uint64_t kRange = kHeader + 16;
constexpr uint64_t kData = kHeader + 4096;
constexpr uint64_t kStatus = kHeader + 2048;
constexpr uint64_t kSectors = 64;
constexpr uint32_t kIn = 0;
constexpr uint32_t kOut = 1;
constexpr uint32_t kFlush = 4;
constexpr uint32_t kGetId = 8;
constexpr uint32_t kDiscard = 11;
constexpr uint32_t kWriteZeroes = 13;
constexpr char kOk = 0;
constexpr char kIoError = 1;
constexpr char kUnsupported = 2;
constexpr char kUntouched = 'u';

const Piece kHeaderPiece{kHeader, 16, false};
const Piece kStatusPiece{kStatus, 1, true};

// A driver of one disk whose requests are all at the same addresses.
class Guest {
 public:
  explicit Guest(BlockOptions options = {}, bool read_only = false)
      : disk(std::make_shared<MemoryDisk>(kSectors * 512, read_only)),
        driver([&](memory::GuestMemory* memory) {
          return std::make_unique<Block>(disk, options, memory);
        }) {}

  Block& device() { return static_cast<Block&>(driver.device()); }

  void PutHeader(uint32_t type, uint64_t sector) {
    std::string header(16, '\0');
    auto* const bytes = reinterpret_cast<uint8_t*>(header.data());
    base::StoreLe<uint32_t>(bytes, type);
    base::StoreLe<uint64_t>(bytes + 8, sector);
    driver.Fill(kHeader, header);
    driver.Fill(kStatus, std::string(1, kUntouched));
  }
  void PutRange(uint64_t sector, uint32_t sectors, uint32_t flags) {
    std::string range(16, '\0');
    auto* const bytes = reinterpret_cast<uint8_t*>(range.data());
    base::StoreLe<uint64_t>(bytes, sector);
    base::StoreLe<uint32_t>(bytes + 8, sectors);
    base::StoreLe<uint32_t>(bytes + 12, flags);
    driver.Fill(kRange, range);
  }
  char Status() { return driver.Bytes(kStatus, 1)[0]; }

  // Runs one request and returns its status byte.
  char Do(uint32_t type, uint64_t sector, const std::vector<Piece>& pieces) {
    PutHeader(type, sector);
    driver.Add(0, 0, pieces);
    driver.Kick();
    used = driver.TakeUsed(0);
    REQUIRE(used.size() == 1);
    return Status();
  }
  char Read(uint64_t sector, uint32_t length) {
    return Do(kIn, sector, {kHeaderPiece, {kData, length, true}, kStatusPiece});
  }
  char Write(uint64_t sector, uint32_t length) {
    return Do(kOut, sector,
              {kHeaderPiece, {kData, length, false}, kStatusPiece});
  }
  char Zero(uint32_t type, uint64_t sector, uint32_t sectors, uint32_t flags) {
    PutRange(sector, sectors, flags);
    return Do(type, 0, {kHeaderPiece, {kRange, 16, false}, kStatusPiece});
  }

  std::shared_ptr<MemoryDisk> disk;
  VirtioDriver driver;
  std::vector<UsedBuffer> used;
};

TEST_CASE("Block says what the disk is like") {
  Guest guest;
  auto config = guest.device().Config();
  CHECK(base::LoadLe<uint64_t>(config.data()) == kSectors);
  CHECK(base::LoadLe<uint32_t>(&config[12]) == 126);
  CHECK(base::LoadLe<uint32_t>(&config[20]) == 512);
  guest.disk->Resize((kSectors + 8) * 512, [](const absl::Status&) {});
  REQUIRE(guest.driver.Start());
  CHECK(guest.Read(kSectors, 512) == kIoError);
  guest.device().CapacityChanged();
  CHECK(guest.driver.Read(static_cast<MmioRegister>(0x100)) == kSectors + 8);
  CHECK(guest.Read(kSectors, 512) == kOk);
}

TEST_CASE("Block reads and writes, however the pieces lie") {
  Guest guest;
  REQUIRE(guest.driver.Start());
  const std::string text = std::string(512, 'a') + std::string(512, 'b');
  guest.driver.Fill(kData, text);
  CHECK(guest.Write(3, 1024) == kOk);
  CHECK(guest.used[0].written == 1);
  CHECK(guest.disk->bytes().substr(1536, 1024) == text);
  CHECK(guest.Read(4, 512) == kOk);
  CHECK(guest.used[0].written == 513);
  CHECK(guest.driver.Bytes(kData, 512) == std::string(512, 'b'));

  // The header in two pieces, the second with data.
  const uint64_t split = kHeader + 9;
  guest.driver.Fill(kHeader + 16, std::string(512, 'c'));
  CHECK(
      guest.Do(kOut, 0,
               {{kHeader, 9, false}, {split, 7 + 512, false}, kStatusPiece}) ==
      kOk);
  CHECK(guest.disk->bytes().substr(0, 512) == std::string(512, 'c'));

  // The status at the end of a piece with data.
  guest.driver.Fill(kData, std::string(520, kUntouched));
  guest.Do(kIn, 0,
           {kHeaderPiece, {kData, 100, true}, {kData + 100, 413, true}});
  CHECK(guest.driver.Bytes(kData, 514) ==
        std::string(512, 'c') + kOk + kUntouched);
  CHECK(guest.used[0].written == 513);
}

TEST_CASE("Block refuses what no disk has") {
  Guest guest;
  REQUIRE(guest.driver.Start());
  const uint64_t last = kSectors - 1;
  CHECK(guest.Read(last, 512) == kOk);
  CHECK(guest.Read(last, 1024) == kIoError);
  CHECK(guest.Read(kSectors, 512) == kIoError);
  CHECK(guest.Write(UINT64_MAX, 512) == kIoError);
  CHECK(guest.Write(UINT64_MAX / 512, 512) == kIoError);
  CHECK(guest.Read(0, 511) == kIoError);
  CHECK(guest.Write(0, 513) == kIoError);
  CHECK(guest.Do(kIn, 0, {kHeaderPiece, kStatusPiece}) == kIoError);
  CHECK(guest.Do(kOut, 0, {kHeaderPiece, kStatusPiece}) == kIoError);
  CHECK(guest.Do(kIn, 0, {{kHeader, 15, false}, kStatusPiece}) == kIoError);
  CHECK(guest.Do(kOut, 0, {kStatusPiece}) == kIoError);
  CHECK(guest.Do(7, 0, {kHeaderPiece, kStatusPiece}) == kUnsupported);
  CHECK(guest.Do(kFlush, 0, {kHeaderPiece}) == kUntouched);
  CHECK(guest.used[0].written == 0);
  CHECK(guest.driver.failures() == 0);
}

TEST_CASE("Block zeroes what it is told to, and nothing that cannot be") {
  Guest guest;
  REQUIRE(guest.driver.Start());
  guest.disk->bytes().assign(kSectors * 512, 'x');
  CHECK(guest.Zero(kDiscard, 8, 8, 0) == kOk);
  CHECK(guest.Zero(kWriteZeroes, 24, 8, 0) == kOk);
  CHECK(guest.Zero(kWriteZeroes, 32, 8, 1) == kOk);
  for (uint64_t sector = 0; sector < kSectors; ++sector) {
    const bool zero =
        (sector >= 8 && sector < 16) || (sector >= 24 && sector < 40);
    CHECK(guest.disk->bytes()[sector * 512] == (zero ? '\0' : 'x'));
  }
  CHECK(guest.Zero(kDiscard, 0, 1, 1) == kUnsupported);
  CHECK(guest.Zero(kWriteZeroes, 0, 1, 2) == kUnsupported);
  CHECK(guest.Zero(kDiscard, kSectors, 1, 0) == kIoError);
  CHECK(guest.Zero(kDiscard, UINT64_MAX, UINT32_MAX, 0) == kIoError);
  CHECK(guest.Zero(kWriteZeroes, 0, 0, 0) == kIoError);
  guest.PutRange(0, 1, 0);
  CHECK(guest.Do(kDiscard, 0,
                 {kHeaderPiece, {kRange, 15, false}, kStatusPiece}) ==
        kIoError);
  CHECK(guest.Do(kDiscard, 0,
                 {kHeaderPiece, {kRange, 32, false}, kStatusPiece}) ==
        kIoError);
  CHECK(guest.disk->bytes()[0] == 'x');
}

TEST_CASE("Block tells its serial number to who has room for it") {
  Guest guest({.serial = "0123456789abcdefghijXYZ"});
  REQUIRE(guest.driver.Start());
  CHECK(guest.Do(kGetId, 0, {kHeaderPiece, {kData, 20, true}, kStatusPiece}) ==
        kOk);
  CHECK(guest.used[0].written == 21);
  CHECK(guest.driver.Bytes(kData, 21) ==
        std::string("0123456789abcdefghij") + '\0');
  CHECK(guest.Do(kGetId, 0, {kHeaderPiece, {kData, 19, true}, kStatusPiece}) ==
        kIoError);
}

TEST_CASE("Block never writes to a read-only disk") {
  Guest guest({}, /*read_only=*/true);
  CHECK((guest.driver.OfferedFeatures() & (1 << 5)) != 0);
  CHECK((guest.driver.OfferedFeatures() & (1 << 13 | 1 << 14)) == 0);
  REQUIRE(guest.driver.Start());
  CHECK(guest.Read(0, 512) == kOk);
  CHECK(guest.Write(0, 512) == kIoError);
  CHECK(guest.Zero(kDiscard, 0, 1, 0) == kUnsupported);
  CHECK(guest.Do(kFlush, 0, {kHeaderPiece, kStatusPiece}) == kOk);
}

TEST_CASE("Block flushes for drivers that cannot") {
  Guest guest;
  REQUIRE(guest.driver.Start(8, 1 << 9));
  CHECK(guest.Write(0, 512) == kOk);
  CHECK(guest.disk->flushes() == 1);
  guest.driver.Reset();
  REQUIRE(guest.driver.Start(8));
  CHECK(guest.Write(0, 512) == kOk);
  CHECK(guest.disk->flushes() == 1);
}

TEST_CASE("Block passes the disk's errors on") {
  Guest guest;
  REQUIRE(guest.driver.Start());
  guest.disk->EndWith(absl::InternalError("disk on fire"));
  CHECK(guest.Read(0, 512) == kIoError);
  CHECK(guest.used[0].written == 1);
  CHECK(guest.Write(0, 512) == kIoError);
  CHECK(guest.Do(kFlush, 0, {kHeaderPiece, kStatusPiece}) == kIoError);
  guest.disk->EndWith(absl::OkStatus());
  CHECK(guest.Read(0, 512) == kOk);
}

TEST_CASE("Block ends requests in any order, and interrupts for each") {
  Guest guest;
  REQUIRE(guest.driver.Start());
  guest.disk->Hold();
  guest.PutHeader(kFlush, 0);
  for (const uint16_t head : std::array<uint16_t, 3>{0, 2, 4}) {
    guest.driver.Add(0, head, {kHeaderPiece, kStatusPiece});
  }
  guest.driver.Kick();
  CHECK(guest.disk->held() == 3);
  CHECK(guest.driver.TakeUsed(0).empty());
  CHECK(guest.Status() == kUntouched);
  const int before = guest.driver.interrupts();
  std::thread([&] { guest.disk->Release(); }).join();
  CHECK(guest.driver.TakeUsed(0) ==
        std::vector<UsedBuffer>{{4, 1}, {2, 1}, {0, 1}});
  CHECK(guest.driver.interrupts() > before);
}

TEST_CASE("Block bounds what a driver can have in flight") {
  Guest guest;
  REQUIRE(guest.driver.Start(256));
  guest.disk->Hold();
  guest.PutHeader(kFlush, 0);
  // The same buffer again and again, though it never came back.
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 200; ++j) {
      guest.driver.Add(0, 0, {kHeaderPiece, kStatusPiece});
    }
    guest.driver.Kick();
  }
  CHECK(guest.disk->held() == 256);
  CHECK_FALSE(guest.driver.kick_at().has_value());
  guest.disk->Release();
  CHECK(guest.driver.kick_at().has_value());
}

TEST_CASE("Block waits for the disk before it is reset, saved or gone") {
  auto guest = std::make_unique<Guest>();
  const std::shared_ptr<MemoryDisk> disk = guest->disk;
  REQUIRE(guest->driver.Start());
  disk->Hold();
  guest->PutHeader(kFlush, 0);
  guest->driver.Add(0, 0, {kHeaderPiece, kStatusPiece});
  guest->driver.Kick();
  REQUIRE(disk->held() == 1);
  std::thread later([disk] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    disk->Release();
  });
  SECTION("reset") {
    guest->driver.Reset();
    CHECK(guest->Status() == kOk);
    REQUIRE(guest->driver.Start());
    CHECK(guest->Read(0, 512) == kOk);
  }
  SECTION("saved") {
    guest->device().Quiesce();
    CHECK(guest->driver.TakeUsed(0).size() == 1);
    guest->device().Resume();
    CHECK(guest->Read(0, 512) == kOk);
  }
  SECTION("gone") { guest.reset(); }
  CHECK(disk->flushes() == 1);
  later.join();
}

TEST_CASE("Block holds parked requests back while it is quiesced") {
  std::shared_ptr<MemoryDisk> parked;
  Guest guest({.cancel_parked = [&] {
    parked->EndWith(absl::CancelledError("cancelled"));
    parked->Release();
    parked->EndWith(absl::OkStatus());
  }});
  parked = guest.disk;
  REQUIRE(guest.driver.Start());
  guest.disk->Hold();
  guest.PutHeader(kFlush, 0);
  guest.driver.Add(0, 0, {kHeaderPiece, kStatusPiece});
  guest.driver.Kick();
  REQUIRE(guest.disk->held() == 1);
  guest.device().Quiesce();
  CHECK(guest.device().holds_requests());
  CHECK(guest.driver.TakeUsed(0).empty());
  CHECK(guest.Status() == kUntouched);
  CHECK(guest.disk->flushes() == 0);
  SECTION("and starts them again") {
    guest.device().Resume();
    CHECK_FALSE(guest.device().holds_requests());
    CHECK(guest.driver.TakeUsed(0).size() == 1);
    CHECK(guest.Status() == kOk);
    CHECK(guest.disk->flushes() == 1);
  }
  SECTION("and forgets them with the driver") {
    guest.driver.Reset();
    CHECK_FALSE(guest.device().holds_requests());
    guest.device().Resume();
    REQUIRE(guest.driver.Start());
    CHECK(guest.Read(0, 512) == kOk);
    CHECK(guest.disk->flushes() == 0);
  }
}

TEST_CASE("Block grows with its disk, and lets the driver use it") {
  Guest guest;
  REQUIRE(guest.driver.Start());
  CHECK(guest.Read(kSectors, 512) == kIoError);
  absl::Status resized = absl::UnknownError("not called");
  guest.device().Resize(2 * kSectors * 512,
                        [&](absl::Status end) { resized = std::move(end); });
  CHECK(resized.ok());
  CHECK(guest.device().Config()[0] == 2 * kSectors);
  CHECK(guest.Read(kSectors, 512) == kOk);
  // A disk that cannot grow stays as it is.
  guest.disk->EndWith(absl::ResourceExhaustedError("full"));
  guest.device().Resize(4 * kSectors * 512,
                        [&](absl::Status end) { resized = std::move(end); });
  guest.disk->EndWith(absl::OkStatus());
  CHECK(absl::IsResourceExhausted(resized));
  CHECK(guest.Read(2 * kSectors, 512) == kIoError);
}

TEST_CASE("A reset ends what the disk has parked, a save does not") {
  std::shared_ptr<MemoryDisk> parked;
  int calls = 0;
  Guest guest({.cancel_parked = [&] {
    // Some requests park after the first call.
    if (++calls == 2) parked->Release();
  }});
  parked = guest.disk;
  REQUIRE(guest.driver.Start());
  guest.device().Quiesce();
  guest.device().Resume();
  guest.disk->Hold();
  guest.PutHeader(kFlush, 0);
  guest.driver.Add(0, 0, {kHeaderPiece, kStatusPiece});
  guest.driver.Kick();
  CHECK(calls == 0);
  guest.driver.Reset();
  CHECK(calls == 2);
  CHECK(guest.disk->held() == 0);
}

TEST_CASE("Block keeps to its rate") {
  SECTION("operations") {
    Guest guest({.operations_per_second = 3});
    REQUIRE(guest.driver.Start());
    guest.PutHeader(kFlush, 0);
    for (const uint16_t head : std::array<uint16_t, 4>{0, 2, 4, 6}) {
      guest.driver.Add(0, head, {kHeaderPiece, kStatusPiece});
    }
    guest.driver.Kick();
    CHECK(guest.driver.TakeUsed(0).size() == 3);
    CHECK(guest.driver.kick_at().has_value());
  }
  SECTION("bytes") {
    Guest guest({.bytes_per_second = 1000});
    REQUIRE(guest.driver.Start());
    // The second one is started with what is left, and owes the rest.
    CHECK(guest.Read(0, 512) == kOk);
    CHECK(guest.Read(0, 16384) == kOk);
    guest.PutHeader(kIn, 0);
    guest.driver.Add(0, 0, {kHeaderPiece, {kData, 512, true}, kStatusPiece});
    guest.driver.Kick();
    CHECK(guest.driver.TakeUsed(0).empty());
    CHECK(guest.driver.kick_at().has_value());
  }
}

}  // namespace
}  // namespace catnap::virtio
