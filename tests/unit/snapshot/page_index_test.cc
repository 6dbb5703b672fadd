#include "snapshot/page_index.h"

#include <algorithm>
#include <catch2/catch.hpp>

namespace catnap::snapshot {
namespace {

constexpr uint64_t kPage = base::kPageBytes;

// 100 pages: 10 zero, 40 stored in two frames, 30 as the parent, 20 stored in
// the second file's only frame, which has 25 places.
PageIndex SomeIndex() {
  PageIndex index;
  index.ram_pages = 100;
  index.has_parent = true;
  index.files = {
      {.name = "a.chunks", .id = {1}, .file_bytes = 1000, .hot_bytes = 70},
      {.name = "b.chunks", .id = {2}, .file_bytes = 500, .hot_bytes = 0}};
  index.frames = {{.file = 0,
                   .bytes = 100,
                   .offset = 64,
                   .crc32c = 1,
                   .pages = 30,
                   .first_slot = 0},
                  {.file = 0,
                   .bytes = 200,
                   .offset = 300,
                   .crc32c = 2,
                   .pages = 10,
                   .first_slot = 30},
                  {.file = 1,
                   .bytes = 436,
                   .offset = 64,
                   .crc32c = 3,
                   .pages = 25,
                   .first_slot = 40}};
  index.runs = {
      {.page = 0, .pages = 10, .kind = PageKind::kZero, .slot = 0},
      {.page = 10, .pages = 40, .kind = PageKind::kStored, .slot = 0},
      {.page = 50, .pages = 30, .kind = PageKind::kParent, .slot = 0},
      {.page = 80, .pages = 20, .kind = PageKind::kStored, .slot = 45}};
  return index;
}

absl::StatusCode CodeOf(const PageIndex& index) {
  return DecodePageIndex(EncodePageIndex(index), index.ram_pages,
                         index.has_parent)
      .status()
      .code();
}

TEST_CASE("A page index comes back as it was") {
  const PageIndex index = SomeIndex();
  const auto again = DecodePageIndex(EncodePageIndex(index), 100, true);
  REQUIRE(again.ok());
  CHECK(*again == index);
}

TEST_CASE("A page index says what its guest owns") {
  const PageIndex index = SomeIndex();
  using Ranges = std::vector<base::PageRange>;
  CHECK(RangesOf(index, PageKind::kParent) == Ranges{{50 * kPage, 30 * kPage}});
  CHECK(OwnRanges(index) == Ranges{{0, 50 * kPage}, {80 * kPage, 20 * kPage}});
  PageIndex alone = index;
  alone.has_parent = false;
  CHECK(OwnRanges(alone) ==
        Ranges{{10 * kPage, 40 * kPage}, {80 * kPage, 20 * kPage}});
  CHECK(UnionOf(Ranges{{0, kPage}, {4 * kPage, kPage}},
                Ranges{{kPage, kPage}, {4 * kPage, 2 * kPage}}) ==
        Ranges{{0, 2 * kPage}, {4 * kPage, 2 * kPage}});
}

TEST_CASE("A page index that lies is DATA_LOSS") {
  PageIndex index = SomeIndex();
  REQUIRE(CodeOf(index) == absl::StatusCode::kOk);
  SECTION("a page of the parent without one") { index.has_parent = false; }
  SECTION("two files of one name") { index.files[1].name = "a.chunks"; }
  SECTION("two files of one id") { index.files[1].id = {1}; }
  SECTION("a name that leaves the directory") {
    index.files[0].name = "../a.chunks";
  }
  SECTION("a hidden name") { index.files[0].name = ".a.chunks"; }
  SECTION("a name of another kind") { index.files[0].name = "a.layer"; }
  SECTION("a long name") {
    index.files[0].name = std::string(60, 'a') + ".chunks";
  }
  SECTION("a file shorter than its header") {
    index.files[0].file_bytes = 63;
    index.files[0].hot_bytes = 0;
  }
  SECTION("more hot bytes than bytes") { index.files[0].hot_bytes = 1001; }
  SECTION("a frame beyond its file") { index.frames[2].bytes = 437; }
  SECTION("an empty frame") { index.frames[0].bytes = 0; }
  SECTION("a frame larger than any") {
    index.files[1].file_bytes = 10 << 20;
    index.frames[2].bytes = kMaxFrameBytes + 1;
  }
  SECTION("a frame of no pages") { index.frames[1].pages = 0; }
  SECTION("a frame of too many pages") { index.frames[2].pages = 257; }
  SECTION("two pages at one place") { index.runs[3].slot = 39; }
  SECTION("pages behind the last place") { index.runs[3].slot = 46; }
  SECTION("a run that continues its neighbour") {
    index.runs[2].kind = PageKind::kStored;
    index.runs[2].slot = 40;
    index.runs[2].pages = 5;
  }
  SECTION("a frame without pages") {
    index.runs[3].kind = PageKind::kZero;
    index.runs[3].slot = 0;
  }
  SECTION("fewer pages than there are") { index.runs.pop_back(); }
  SECTION("more pages than there are") { index.runs[3].pages = 21; }
  SECTION("a run of nothing") { index.runs[0].pages = 0; }
  CHECK(CodeOf(index) == absl::StatusCode::kDataLoss);
}

TEST_CASE("A frame in the middle that holds no page is DATA_LOSS") {
  PageIndex index = SomeIndex();
  index.runs = {
      {.page = 0, .pages = 30, .kind = PageKind::kStored, .slot = 0},
      {.page = 30, .pages = 50, .kind = PageKind::kZero, .slot = 0},
      {.page = 80, .pages = 20, .kind = PageKind::kStored, .slot = 40}};
  CHECK(CodeOf(index) == absl::StatusCode::kDataLoss);
}

TEST_CASE("A cut page index is DATA_LOSS at every length") {
  const std::vector<uint8_t> bytes = EncodePageIndex(SomeIndex());
  for (size_t length = 0; length < bytes.size(); ++length) {
    CAPTURE(length);
    REQUIRE(DecodePageIndex(std::span(bytes).first(length), 100, true)
                .status()
                .code() == absl::StatusCode::kDataLoss);
  }
  std::vector<uint8_t> longer = bytes;
  longer.push_back(0);
  CHECK(DecodePageIndex(longer, 100, true).status().code() ==
        absl::StatusCode::kDataLoss);
}

TEST_CASE("Numbers have one form in a page index") {
  // No files, then 100 zero pages: 0x190 as two bytes, and as three.
  const std::vector<uint8_t> shortest = {0, 0x90, 0x03};
  const std::vector<uint8_t> longer = {0, 0x90, 0x83, 0x00};
  const std::vector<uint8_t> endless(20, 0xff);
  CHECK(DecodePageIndex(shortest, 100, false).ok());
  CHECK_FALSE(DecodePageIndex(longer, 100, false).ok());
  CHECK_FALSE(DecodePageIndex(endless, 100, false).ok());
}

TEST_CASE("Counts that nothing backs are refused before they are used") {
  // One file with 2^60 frames.
  PageIndex index = SomeIndex();
  index.files.resize(1);
  index.frames.clear();
  index.runs.clear();
  std::vector<uint8_t> bytes = EncodePageIndex(index);
  bytes.back() = 0x80;
  for (int i = 0; i < 7; ++i) bytes.push_back(0x80);
  bytes.push_back(0x10);
  CHECK(DecodePageIndex(bytes, 100, true).status().code() ==
        absl::StatusCode::kDataLoss);
}

TEST_CASE("An overlay keeps only what is needed") {
  const PageIndex base = SomeIndex();
  NewPages added;
  added.file = {
      .name = "c.chunks", .id = {3}, .file_bytes = 164, .hot_bytes = 0};
  added.frames = {{.bytes = 100, .offset = 64, .crc32c = 4, .pages = 15}};
  // Pages 30 to 44 are new, the file "b" is not needed any more.
  added.runs = {{.page = 30, .pages = 15, .kind = PageKind::kStored, .slot = 0},
                {.page = 80, .pages = 20, .kind = PageKind::kZero, .slot = 0}};
  const PageIndex index = OverlayPages(&base, 100, true, added);
  REQUIRE(index.files.size() == 2);
  CHECK(index.files[0].name == "a.chunks");
  CHECK(index.files[1].name == "c.chunks");
  CHECK(index.frames.size() == 3);
  const std::vector<PageRun> runs = {
      {.page = 0, .pages = 10, .kind = PageKind::kZero, .slot = 0},
      {.page = 10, .pages = 20, .kind = PageKind::kStored, .slot = 0},
      {.page = 30, .pages = 15, .kind = PageKind::kStored, .slot = 40},
      {.page = 45, .pages = 5, .kind = PageKind::kStored, .slot = 35},
      {.page = 50, .pages = 30, .kind = PageKind::kParent, .slot = 0},
      {.page = 80, .pages = 20, .kind = PageKind::kZero, .slot = 0}};
  CHECK(index.runs == runs);
  CHECK(CodeOf(index) == absl::StatusCode::kOk);
}

TEST_CASE("An overlay closes the gap of a frame that went") {
  PageIndex base = SomeIndex();
  base.runs = {{.page = 0, .pages = 65, .kind = PageKind::kStored, .slot = 0},
               {.page = 65, .pages = 35, .kind = PageKind::kZero, .slot = 0}};
  NewPages added;  // The second frame's pages become the parent's.
  added.runs = {
      {.page = 30, .pages = 10, .kind = PageKind::kParent, .slot = 0}};
  const PageIndex index = OverlayPages(&base, 100, true, added);
  CHECK(index.frames.size() == 2);
  CHECK(
      index.runs[2] ==
      PageRun{.page = 40, .pages = 25, .kind = PageKind::kStored, .slot = 30});
  CHECK(CodeOf(index) == absl::StatusCode::kOk);
}

TEST_CASE("Compaction is due when files are many or mostly dead") {
  PageIndex index = SomeIndex();
  CHECK_FALSE(ShouldCompact(index));
  index.files.resize(kCompactFiles);
  CHECK(ShouldCompact(index));
  index = SomeIndex();
  index.files[0].file_bytes = 1 << 20;
  CHECK(ShouldCompact(index));
}

}  // namespace
}  // namespace catnap::snapshot
