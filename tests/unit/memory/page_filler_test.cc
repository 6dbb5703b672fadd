#include "memory/page_filler.h"

#include <array>
#include <thread>
#include <vector>

#include "unit/memory/memory_test_support.h"

namespace catnap::memory {
namespace {

constexpr uint64_t kPages = 64;
constexpr uint64_t kSize = kPages * kPage;

uint8_t ByteOf(uint64_t page) { return static_cast<uint8_t>(page + 1); }

// Every fourth page stays missing; the others come from two threads, some of
// them in runs.
absl::Status PutSome(const PageFiller& filler, uint64_t first) {
  absl::Status status;
  for (uint64_t page = first; page < kPages; page += 8) {
    std::vector<uint8_t> bytes(3 * kPage);
    for (uint64_t i = 0; i < bytes.size(); ++i) {
      bytes[i] = ByteOf(page + i / kPage);
    }
    status.Update(filler.Put(Pages(page, 3), bytes.data()));
  }
  return status;
}

void CheckThatItFills(bool parallel) {
  const auto file = NewFile(kSize);
  {
    const PageFiller filler = Must(PageFiller::Create(file.get()));
    if (parallel && !filler.parallel()) {
      WARN("threads took turns: userfaultfd is refused here");
    }
    if (!parallel) CHECK_FALSE(filler.parallel());
    // Asserted on this thread: Catch2 is not thread-safe.
    absl::Status others;
    std::jthread other([&] { others = PutSome(filler, 4); });
    const absl::Status own = PutSome(filler, 0);
    other.join();
    Must(own);
    Must(others);
    std::array<uint8_t, kPage> bytes{};
    CHECK(filler.Put({kSize, kPage}, bytes.data()).code() ==
          absl::StatusCode::kOutOfRange);
    CHECK(filler.Put({UINT64_MAX - kPage + 1, kPage}, bytes.data()).code() ==
          absl::StatusCode::kOutOfRange);
  }
  CHECK(Must(file->AllocatedBytes()) == kSize / 4 * 3);
  // The filler is gone: what is missing is zeros again for who touches it.
  const auto alias = Must(file->Writable({0, kSize}));
  for (uint64_t page = 0; page < kPages; ++page) {
    const uint8_t wanted = page % 4 == 3 ? 0 : ByteOf(page);
    CAPTURE(page);
    CHECK(alias[page * kPage] == wanted);
    CHECK(alias[page * kPage + kPage - 1] == wanted);
  }
  Must(file->Seal());
}

TEST_CASE("A PageFiller puts pages from several threads") {
  CheckThatItFills(true);
}

TEST_CASE("A PageFiller does without userfaultfd", "[.refused_userfaultfd]") {
  CheckThatItFills(false);
}

TEST_CASE("A sealed memory file has no PageFiller") {
  const auto file = NewFile(kSize);
  Must(file->Seal());
  CHECK(PageFiller::Create(file.get()).status().code() ==
        absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace catnap::memory
