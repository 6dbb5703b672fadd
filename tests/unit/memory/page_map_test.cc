#include "memory/page_map.h"

#include <sys/mman.h>

#include <random>

#include "memory/page_ranges.h"
#include "unit/memory/memory_test_support.h"

namespace catnap::memory {
namespace {

using base::PageRange;

constexpr uint64_t kPages = 2048;
constexpr uint64_t kSize = kPages * kPage;

// Pages [0, 1024) of a file, all 1; [1024, 2048) zeros.
std::shared_ptr<const MemoryImage> HalfImage() {
  const auto file = NewFile(kSize);
  Fill(*file, Pages(0, kPages / 2), 1);
  Must(file->Seal());
  return Must(MemoryImage::FromFile(file));
}

bool HasScan() {
  const auto memory = NewGuest(Must(MemoryImage::Zero(kPage)));
  return OwnPages(*memory, {.backend = PageMapBackend::kScan}).ok();
}

// Both where the kernel has both.
std::vector<PageMapBackend> Backends() {
  std::vector<PageMapBackend> backends{PageMapBackend::kBest,
                                       PageMapBackend::kPagemap};
  if (HasScan()) backends.push_back(PageMapBackend::kScan);
  return backends;
}

TEST_CASE("OwnPages are the written pages, not those that were read") {
  const auto backends = Backends();
  const auto backend = GENERATE_COPY(from_range(backends));
  const bool running = GENERATE(false, true);
  const auto memory = NewGuest(HalfImage());
  for (uint64_t page = 0; page < kPages; ++page) At(*memory, page);
  CHECK(Must(OwnPages(*memory, {backend, running})).empty());
  Put(*memory, 3, 9);
  Put(*memory, 4, 1);  // What is there already: written all the same.
  Put(*memory, 1023, 9);
  Put(*memory, 1024, 9);
  Put(*memory, 2047, 9);
  CHECK(Must(OwnPages(*memory, {backend, running})) ==
        std::vector<PageRange>{Pages(3, 2), Pages(1023, 2), Pages(2047, 1)});
}

TEST_CASE("OwnPages takes no memory in the guest") {
  const auto backends = Backends();
  const auto backend = GENERATE_COPY(from_range(backends));
  const auto memory = NewGuest(HalfImage());
  for (uint64_t page = 0; page < kPages; ++page) At(*memory, page);
  const uint64_t before = Must(memory->image()->AllocatedBytes());
  Must(OwnPages(*memory, {.backend = backend}));
  CHECK(Must(OwnBytes(*memory)) == 0);
  CHECK(Must(memory->image()->AllocatedBytes()) == before);
}

TEST_CASE("OwnPages sees what random writes did, in every backend") {
  const auto backends = Backends();
  const auto backend = GENERATE_COPY(from_range(backends));
  const auto seed = GENERATE(range(0u, 8u));
  std::mt19937 random(seed);
  const auto memory = NewGuest(HalfImage());
  std::vector<bool> written(kPages);
  const uint64_t writes = random() % (2 * kPages);
  for (uint64_t i = 0; i < writes; ++i) {
    const uint64_t page = random() % kPages;
    if (random() % 2 == 0) {
      At(*memory, page);
    } else {
      Put(*memory, page, static_cast<uint8_t>(random() % 255 + 1));
      written[page] = true;
    }
  }
  std::vector<PageRange> expected;
  for (uint64_t page = 0; page < kPages; ++page) {
    if (written[page]) AppendPages(expected, Pages(page, 1));
  }
  CHECK(Must(OwnPages(*memory, {.backend = backend})) == expected);
  CHECK(Must(OwnBytes(*memory)) == TotalBytes(expected));
}

TEST_CASE("Pages given back are not the guest's own any more") {
  const auto backends = Backends();
  const auto backend = GENERATE_COPY(from_range(backends));
  const auto memory = NewGuest(HalfImage());
  Put(*memory, 3, 9);
  Put(*memory, 4, 9);
  REQUIRE(::madvise(memory->host_base() + 3 * kPage, kPage, MADV_DONTNEED) ==
          0);
  CHECK(Must(OwnPages(*memory, {.backend = backend})) ==
        std::vector<PageRange>{Pages(4, 1)});
}

TEST_CASE("OwnPages works on a file without an image") {
  const auto backends = Backends();
  const auto backend = GENERATE_COPY(from_range(backends));
  const auto file = NewFile(kSize);
  Fill(*file, Pages(0, kPages), 1);
  const auto memory = NewGuest(kSize);
  Must(memory->MapPrivate(file->fd()));
  Put(*memory, 7, 2);
  CHECK(Must(OwnPages(*memory, {.backend = backend})) ==
        std::vector<PageRange>{Pages(7, 1)});
}

TEST_CASE("OwnPages needs mapped memory") {
  const auto memory = NewGuest(kSize);
  CHECK(OwnPages(*memory).status().code() ==
        absl::StatusCode::kFailedPrecondition);
}

TEST_CASE("OwnPages of more runs than one scan returns") {
  const auto backends = Backends();
  const auto backend = GENERATE_COPY(from_range(backends));
  // Every second page, so that no two runs touch: 4,096 of them.
  constexpr uint64_t kMany = 8192;
  const auto memory = NewGuest(Must(MemoryImage::Zero(kMany * kPage)));
  std::vector<PageRange> expected;
  for (uint64_t page = 1; page < kMany; page += 2) {
    Put(*memory, page, 1);
    expected.push_back(Pages(page, 1));
  }
  CHECK(Must(OwnPages(*memory, {.backend = backend})) == expected);
}

TEST_CASE("DropUnchanged drops zeros over zeros and keeps zeros over data") {
  const auto memory = NewGuest(HalfImage());
  for (const uint64_t page : {3U, 1024U, 1025U, 1026U}) Put(*memory, page, 9);
  for (uint64_t i = 0; i < kPage; ++i) memory->host_base()[3 * kPage + i] = 0;
  Put(*memory, 1025, 0);
  const std::vector<PageRange> own{Pages(3, 1), Pages(1024, 3)};
  CHECK(Must(DropUnchanged(*memory, own)) ==
        std::vector<PageRange>{Pages(3, 1), Pages(1024, 1), Pages(1026, 1)});
}

TEST_CASE("DropUnchanged drops pages equal to the image if it is told to") {
  const auto memory = NewGuest(HalfImage());
  const std::vector<PageRange> own{Pages(0, 200), Pages(1000, 48)};
  Put(*memory, 70, 2);
  Put(*memory, 1030, 2);
  Put(*memory, 5, 1);  // The byte it has already.
  CHECK(Must(DropUnchanged(*memory, own, {.equal = true})) ==
        std::vector<PageRange>{Pages(70, 1), Pages(1030, 1)});
}

TEST_CASE("DropUnchanged rejects pages outside the memory") {
  const auto memory = NewGuest(HalfImage());
  CHECK(DropUnchanged(*memory, {Pages(kPages, 1)}).status().code() ==
        absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace catnap::memory
