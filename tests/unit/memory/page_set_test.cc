#include "memory/page_set.h"

#include <thread>
#include <vector>

#include "memory_test_support.h"

namespace catnap::memory {
namespace {

TEST_CASE("A set of pages names the first that it lacks") {
  PageSet set(200 * kPage);
  CHECK(set.FirstMissing(Pages(0, 200)) == 0);
  CHECK_FALSE(set.FirstMissing(Pages(7, 0)).has_value());
  // Inside a word, up to the end of one, over several.
  const base::PageRange ranges[] = {Pages(3, 5), Pages(60, 4), Pages(64, 64),
                                    Pages(100, 99)};
  for (const base::PageRange& range : ranges) {
    CAPTURE(range.offset / kPage);
    set.Add(range);
    CHECK_FALSE(set.FirstMissing(range).has_value());
  }
  CHECK(set.FirstMissing(Pages(3, 6)) == 8 * kPage);
  CHECK(set.FirstMissing(Pages(2, 2)) == 2 * kPage);
  CHECK_FALSE(set.FirstMissing(Pages(60, 139)).has_value());
  CHECK(set.FirstMissing(Pages(60, 140)) == 199 * kPage);
  set.Add(Pages(199, 1));
  set.Add(Pages(0, 3));
  CHECK(set.FirstMissing(Pages(0, 200)) == 8 * kPage);
}

TEST_CASE("A set of pages leaves out what is behind its end") {
  PageSet set(65 * kPage);
  set.Add(Pages(60, 1000));
  set.Add(Pages(1000, 5));
  CHECK_FALSE(set.FirstMissing(Pages(60, 5)).has_value());
  CHECK_FALSE(set.FirstMissing(Pages(60, 1000)).has_value());
  CHECK_FALSE(set.FirstMissing(Pages(1000, 5)).has_value());
  PageSet empty(0);
  empty.Add(Pages(0, 1));
  CHECK_FALSE(empty.FirstMissing(Pages(0, 1)).has_value());
}

TEST_CASE("Threads that add pages of one word lose none") {
  constexpr uint64_t kPages = 512;
  PageSet set(kPages * kPage);
  std::vector<std::thread> threads;
  for (uint64_t first = 0; first < 4; ++first) {
    threads.emplace_back([&set, first] {
      for (uint64_t at = first; at < kPages; at += 4) set.Add(Pages(at, 1));
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK_FALSE(set.FirstMissing(Pages(0, kPages)).has_value());
}

}  // namespace
}  // namespace catnap::memory
