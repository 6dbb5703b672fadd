// GuestMemory with images mapped.
#include <random>

#include "memory/page_ranges.h"
#include "unit/memory/memory_test_support.h"

namespace catnap::memory {
namespace {

constexpr uint64_t kPages = 1024;
constexpr uint64_t kSize = kPages * kPage;

// Runs of 32 pages, of a file and of zeros in turn.
std::shared_ptr<const MemoryImage> StripedImage() {
  const auto file = NewFile(kSize);
  for (uint64_t page = 0; page < kPages; page += 64) {
    Fill(*file, Pages(page, 32), static_cast<uint8_t>(page / 64 + 1));
  }
  Must(file->Seal());
  return Must(MemoryImage::FromFile(file));
}

TEST_CASE("A mapped image shows its content and keeps what guests write out") {
  const auto image = StripedImage();
  const auto content = ContentOf(*image);
  auto first = NewGuest(image);
  const auto second = NewGuest(image);
  CHECK(ContentOf(*first) == content);
  for (uint64_t page = 0; page < kPages; ++page) Put(*first, page, 99);
  CHECK(ContentOf(*second) == content);
  CHECK(ContentOf(*image) == content);
}

TEST_CASE("Guests never make the files of an image grow") {
  const auto image = StripedImage();
  const uint64_t before = Must(image->AllocatedBytes());
  CHECK(before == kSize / 2);
  CHECK(Must(image->HoleBytes()) == 0);
  auto memory = NewGuest(image);
  for (uint64_t page = 0; page < kPages; ++page) {
    At(*memory, page);
    Put(*memory, page, 1);
  }
  CHECK(Must(image->AllocatedBytes()) == before);
}

TEST_CASE("HoleBytes tells of extents that a guest could fill") {
  const auto image = Must(MemoryImage::Create(
      kSize, {NewFile(kSize)}, {{.offset = 0, .length = kSize, .file = 0}}));
  CHECK(Must(image->HoleBytes()) == kSize);
}

TEST_CASE("Random writes through guests do what they do to plain bytes") {
  const auto seed = GENERATE(range(0u, 10u));
  std::mt19937 random(seed);
  auto memory = NewGuest(StripedImage());
  auto model = ContentOf(*memory->image());
  for (int i = 0; i < 1000; ++i) {
    const uint64_t at = random() % kSize;
    const auto value = static_cast<uint8_t>(random());
    Must(memory->Store<uint8_t>(Gpa{at}, value));
    model[at] = value;
  }
  CHECK(ContentOf(*memory) == model);
}

TEST_CASE("Every mapping of an image stays out of children and core dumps") {
  const auto image = StripedImage();
  const auto memory = NewGuest(image);
  const auto flags = VmFlagsIn(memory->host_base(), memory->size());
  CHECK(flags.size() == image->extents().size());
  for (const std::string& line : flags) {
    CHECK_THAT(line, Catch::Contains(" dc") && Catch::Contains(" dd"));
  }
}

TEST_CASE("Rebase keeps the flags of mappings") {
  auto memory = NewGuest(Must(MemoryImage::Zero(kSize)));
  for (uint64_t page = 100; page < 200; ++page) Put(*memory, page, 3);
  const auto file = NewFile(kSize);
  const std::vector<base::PageRange> own{Pages(100, 100)};
  std::memcpy(Must(file->Writable(own[0])).data(),
              memory->host_base() + own[0].offset, own[0].length);
  const auto result = Must(Overlay(*memory->image(), file, own));
  Must(file->Seal());
  Must(memory->Rebase(result.image));
  const auto flags = VmFlagsIn(memory->host_base(), memory->size());
  CHECK(flags.size() == 3);
  for (const std::string& line : flags) {
    CHECK_THAT(line, Catch::Contains(" dc") && Catch::Contains(" dd"));
  }
  CHECK(Must(OwnPages(*memory)).empty());
  CHECK(At(*memory, 150) == 3);
}

TEST_CASE("Rebase leaves own pages alone where the image stays the same") {
  auto memory = NewGuest(StripedImage());
  Put(*memory, 1, 42);    // Of the file.
  Put(*memory, 40, 43);   // Of zeros.
  Put(*memory, 700, 44);  // What the overlay has.
  const auto file = NewFile(kSize);
  const std::vector<base::PageRange> captured{Pages(700, 1)};
  std::memcpy(Must(file->Writable(captured[0])).data(),
              memory->host_base() + captured[0].offset, kPage);
  const auto result =
      Must(Overlay(*memory->image(), file, captured,
                   {.wanted_extents = MemoryImage::kMaxExtents}));
  const auto content = ContentOf(*memory);
  Must(memory->Rebase(result.image));
  CHECK(ContentOf(*memory) == content);
  CHECK(Must(OwnPages(*memory)) ==
        std::vector<base::PageRange>{Pages(1, 1), Pages(40, 1)});
}

TEST_CASE("What is discarded shows the image again, and takes no memory") {
  auto memory = NewGuest(StripedImage());
  // Of a file, of zeros, and of both.
  const std::vector<base::PageRange> given{Pages(3, 1), Pages(40, 2),
                                           Pages(60, 10)};
  const std::vector<base::PageRange> kept{Pages(5, 1), Pages(50, 1)};
  for (const auto& ranges : {given, kept}) {
    for (const base::PageRange& range : ranges) {
      for (uint64_t at = 0; at < range.length; at += kPage) {
        Put(*memory, (range.offset + at) / kPage, 99);
      }
    }
  }
  Must(memory->Discard(given));
  CHECK(Must(OwnPages(*memory)) == kept);
  CHECK(At(*memory, 3) == 1);
  CHECK(At(*memory, 41) == 0);
  CHECK(At(*memory, 64) == 2);
  CHECK(At(*memory, 5) == 99);
}

TEST_CASE("An image of another size is not mapped") {
  const auto small = Must(MemoryImage::Zero(kPage));
  auto memory = NewGuest(kSize);
  CHECK(memory->Rebase(small).code() == absl::StatusCode::kFailedPrecondition);
  CHECK(memory->MapImage(small).code() == absl::StatusCode::kInvalidArgument);
  CHECK_FALSE(memory->mapped());
  Must(memory->MapAnonymous());
  CHECK(memory->Rebase(small).code() == absl::StatusCode::kInvalidArgument);
}

TEST_CASE("A guest of 5 GiB has its image on both sides of the hole") {
  constexpr uint64_t kLow = 3ull << 30;
  constexpr uint64_t kHigh = 2ull << 30;
  constexpr uint64_t kHighStart = 4ull << 30;
  auto memory = Must(GuestMemory::Reserve(
      {{Gpa{0}, kLow, 0}, {Gpa{kHighStart}, kHigh, kLow}}));
  const auto file = NewFile(kLow + kHigh);
  Fill(*file, {kLow - kPage, 2 * kPage}, 6);
  Must(file->Seal());
  Must(memory->MapImage(Must(MemoryImage::FromFile(file))));
  CHECK(Must(memory->Load<uint8_t>(Gpa{kLow - 1})) == 6);
  CHECK(Must(memory->Load<uint8_t>(Gpa{kHighStart})) == 6);
  Must(memory->Store<uint8_t>(Gpa{kHighStart + kPage}, 7));
  Must(memory->Store<uint8_t>(Gpa{kHighStart + kHigh - 1}, 7));
  CHECK(Must(OwnPages(*memory)) ==
        std::vector<base::PageRange>{{kLow + kPage, kPage},
                                     {kLow + kHigh - kPage, kPage}});
}

}  // namespace
}  // namespace catnap::memory
