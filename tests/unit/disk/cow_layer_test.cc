#include "disk/cow_layer.h"

#include <catch2/catch.hpp>
#include <list>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "crash_file.h"
#include "disk_model.h"

namespace catnap::disk {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kBlock = 4096;

// A layer whose operations happen when a test waits for them.
class Bench {
 public:
  static std::unique_ptr<Bench> OnPattern(uint64_t bytes = 64 * kMiB) {
    auto bench = std::make_unique<Bench>();
    bench->Take(CowLayer::Create(
        bench->file, bytes, std::make_shared<PatternDisk>(bench->file, kMiB),
        bench->Options()));
    return bench;
  }
  // Opens the content of another file.
  static std::unique_ptr<Bench> Reopen(const FileImage& image) {
    auto bench = std::make_unique<Bench>();
    bench->file = std::make_shared<CrashFile>(image);
    bench->Take(CowLayer::Open(bench->file,
                               std::make_shared<PatternDisk>(bench->file, kMiB),
                               bench->Options()));
    return bench;
  }

  CowLayerOptions Options() {
    CowLayerOptions options;
    options.on_parked = [this](const std::string& reason) {
      reports.push_back(reason);
    };
    return options;
  }
  void Take(absl::StatusOr<std::shared_ptr<CowLayer>> made) {
    status = made.status();
    if (made.ok()) layer = *std::move(made);
  }
  void Settle() {
    while (file->Step(&random)) {
    }
  }
  // Starts a request; the result is empty while it has not ended.
  template <typename Call>
  std::shared_ptr<std::optional<absl::Status>> Begin(Call&& call) {
    auto result = std::make_shared<std::optional<absl::Status>>();
    call([result](absl::Status ended) { *result = std::move(ended); });
    CHECK(!result->has_value());  // Never inside the call.
    return result;
  }
  template <typename Call>
  absl::StatusCode Do(Call&& call) {
    const auto result = Begin(std::forward<Call>(call));
    Settle();
    REQUIRE(result->has_value());
    return (*result)->code();
  }
  auto BeginWrite(uint64_t offset, uint64_t length, SectorValue value) {
    bytes.emplace_back(length);
    for (uint64_t at = 0; at < length; at += kSectorBytes) {
      FillSector(&bytes.back()[at], value);
    }
    const iovec buffer{bytes.back().data(), length};
    return Begin([&](BlockCompletion done) {
      layer->Write({&buffer, 1}, offset, std::move(done));
    });
  }
  absl::StatusCode Write(uint64_t offset, uint64_t length, SectorValue value) {
    const auto result = BeginWrite(offset, length, value);
    Settle();
    REQUIRE(result->has_value());
    return (*result)->code();
  }
  absl::StatusCode Flush() {
    return Do([&](BlockCompletion done) { layer->Flush(std::move(done)); });
  }
  absl::StatusCode Discard(uint64_t offset, uint64_t length) {
    return Do([&](BlockCompletion done) {
      layer->Discard(offset, length, std::move(done));
    });
  }
  absl::StatusCode Freeze() {
    return Do([&](BlockCompletion done) { layer->Freeze(std::move(done)); });
  }
  absl::StatusCode Resize(uint64_t size) {
    return Do(
        [&](BlockCompletion done) { layer->Resize(size, std::move(done)); });
  }
  std::optional<SectorValue> ValueAt(uint64_t offset) {
    std::vector<uint8_t> sector(kSectorBytes, uint8_t{0xee});
    const iovec buffer{sector.data(), sector.size()};
    const absl::StatusCode code = Do([&](BlockCompletion done) {
      layer->Read({&buffer, 1}, offset, std::move(done));
    });
    REQUIRE(code == absl::StatusCode::kOk);
    return ValueOf(sector.data());
  }

