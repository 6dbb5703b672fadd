#include "memory/memory_image.h"

#include <algorithm>
#include <array>
#include <random>

#include "memory/page_ranges.h"
#include "unit/memory/memory_test_support.h"

namespace catnap::memory {
namespace {

using base::PageRange;

constexpr uint64_t kPages = 4096;
constexpr uint64_t kSize = kPages * kPage;
// No gap is closed unless it must be.
constexpr OverlayOptions kExact{.max_extents = MemoryImage::kMaxExtents,
                                .wanted_extents = MemoryImage::kMaxExtents};

Extent Zeros(uint64_t first, uint64_t count) {
  return {first * kPage, count * kPage, Extent::kZero};
}
Extent FilePages(uint64_t first, uint64_t count, uint32_t file) {
  return {first * kPage, count * kPage, file};
}

// Sorted, disjoint ranges of up to `longest` pages, about `count` of them.
std::vector<PageRange> RandomRanges(std::mt19937& random, uint64_t count,
                                    uint64_t longest) {
  std::vector<PageRange> ranges;
  uint64_t at = 0;
  while (true) {
    at += random() % (2 * kPages / count) + 1;
    const uint64_t length = random() % longest + 1;
    if (at + length > kPages) return ranges;
    AppendPages(ranges, Pages(at, length));
    at += length;
  }
}

// `content` of `ranges` into a file, every page another.
std::shared_ptr<MemoryFile> RandomFile(std::mt19937& random,
                                       const std::vector<PageRange>& ranges,
                                       std::vector<uint8_t>& content) {
  auto file = NewFile(kSize);
  for (const PageRange& range : ranges) {
    const auto bytes = Must(file->Writable(range));
    for (uint64_t at = 0; at < range.length; at += kPage) {
      const auto value = static_cast<uint8_t>(random());
      std::memset(bytes.data() + at, value, kPage);
      std::memset(content.data() + range.offset + at, value, kPage);
    }
  }
  return file;
}

TEST_CASE("MemoryImage::Create rejects extents that do not cover it in order") {
  const std::vector<Extent> extents = GENERATE(
      std::vector<Extent>{}, std::vector<Extent>{Zeros(0, kPages - 1)},
      std::vector<Extent>{Zeros(0, kPages + 1)},
      std::vector<Extent>{Zeros(1, kPages - 1)},
      std::vector<Extent>{Zeros(0, 8), Zeros(4, kPages - 4)},
      std::vector<Extent>{Zeros(0, 8), Zeros(9, kPages - 9)},
      std::vector<Extent>{Zeros(0, kPages), Zeros(kPages, 0)},
      std::vector<Extent>{FilePages(0, kPages, 0)},
      std::vector<Extent>{{0, kPage + 1}, {kPage + 1, kSize - kPage - 1}},
      std::vector<Extent>{{0, UINT64_MAX - kPage + 1}});
  CHECK(MemoryImage::Create(kSize, {}, extents).status().code() ==
        absl::StatusCode::kInvalidArgument);
}

TEST_CASE("MemoryImage::Create rejects files of another size and no file") {
  const std::vector<Extent> extents{FilePages(0, kPages, 0)};
  CHECK_FALSE(MemoryImage::Create(kSize, {NewFile(kPage)}, extents).ok());
  CHECK_FALSE(MemoryImage::Create(kSize, {nullptr}, extents).ok());
}

TEST_CASE("MemoryImage::Create merges neighbours and drops unused files") {
  const auto image =
      Must(MemoryImage::Create(kSize, {NewFile(kSize), NewFile(kSize)},
                               {Zeros(0, 4), Zeros(4, 4), FilePages(8, 8, 1),
                                FilePages(16, kPages - 16, 1)}));
  CHECK(image->files().size() == 1);
  CHECK(image->extents() ==
        std::vector<Extent>{Zeros(0, 8), FilePages(8, kPages - 8, 0)});
}

TEST_CASE("MemoryImage::Create bounds the number of extents") {
  std::vector<Extent> extents;
  const uint64_t pages = MemoryImage::kMaxExtents + 1;
  for (uint64_t i = 0; i < pages; ++i) {
    extents.push_back(i % 2 == 0 ? Zeros(i, 1) : FilePages(i, 1, 0));
  }
  CHECK(MemoryImage::Create(pages * kPage, {NewFile(pages * kPage)}, extents)
            .status()
            .code() == absl::StatusCode::kInvalidArgument);
}

TEST_CASE(
    "MemoryImage::FromFile lays zeros over long holes, fills short ones") {
  const auto file = NewFile(kSize);
  Fill(*file, Pages(0, 1), 1);
  Fill(*file, Pages(4, 1), 2);    // A hole of 3 pages before it,
  Fill(*file, Pages(100, 1), 3);  // one of 95.
  Must(file->Seal());
  const auto image = Must(MemoryImage::FromFile(file));
  CHECK(image->extents() ==
        std::vector<Extent>{FilePages(0, 5, 0), Zeros(5, 95),
                            FilePages(100, 1, 0), Zeros(101, kPages - 101)});
  CHECK(Must(file->AllocatedBytes()) == 6 * kPage);
}

TEST_CASE("MemoryImage::Read rejects ranges that leave the image") {
  const auto image = Must(MemoryImage::Zero(kSize));
  std::array<uint8_t, 2> bytes{};
  CHECK(image->Read(kSize - 1, bytes).code() == absl::StatusCode::kOutOfRange);
  CHECK(image->Read(UINT64_MAX, bytes).code() == absl::StatusCode::kOutOfRange);
}

TEST_CASE("Overlay takes ranges from the file and the rest from the base") {
  const auto base = Must(MemoryImage::Zero(kSize));
  const auto file = NewFile(kSize);
  Fill(*file, Pages(10, 20), 5);
  const std::vector<PageRange> ranges{Pages(10, 20)};
  const auto result = Must(Overlay(*base, file, ranges));
  CHECK(result.materialized_bytes == 0);
  CHECK(result.image->extents() == std::vector<Extent>{Zeros(0, 10),
                                                       FilePages(10, 20, 0),
                                                       Zeros(30, kPages - 30)});
}

TEST_CASE("Overlay drops a file that it covers whole") {
  const auto old_file = NewFile(kSize);
  Fill(*old_file, Pages(8, 8), 1);
  Must(old_file->Seal());
  const auto base = Must(MemoryImage::Create(
      kSize, {old_file},
      {Zeros(0, 8), FilePages(8, 8, 0), Zeros(16, kPages - 16)}));
  const auto file = NewFile(kSize);
  Fill(*file, Pages(8, 8), 2);
  const std::vector<PageRange> ranges{Pages(8, 8)};
  const auto result = Must(Overlay(*base, file, ranges));
  REQUIRE(result.image->files().size() == 1);
  CHECK(result.image->files()[0] == file);
}

TEST_CASE("Overlay closes the smallest gaps first") {
  const auto base = Must(MemoryImage::Zero(kSize));
  const auto file = NewFile(kSize);
  const std::vector<PageRange> ranges{Pages(100, 1), Pages(103, 1),
                                      Pages(120, 1)};
  for (const PageRange& range : ranges) Fill(*file, range, 1);
  const auto result = Must(
      Overlay(*base, file, ranges, {.max_extents = 5, .wanted_extents = 5}));
  CHECK(result.materialized_bytes == 2 * kPage);
  CHECK(result.image->extents() ==
        std::vector<Extent>{Zeros(0, 100), FilePages(100, 4, 0), Zeros(104, 16),
                            FilePages(120, 1, 0), Zeros(121, kPages - 121)});
  CHECK(Must(result.image->HoleBytes()) == 0);
}

TEST_CASE("Overlay into a sealed file works when no gap must be closed") {
  const auto base = Must(MemoryImage::Zero(kSize));
  const auto file = NewFile(kSize);
  const std::vector<PageRange> ranges{Pages(100, 1), Pages(103, 1)};
  for (const PageRange& range : ranges) Fill(*file, range, 1);
  Must(file->Seal());
  CHECK(Overlay(*base, file, ranges, kExact).ok());
  CHECK(Overlay(*base, file, ranges, {.max_extents = 3}).status().code() ==
        absl::StatusCode::kFailedPrecondition);
}

TEST_CASE("Overlay rejects ranges, options and files that do not fit") {
  const auto base = Must(MemoryImage::Zero(kSize));
  const auto file = NewFile(kSize);
  const std::vector<PageRange> good{Pages(1, 1)};
  const std::vector<PageRange> behind{Pages(kPages, 1)};
  const std::vector<PageRange> unsorted{Pages(2, 1), Pages(1, 1)};
  const std::vector<PageRange> odd{{1, kPage}};
  CHECK_FALSE(Overlay(*base, file, behind).ok());
  CHECK_FALSE(Overlay(*base, file, unsorted).ok());
  CHECK_FALSE(Overlay(*base, file, odd).ok());
  CHECK_FALSE(Overlay(*base, file, good, {.max_extents = 0}).ok());
  CHECK_FALSE(
      Overlay(*base, file, good, {.max_extents = MemoryImage::kMaxExtents + 1})
          .ok());
  CHECK_FALSE(Overlay(*base, NewFile(kPage), good).ok());
  CHECK_FALSE(Overlay(*base, file, good, {}, behind).ok());
}

TEST_CASE("Chains of overlays keep the content and the bound") {
  const auto seed = GENERATE(range(0u, 4u));
  const size_t bound = GENERATE(1U, 2U, 7U, 64U, 1024U);
  std::mt19937 random(seed * 8191u + static_cast<unsigned>(bound));
  auto image = Must(MemoryImage::Zero(kSize));
  std::vector<uint8_t> content(kSize);
  for (int link = 0; link < 5; ++link) {
    const auto ranges =
        RandomRanges(random, random() % 400 + 1, random() % 16 + 1);
    const auto file = RandomFile(random, ranges, content);
    const auto result =
        Must(Overlay(*image, file, ranges,
                     {.max_extents = bound, .wanted_extents = bound / 2}));
    Must(file->Seal());
    image = result.image;
    REQUIRE(image->extents().size() <= bound);
    REQUIRE(Must(image->HoleBytes()) == 0);
    REQUIRE(ContentOf(*image) == content);
    for (const auto& used : image->files()) {
      const auto names = [&](const Extent& extent) {
        return image->FileOf(extent) == used.get();
      };
      REQUIRE(
          std::any_of(image->extents().begin(), image->extents().end(), names));
    }
  }
}

TEST_CASE("Gaps copied ahead are not copied again") {
  std::mt19937 random(7);
  std::vector<uint8_t> content(kSize);
  const std::vector<PageRange> all{Pages(0, kPages)};
  const auto first = RandomFile(random, all, content);
  Must(first->Seal());
  const auto base = Must(MemoryImage::FromFile(first));
  const auto ranges = RandomRanges(random, 300, 2);
  const auto file = RandomFile(random, ranges, content);
  const OverlayOptions options{.max_extents = 40};
  const auto gaps = Must(GapsToClose(*base, ranges, options));
  CHECK(TotalBytes(gaps) > 0);
  Must(CopyFromImage(*base, gaps, *file));
  const auto result = Must(Overlay(*base, file, ranges, options, gaps));
  CHECK(result.materialized_bytes == 0);
  CHECK(result.image->extents().size() <= 40);
  CHECK(ContentOf(*result.image) == content);
}

TEST_CASE("Sets of pages unite and subtract like sets") {
  const auto seed = GENERATE(range(0u, 50u));
  std::mt19937 random(seed);
  const auto a = RandomRanges(random, random() % 300 + 1, 20);
  const auto b = RandomRanges(random, random() % 300 + 1, 20);
  const auto bits = [](const std::vector<PageRange>& ranges) {
    std::vector<bool> set(kPages);
    for (const PageRange& range : ranges) {
      for (uint64_t i = 0; i < range.length / kPage; ++i) {
        set[range.offset / kPage + i] = true;
      }
    }
    return set;
  };
  const auto in_a = bits(a);
  const auto in_b = bits(b);
  std::vector<bool> both(kPages);
  std::vector<bool> only_a(kPages);
  for (size_t i = 0; i < kPages; ++i) {
    both[i] = in_a[i] || in_b[i];
    only_a[i] = in_a[i] && !in_b[i];
  }
  const auto united = UniteRanges(a, b);
  const auto rest = SubtractRanges(a, b);
  CHECK(bits(united) == both);
  CHECK(bits(rest) == only_a);
  CHECK(CheckPageRanges(united, kSize).ok());
  CHECK(CheckPageRanges(rest, kSize).ok());
}

TEST_CASE("IsZero sees a single byte wherever it is") {
  std::vector<uint8_t> page(kPage);
  CHECK(IsZero(page));
  const size_t at = GENERATE(0U, 1U, 15U, 16U, 17U, 2048U, 4095U);
  page[at] = 1;
  CHECK_FALSE(IsZero(page));
}

}  // namespace
}  // namespace catnap::memory
