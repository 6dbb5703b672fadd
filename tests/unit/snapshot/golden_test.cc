#include <catch2/catch.hpp>

#include "golden/golden_guest.h"
#include "unit/snapshot/snapshot_guest.h"

namespace catnap::snapshot {
namespace {

using test::kPage;
using test::MakePool;
using test::Restore;

const std::filesystem::path kGoldens = CATNAP_TEST_GOLDENS;

// Reads a snapshot in the given memory of its image.
absl::Status ReadInto(const std::filesystem::path& folder,
                      std::vector<uint8_t>* memory) {
  const auto pool = MakePool(1);
  const auto reader = SnapshotReader::Open(folder.string());
  if (!reader.ok()) return reader.status();
  if ((*reader)->ram_bytes() != memory->size()) {
    return absl::InternalError("another size");
  }
  return Restore(**reader, pool.get(), memory);
}

TEST_CASE("Format 1 is read: a snapshot without a parent") {
  const auto reader = SnapshotReader::Open((kGoldens / "v1/alone").string());
  REQUIRE(reader.ok());
  CHECK((*reader)->sections() == test::GoldenSections());
  CHECK_FALSE((*reader)->parent().has_value());
  CHECK((*reader)->hot_frames() == 1);
  CHECK((*reader)->FrameAt(9 * kPage) == 0U);
  std::vector<uint8_t> memory(test::kGoldenPages * kPage);
  REQUIRE(ReadInto(kGoldens / "v1/alone", &memory).ok());
  CHECK(memory == test::GoldenAlone());
}

TEST_CASE("Format 1 is read: the second snapshot of a child") {
  const auto reader = SnapshotReader::Open((kGoldens / "v1/child").string());
  REQUIRE(reader.ok());
  CHECK((*reader)->parent() == test::kGoldenParent);
  CHECK((*reader)->index().files.size() == 2);
  std::vector<uint8_t> memory = test::GoldenImage();
  REQUIRE(ReadInto(kGoldens / "v1/child", &memory).ok());
  CHECK(memory == test::GoldenChild());
}

TEST_CASE("Damaged snapshots are refused with the code in their name") {
  size_t count = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(kGoldens / "bad")) {
    const std::string name = entry.path().filename().string();
    CAPTURE(name);
    std::vector<uint8_t> memory(test::kGoldenPages * kPage);
    const absl::Status status = ReadInto(entry.path(), &memory);
    CHECK(absl::StatusCodeToString(status.code()) ==
          name.substr(0, name.find('-')));
    ++count;
  }
  CHECK(count >= 15);
}

}  // namespace
}  // namespace catnap::snapshot
