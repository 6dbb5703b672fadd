#ifndef CATNAP_TESTS_UNIT_SNAPSHOT_SNAPSHOT_GUEST_H_
#define CATNAP_TESTS_UNIT_SNAPSHOT_SNAPSHOT_GUEST_H_

#include <unistd.h>

#include <catch2/catch.hpp>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/page_range.h"
#include "snapshot/reader.h"
#include "snapshot/writer.h"
#include "support/temporary_directory.h"

namespace catnap::test {

inline constexpr uint64_t kPage = base::kPageBytes;

// What to put into a page.
enum class Filling { kZero, kText, kNoise };

// The memory of a guest that is no machine, with what a snapshot needs to know.
class SnapshotGuest {
 public:
  explicit SnapshotGuest(size_t pages, uint64_t seed = 1)
      : memory_(pages * kPage), random_(seed) {}

  std::vector<uint8_t>& memory() { return memory_; }
  size_t pages() const { return memory_.size() / kPage; }

  // Fills a page and notes that it changed.
  void Fill(size_t page, Filling filling) {
    uint8_t* const to = memory_.data() + page * kPage;
    std::memset(to, 0, kPage);
    if (filling == Filling::kNoise) {
      for (size_t i = 0; i < kPage; i += sizeof(uint64_t)) {
        const uint64_t word = random_();
        std::memcpy(to + i, &word, sizeof(word));
      }
    }
    if (filling == Filling::kText) {
      const std::string text =
          "page " + std::to_string(page) + " of " + std::to_string(random_());
      for (size_t i = 0; i + text.size() < kPage; i += text.size()) {
        // NOLINTNEXTLINE(bugprone-not-null-terminated-result): no string.
        std::memcpy(to + i, text.data(), text.size());
      }
    }
    changed_[page] = true;
  }

  // A random page with random content.
  void FillAny() {
    Fill(random_() % pages(), static_cast<Filling>(random_() % 3));
  }
  void Note(size_t page) { changed_[page] = true; }
  void Forget() { changed_.assign(pages(), false); }
  uint64_t Random() { return random_(); }

  std::vector<base::PageRange> changed() const {
    std::vector<base::PageRange> ranges;
    for (size_t page = 0; page < changed_.size(); ++page) {
      if (!changed_[page]) continue;
      if (!ranges.empty() &&
          ranges.back().offset + ranges.back().length == page * kPage) {
        ranges.back().length += kPage;
      } else {
        ranges.push_back({.offset = page * kPage, .length = kPage});
      }
    }
    return ranges;
  }

 private:
  std::vector<uint8_t> memory_;
  std::vector<bool> changed_ = std::vector<bool>(memory_.size() / kPage);
  std::mt19937_64 random_;
};

inline std::unique_ptr<snapshot::WorkerPool> MakePool(size_t threads = 2) {
  auto pool = snapshot::WorkerPool::Create(threads);
  REQUIRE(pool.ok());
  return std::move(pool).value();
}

// A fresh folder inside of `parent`.
inline std::string MakeFolder(const TemporaryDirectory& parent,
                              const std::string& name) {
  std::string path = parent.File(name);
  REQUIRE(std::filesystem::create_directory(path));
  return path;
}

// What a guest restored from `reader` sees, over `below`: the image's memory,
// or zeros.
inline absl::Status Restore(const snapshot::SnapshotReader& reader,
                            snapshot::WorkerPool* pool,
                            std::vector<uint8_t>* below) {
  for (const base::PageRange& range :
       snapshot::RangesOf(reader.index(), snapshot::PageKind::kZero)) {
    std::memset(below->data() + range.offset, 0, range.length);
  }
  return reader.ReadAll(*below, {.pool = pool});
}

inline std::vector<uint8_t> ReadBytes(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

inline void WriteBytes(const std::string& path,
                       const std::vector<uint8_t>& bytes) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(reinterpret_cast<const char*>(bytes.data()),
            static_cast<std::streamsize>(bytes.size()));
}

}  // namespace catnap::test

#endif  // CATNAP_TESTS_UNIT_SNAPSHOT_SNAPSHOT_GUEST_H_
