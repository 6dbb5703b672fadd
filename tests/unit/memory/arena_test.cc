#include "memory/arena.h"

#include <sys/mman.h>

#include <random>

#include "memory/page_ranges.h"
#include "unit/memory/memory_test_support.h"

namespace catnap::memory {
namespace {

using base::PageRange;

constexpr uint64_t kPages = 4096;
constexpr uint64_t kSize = kPages * kPage;

std::shared_ptr<const MemoryImage> QuarterImage() {
  const auto file = NewFile(kSize);
  Fill(*file, Pages(0, kPages / 4), 1);
  Must(file->Seal());
  return Must(MemoryImage::FromFile(file));
}

// Writes `count` pages, some of them zeros.
void WriteAtRandom(GuestMemory& memory, std::mt19937& random, uint64_t count) {
  for (uint64_t i = 0; i < count; ++i) {
    uint8_t* page = memory.host_base() + random() % kPages * kPage;
    std::memset(page, static_cast<int>(random() % 4), kPage);
  }
}

TEST_CASE("An image captured from a guest is what the guest holds") {
  const bool prepare = GENERATE(false, true);
  const size_t bound = GENERATE(8U, 128U, 1024U);
  const auto backend =
      GENERATE(PageMapBackend::kBest, PageMapBackend::kPagemap);
  const int threads = GENERATE(1, 2);
  std::mt19937 random(static_cast<unsigned>(bound));
  auto memory = NewGuest(QuarterImage());
  WriteAtRandom(*memory, random, 700);
  const auto arena = Must(Arena::Create(
      *memory, {.overlay = {.max_extents = bound, .wanted_extents = 16},
                .backend = backend,
                .threads = threads}));
  if (prepare) {
    Must(arena->Prepare(*memory));
    WriteAtRandom(*memory, random, 50);
    Must(arena->Prepare(*memory));
    WriteAtRandom(*memory, random, 50);
  }
  const auto content = ContentOf(*memory);
  Must(arena->Capture(*memory));
  const auto result = Must(arena->Image());
  CHECK(result.image->extents().size() <= bound);
  CHECK(ContentOf(*result.image) == content);
  Must(arena->Seal());
  Must(arena->Seal());
  CHECK(ContentOf(*result.image) == content);
  CHECK(Must(result.image->HoleBytes()) == 0);
}

TEST_CASE("A guest rebased on its own capture holds its pages once") {
  std::mt19937 random(3);
  auto memory = NewGuest(QuarterImage());
  WriteAtRandom(*memory, random, 500);
  const auto content = ContentOf(*memory);
  const auto arena = Must(Arena::Create(*memory));
  Must(arena->Capture(*memory));
  const auto result = Must(arena->Image());
  Must(memory->Rebase(result.image));
  Must(arena->Seal());
  CHECK(ContentOf(*memory) == content);
  // What is still its own is zeros that the image has, too.
  const auto own = Must(OwnPages(*memory));
  CHECK(Must(DropUnchanged(*memory, own)).empty());
  // A child has the same, and neither sees what the other writes.
  auto child = NewGuest(result.image);
  CHECK(ContentOf(*child) == content);
  Put(*memory, 5, 77);
  Put(*child, 6, 78);
  CHECK(At(*child, 5) == content[5 * kPage]);
  CHECK(At(*memory, 6) == content[6 * kPage]);
}

TEST_CASE("Generations of captures keep the content and the bound") {
  const auto seed = GENERATE(range(0u, 6u));
  std::mt19937 random(seed);
  auto memory = NewGuest(QuarterImage());
  for (int generation = 0; generation < 6; ++generation) {
    WriteAtRandom(*memory, random, random() % 300);
    const auto content = ContentOf(*memory);
    const auto arena =
        Must(Arena::Create(*memory, {.overlay = {.max_extents = 100}}));
    Must(arena->Prepare(*memory));
    Must(arena->Capture(*memory));
    const auto result = Must(arena->Image());
    Must(memory->Rebase(result.image));
    Must(arena->Seal());
    REQUIRE(result.image->extents().size() <= 100);
    REQUIRE(ContentOf(*memory) == content);
    REQUIRE(memory->image() == result.image);
  }
}

TEST_CASE("Long zeros over zeros are not captured and cost nothing") {
  auto memory = NewGuest(QuarterImage());
  std::memset(memory->host_base() + 2000 * kPage, 5, 100 * kPage);
  std::memset(memory->host_base() + 2010 * kPage, 0, 80 * kPage);
  const auto arena = Must(Arena::Create(
      *memory, {.overlay = {.wanted_extents = MemoryImage::kMaxExtents}}));
  Must(arena->Prepare(*memory));
  Must(arena->Capture(*memory));
  CHECK(arena->own() ==
        std::vector<PageRange>{Pages(2000, 10), Pages(2090, 10)});
  const auto result = Must(arena->Image());
  Must(arena->Seal());
  CHECK(Must(arena->file().AllocatedBytes()) == 20 * kPage);
  CHECK(ContentOf(*result.image) == ContentOf(*memory));
}

TEST_CASE("What was prepared and is not the guest's own is given back") {
  auto memory = NewGuest(QuarterImage());
  std::memset(memory->host_base() + 100 * kPage, 5, 64 * kPage);
  const auto arena = Must(Arena::Create(*memory));
  Must(arena->Prepare(*memory));
  CHECK(Must(arena->file().AllocatedBytes()) == 64 * kPage);
  // As a balloon does.
  REQUIRE(::madvise(memory->host_base() + 100 * kPage, 60 * kPage,
                    MADV_DONTNEED) == 0);
  Must(arena->Capture(*memory));
  const auto result = Must(arena->Image());
  Must(arena->Seal());
  CHECK(Must(arena->file().AllocatedBytes()) == 4 * kPage);
  CHECK(ContentOf(*result.image) == ContentOf(*memory));
}

TEST_CASE("An arena captures once, and the guest it was made for") {
  auto memory = NewGuest(QuarterImage());
  const auto arena = Must(Arena::Create(*memory));
  CHECK(arena->Image().status().code() ==
        absl::StatusCode::kFailedPrecondition);
  CHECK(arena->Seal().code() == absl::StatusCode::kFailedPrecondition);
  const auto other = NewGuest(QuarterImage());
  CHECK(arena->Capture(*other).code() == absl::StatusCode::kFailedPrecondition);
  Must(arena->Capture(*memory));
  CHECK(arena->Capture(*memory).code() ==
        absl::StatusCode::kFailedPrecondition);
  CHECK(arena->Prepare(*memory).code() ==
        absl::StatusCode::kFailedPrecondition);
}

TEST_CASE("An arena needs an image and a possible number of threads") {
  const auto memory = NewGuest(kSize);
  CHECK(Arena::Create(*memory).status().code() ==
        absl::StatusCode::kFailedPrecondition);
  Must(memory->MapAnonymous());
  CHECK(Arena::Create(*memory, {.threads = 0}).status().code() ==
        absl::StatusCode::kInvalidArgument);
  CHECK(Arena::Create(*memory, {.threads = 17}).status().code() ==
        absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace catnap::memory