  std::shared_ptr<CrashFile> file = std::make_shared<CrashFile>();
  std::mt19937_64 random{1};
  std::vector<std::string> reports;
  absl::Status status;
  std::shared_ptr<CowLayer> layer;
  std::list<std::vector<uint8_t>> bytes;  // Of writes.
};

constexpr auto kOk = absl::StatusCode::kOk;

TEST_CASE("A CowLayer writes no more than the blocks that were written") {
  const auto bench = Bench::OnPattern();
  const uint64_t before = bench->file->bytes_written();
  CHECK(bench->Write(10 * kBlock, kBlock, 7) == kOk);
  CHECK(bench->Write(300 * kBlock, kBlock, 8) == kOk);
  CHECK(bench->file->bytes_written() - before == 2 * kBlock);
  // One map page, its directory, the root and the commit record.
  CHECK(bench->Flush() == kOk);
  CHECK(bench->file->bytes_written() - before == 5 * kBlock + kSectorBytes);
}

TEST_CASE("A CowLayer's flush without a new cluster is one fdatasync") {
  const auto bench = Bench::OnPattern();
  CHECK(bench->Write(0, kBlock, 7) == kOk);
  CHECK(bench->Flush() == kOk);
  const uint64_t syncs = bench->file->syncs();
  CHECK(bench->Write(0, kBlock, 8) == kOk);
  CHECK(bench->Flush() == kOk);
  CHECK(bench->file->syncs() == syncs + 1);
}

TEST_CASE("A CowLayer gives discarded clusters back and uses them again") {
  const auto bench = Bench::OnPattern();
  CHECK(bench->Write(0, 4 * kMiB, 7) == kOk);
  CHECK(bench->Flush() == kOk);
  const uint64_t used = bench->layer->allocated_bytes();
  CHECK(bench->Discard(0, 4 * kMiB) == kOk);
  CHECK(bench->file->punched_bytes() == 0);  // A crash may need them still.
  CHECK(bench->Flush() == kOk);
  CHECK(bench->file->punched_bytes() == 4 * kMiB);
  CHECK(bench->layer->allocated_bytes() == used - 4 * kMiB);
  CHECK(bench->ValueAt(0) == SectorValue{0});  // Not the parent's.
  const uint64_t size = *bench->file->Size();
  CHECK(bench->Write(32 * kMiB, 4 * kMiB, 9) == kOk);
  CHECK(bench->layer->allocated_bytes() == used);
  CHECK(*bench->file->Size() == size);
}

TEST_CASE("A CowLayer's last block is like any other") {
  // As large as what one page of the map describes.
  const auto bench = Bench::OnPattern(32 * kMiB);
  CHECK(bench->Write(32 * kMiB - kBlock, kBlock, 7) == kOk);
  CHECK(bench->ValueAt(32 * kMiB - 512) == SectorValue{7});
  CHECK(bench->Write(32 * kMiB - 512, 512, 8) == kOk);
  CHECK(bench->ValueAt(32 * kMiB - 512) == SectorValue{8});
  CHECK(bench->Discard(32 * kMiB - kBlock, kBlock) == kOk);
  CHECK(bench->ValueAt(32 * kMiB - 512) == SectorValue{0});
}

TEST_CASE("A freeze of a CowLayer on a full disk ends, and can come again") {
  const auto bench = Bench::OnPattern();
  CHECK(bench->Write(0, kBlock, 7) == kOk);
  bench->file->set_full(true);
  SECTION("nothing was parked before") {
    // The map has pages to write.
    CHECK(bench->Freeze() == absl::StatusCode::kResourceExhausted);
  }
  SECTION("a write is parked") {
    const auto write = bench->BeginWrite(2 * kMiB, kBlock, 8);
    bench->Settle();
    CHECK(bench->layer->parked());
    CHECK(bench->Freeze() == absl::StatusCode::kResourceExhausted);
    CHECK_FALSE(write->has_value());
    bench->file->set_full(false);
    bench->layer->RetryParked();
    bench->Settle();
    CHECK((*write)->ok());
  }
  SECTION("a flush parks while the freeze waits for it") {
    const auto flush = bench->Begin(
        [&](BlockCompletion done) { bench->layer->Flush(std::move(done)); });
    CHECK(bench->Freeze() == absl::StatusCode::kResourceExhausted);
    CHECK_FALSE(flush->has_value());
    bench->file->set_full(false);
    bench->layer->RetryParked();
    bench->Settle();
    CHECK((*flush)->ok());
  }
  bench->file->set_full(false);
  CHECK_FALSE(bench->layer->read_only());
  CHECK(bench->Write(kMiB, kBlock, 9) == kOk);
  CHECK(bench->Flush() == kOk);
  CHECK_FALSE(bench->layer->parked());
  CHECK(bench->Freeze() == kOk);
  CHECK(bench->layer->read_only());
  const auto reopened = Bench::Reopen(bench->file->Content());
  REQUIRE(reopened->status.ok());
  CHECK(reopened->layer->read_only());
  CHECK(reopened->ValueAt(0) == SectorValue{7});
  CHECK(reopened->ValueAt(kMiB) == SectorValue{9});
}

TEST_CASE("A flush that must not wait says that the disk is full") {
  const auto bench = Bench::OnPattern();
  CHECK(bench->Write(0, kBlock, 7) == kOk);
  bench->file->set_full(true);
  const auto flush = [&] {
    return bench->Do([&](BlockCompletion done) {
      bench->layer->FlushOrFail(std::move(done));
    });
  };
  CHECK(flush() == absl::StatusCode::kResourceExhausted);
  CHECK_FALSE(bench->layer->parked());
  bench->file->set_full(false);
  CHECK(flush() == kOk);
  CHECK(Bench::Reopen(bench->file->Content())->ValueAt(0) == SectorValue{7});
}

TEST_CASE("A CowLayer refuses what is no range of it") {
  const auto bench = Bench::OnPattern();
  using absl::StatusCode;
  CHECK(bench->Write(64 * kMiB, 512, 1) == StatusCode::kOutOfRange);
  CHECK(bench->Write(64 * kMiB - 512, 1024, 1) == StatusCode::kOutOfRange);
  CHECK(bench->Write(UINT64_MAX - 511, 512, 1) == StatusCode::kOutOfRange);
  CHECK(bench->Discard(1, 512) == StatusCode::kInvalidArgument);
  CHECK(bench->Discard(0, kMaxZeroBytes + 512) == StatusCode::kInvalidArgument);
  CHECK(bench->Discard(512, 0) == kOk);
  CHECK(bench->Resize(32 * kMiB) == StatusCode::kInvalidArgument);
  CHECK(bench->Resize(64 * kMiB + 1) == StatusCode::kInvalidArgument);
  CHECK(bench->Resize(kMaxVirtualBytes + 512) == StatusCode::kInvalidArgument);
}

TEST_CASE("A CowLayer grows while it is used, for good") {
  const auto bench = Bench::OnPattern();
  CHECK(bench->Resize(uint64_t{1} << 40) == kOk);
  CHECK(bench->layer->capacity() == uint64_t{1} << 40);
  CHECK(bench->ValueAt(uint64_t{1} << 39) == SectorValue{0});
  CHECK(bench->Write(uint64_t{1} << 39, kBlock, 5) == kOk);
  CHECK(bench->Flush() == kOk);
  const auto again = Bench::Reopen(bench->file->Content());
  REQUIRE(again->status.ok());
  CHECK(again->layer->capacity() == uint64_t{1} << 40);
  CHECK(again->ValueAt(uint64_t{1} << 39) == SectorValue{5});
}

TEST_CASE("A write on a full disk waits, says so, and is tried again") {
  const auto bench = Bench::OnPattern();
  bench->file->set_full(true);
  const auto write = bench->BeginWrite(0, kBlock, 7);
  bench->Settle();
  CHECK(!write->has_value());
  REQUIRE(bench->reports.size() == 1);
  CHECK(bench->reports[0].find("no space left") != std::string::npos);
  REQUIRE(bench->file->FireTimer());  // Still full.
  bench->Settle();
  CHECK(!write->has_value());
  bench->file->set_full(false);
  REQUIRE(bench->file->FireTimer());
  bench->Settle();
  REQUIRE(write->has_value());
  CHECK((*write)->ok());
  CHECK(bench->reports.size() == 2);
  CHECK(bench->reports.back().empty());
  CHECK(bench->ValueAt(0) == SectorValue{7});
}

TEST_CASE("Parked requests of a CowLayer are tried again on demand") {
  const auto bench = Bench::OnPattern();
  bench->file->set_full(true);
  const auto write = bench->BeginWrite(0, kBlock, 7);
  bench->Settle();
  bench->file->set_full(false);
  bench->layer->RetryParked();
  bench->Settle();
  CHECK(write->has_value());
}

TEST_CASE("A flush on a full disk waits, and loses nothing when cancelled") {
  const auto bench = Bench::OnPattern();
  CHECK(bench->Write(0, kBlock, 7) == kOk);
  bench->file->set_full(true);
  const auto flush = bench->Begin(
      [&](BlockCompletion done) { bench->layer->Flush(std::move(done)); });
  bench->Settle();
  CHECK(!flush->has_value());
  bench->layer->CancelParked();
  bench->Settle();
  REQUIRE(flush->has_value());
  CHECK(absl::IsCancelled(**flush));
  bench->file->set_full(false);
  CHECK(bench->Flush() == kOk);
  const auto again = Bench::Reopen(bench->file->Content());
  REQUIRE(again->status.ok());
  CHECK(again->ValueAt(0) == SectorValue{7});
}

TEST_CASE("Cancelled requests let those behind them go on") {
  const auto bench = Bench::OnPattern();
  bench->file->set_full(true);
  const auto write = bench->BeginWrite(0, kBlock, 7);
  bool drained = false;
  bench->layer->Drain([&] { drained = true; });
  std::vector<uint8_t> sector(kSectorBytes);
  const iovec buffer{sector.data(), sector.size()};
  const auto read = bench->Begin([&](BlockCompletion done) {
    bench->layer->Read({&buffer, 1}, 0, std::move(done));
  });
  bench->Settle();
  CHECK(!read->has_value());
  CHECK(!drained);
  bench->layer->CancelParked();
  bench->Settle();
  REQUIRE(write->has_value());
  CHECK(absl::IsCancelled(**write));
  REQUIRE(read->has_value());
  CHECK((*read)->ok());
  CHECK(ValueOf(sector.data()) == PatternDisk::ValueAt(0));
  CHECK(drained);
}

TEST_CASE("A CowLayer that is given up cancels what is parked") {
  const auto bench = Bench::OnPattern();
  bench->file->set_full(true);
  const auto write = bench->BeginWrite(0, kBlock, 7);
  bench->Settle();
  bench->layer.reset();
  REQUIRE(write->has_value());
  CHECK(absl::IsCancelled(**write));
  CHECK(bench->file->FireTimer());  // Finds nobody.
}

TEST_CASE("After a failed fdatasync no flush of a CowLayer succeeds") {
  const auto bench = Bench::OnPattern();
  CHECK(bench->Write(0, kBlock, 7) == kOk);
  bench->file->set_sync_error(absl::UnknownError("EIO"));
  CHECK(bench->Flush() == absl::StatusCode::kDataLoss);
  bench->file->set_sync_error(absl::OkStatus());
  CHECK(bench->Flush() == absl::StatusCode::kDataLoss);
}

TEST_CASE("A frozen CowLayer carries another, and is never written again") {
  const auto bench = Bench::OnPattern(2 * kMiB);
  CHECK(bench->Write(0, kBlock, 7) == kOk);
  CHECK(bench->Write(kMiB, kBlock, 8) == kOk);
  auto early =
      CowLayer::CreateOnTop(std::make_shared<CrashFile>(), bench->layer, {});
  CHECK(absl::IsFailedPrecondition(early.status()));
  CHECK(bench->Freeze() == kOk);
  CHECK(bench->layer->read_only());
  CHECK(bench->Write(0, kBlock, 9) == absl::StatusCode::kFailedPrecondition);
  CHECK(bench->Freeze() == absl::StatusCode::kFailedPrecondition);

  const auto frozen = Bench::Reopen(bench->file->Content());
  REQUIRE(frozen->status.ok());
  CHECK(frozen->layer->read_only());
  Bench top;  // On one queue with the layer below.
  top.file = std::make_shared<CrashFile>();
  top.Take(CowLayer::CreateOnTop(top.file, frozen->layer, {}));
  REQUIRE(top.status.ok());
  CHECK(top.layer->capacity() == 2 * kMiB);
  const auto write = top.BeginWrite(512, 512, 9);
  while (!write->has_value()) {
    top.Settle();
    frozen->Settle();
  }
  std::vector<uint8_t> bytes(kMiB + kBlock);
  const iovec buffer{bytes.data(), bytes.size()};
  const auto read = top.Begin([&](BlockCompletion done) {
    top.layer->Read({&buffer, 1}, 0, std::move(done));
  });
  while (!read->has_value()) {
    top.Settle();
    frozen->Settle();
  }
  CHECK(ValueOf(&bytes[0]) == SectorValue{7});     // The layer below,
  CHECK(ValueOf(&bytes[512]) == SectorValue{9});   // this one,
  CHECK(ValueOf(&bytes[1024]) == SectorValue{7});  // below again,
  CHECK(ValueOf(&bytes[kBlock]) == PatternDisk::ValueAt(8));  // the lowest,
  CHECK(ValueOf(&bytes[kMiB]) == SectorValue{8});             // and below.
}

TEST_CASE("A CowLayer opens only on the disk that it was made on") {
  const auto bench = Bench::OnPattern();
  const FileImage image = bench->file->Content();
  const auto open = [&](std::shared_ptr<BlockIo> parent) {
    return CowLayer::Open(std::make_shared<CrashFile>(image), std::move(parent),
                          {})
        .status();
  };
  CHECK(open(std::make_shared<PatternDisk>(bench->file, kMiB)).ok());
  CHECK(absl::IsFailedPrecondition(open(nullptr)));
  CHECK(absl::IsFailedPrecondition(
      open(std::make_shared<PatternDisk>(bench->file, 2 * kMiB))));
  const auto header = CowLayer::ReadHeader(bench->file.get());
  REQUIRE(header.ok());
  CHECK(header->has_parent);
  CHECK(header->parent_id == DiskId{1, 2, 3});
  CHECK(header->id == bench->layer->id());
}

TEST_CASE("A damaged layer file is an error that says where") {
  const auto bench = Bench::OnPattern();
  CHECK(bench->Write(0, kBlock, 7) == kOk);
  CHECK(bench->Flush() == kOk);
  const FileImage good = bench->file->Content();
  // Data starts at the second cluster; what is before is all map.
  for (size_t at = 0; at < kClusterBytes; at += 7) {
    FileImage bad = good;
    bad[at] ^= 0x10;
    const absl::Status status = Bench::Reopen(bad)->status;
    CAPTURE(at, status.ToString());
    CHECK((status.ok() || absl::IsDataLoss(status)));
    // The header, the newest pages; not the record of the commit before.
    const bool header = at < kHeaderBytes;
    if (header) CHECK(absl::IsDataLoss(status));
  }
  for (size_t size = 0; size < good.size(); size += 512) {
    const absl::Status status =
        Bench::Reopen(FileImage(good.begin(),
                                good.begin() + static_cast<ptrdiff_t>(size)))
            ->status;
    CAPTURE(size, status.ToString());
    CHECK(absl::IsDataLoss(status));
    CHECK(status.ToString().size() > 20);
  }
}

}  // namespace
}  // namespace catnap::disk
