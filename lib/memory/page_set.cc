#include "memory/page_set.h"

#include <algorithm>
#include <bit>

namespace catnap::memory {
namespace {

using base::kPageBytes;

constexpr uint64_t kBits = 64;

// Calls `use` with each word that has bits of [first, end), and these bits,
// until it returns false.
template <typename Use>
void ForEachWord(uint64_t first, uint64_t end, Use use) {
  while (first < end) {
    const uint64_t bit = first % kBits;
    const uint64_t count = std::min(kBits - bit, end - first);
    const uint64_t ones =
        count == kBits ? UINT64_MAX : (uint64_t{1} << count) - 1;
    if (!use(first / kBits, ones << bit)) return;
    first += count;
  }
}

}  // namespace

PageSet::PageSet(uint64_t bytes)
    : pages_(bytes / kPageBytes), words_((pages_ + kBits - 1) / kBits) {}

void PageSet::Add(base::PageRange range) {
  const uint64_t first = range.offset / kPageBytes;
  const uint64_t end = std::min(pages_, first + range.length / kPageBytes);
  ForEachWord(first, end, [this](uint64_t word, uint64_t bits) {
    // release: with FirstMissing().
    words_[word].fetch_or(bits, std::memory_order_release);
    return true;
  });
}

std::optional<uint64_t> PageSet::FirstMissing(base::PageRange range) const {
  const uint64_t first = range.offset / kPageBytes;
  const uint64_t end = std::min(pages_, first + range.length / kPageBytes);
  std::optional<uint64_t> missing;
  ForEachWord(first, end, [&](uint64_t word, uint64_t bits) {
    // acquire: who goes on touches the page.
    const uint64_t lacking =
        bits & ~words_[word].load(std::memory_order_acquire);
    if (lacking == 0) return true;
    missing =
        (word * kBits + static_cast<uint64_t>(std::countr_zero(lacking))) *
        kPageBytes;
    return false;
  });
  return missing;
}

}  // namespace catnap::memory
