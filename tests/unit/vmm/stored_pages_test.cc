#include "vmm/stored_pages.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "base/page_range.h"
#include "base/status.h"
#include "snapshot/writer.h"
#include "support/temporary_directory.h"

namespace catnap::vmm {
namespace {

using base::PageRange;

constexpr uint64_t kPage = base::kPageBytes;
constexpr uint64_t kRam = uint64_t{4} << 20;
constexpr uint64_t kAround = uint64_t{64} << 10;

// A stored guest all of whose pages are in frames.
class Stored {
 public:
  Stored() : memory_(kRam) {
    std::mt19937_64 random(1);
    for (size_t at = 0; at < memory_.size(); at += sizeof(uint64_t)) {
      const uint64_t word = random();
      std::memcpy(memory_.data() + at, &word, sizeof(word));
    }
    auto pool = snapshot::WorkerPool::Create(1);
    REQUIRE(pool.ok());
    pool_ = *std::move(pool);
    const std::vector<PageRange> all = {{0, kRam}};
    snapshot::SnapshotContent content;
    content.memory = memory_;
    content.changed = all;
    snapshot::WriteOptions options;
    options.pool = pool_.get();
    options.durable = false;
    REQUIRE(snapshot::WriteSnapshot(directory_.path(), content, options).ok());
    auto reader = snapshot::SnapshotReader::Open(directory_.path());
    REQUIRE(reader.ok());
    reader_ = *std::move(reader);
  }

  const snapshot::SnapshotReader& reader() const { return *reader_; }
  std::unique_ptr<StoredPages> Pages(Bringing bringing) {
    return std::make_unique<StoredPages>(reader_, pool_.get(), bringing);
  }
  bool IsRight(PageRange range, const uint8_t* bytes) const {
    return std::memcmp(memory_.data() + range.offset, bytes, range.length) == 0;
  }

 private:
  const test::TemporaryDirectory directory_;
  std::vector<uint8_t> memory_;
  std::unique_ptr<snapshot::WorkerPool> pool_;
  std::shared_ptr<const snapshot::SnapshotReader> reader_;
};

// What a call puts: whether each page was, of those that have the right bytes.
class Put {
 public:
  explicit Put(const Stored& stored)
      : stored_(stored), pages_(kRam / kPage, false) {}
  absl::Status operator()(PageRange range, const uint8_t* bytes) {
    REQUIRE(stored_.IsRight(range, bytes));
    for (uint64_t at = 0; at < range.length; at += kPage) {
      pages_[(range.offset + at) / kPage] = true;
    }
    return absl::OkStatus();
  }
  bool Has(uint64_t offset) const { return pages_[offset / kPage]; }
  uint64_t bytes() const {
    return static_cast<uint64_t>(
               std::count(pages_.begin(), pages_.end(), true)) *
           kPage;
  }

 private:
  const Stored& stored_;
  std::vector<bool> pages_;
};

TEST_CASE("The first who waits for a page of a frame does not wait for all") {
  Stored stored;
  const auto pages = stored.Pages(Bringing::kRest);
  const auto bytes_of = [&](uint64_t offset) {
    const auto frame = stored.reader().FrameAt(offset);
    REQUIRE(frame.has_value());
    return stored.reader().index().frames[*frame].pages * kPage;
  };
  constexpr uint64_t kFirst = 5 * kPage;
  REQUIRE(bytes_of(kFirst) > kAround);
  const auto bring = [&](uint64_t offset) {
    Put put(stored);
    const auto brought = pages->Bring(offset, std::ref(put));
    REQUIRE(brought.ok());
    CHECK(*brought);
    return put;
  };
  const Put around = bring(kFirst);
  CHECK(around.Has(kFirst));
  CHECK(around.bytes() == kAround);
  // The second has the rest brought, and no third has to.
  const Put rest = bring(kFirst + kAround);
  CHECK(rest.Has(kFirst));
  CHECK(rest.Has(kFirst + kAround));
  CHECK(rest.bytes() == bytes_of(kFirst));
  CHECK(bring(kFirst + kPage).bytes() == 0);
  // Others are not concerned, and the background brings what is left.
  const uint64_t other = kRam - kPage;
  REQUIRE(stored.reader().FrameAt(other) != stored.reader().FrameAt(kFirst));
  CHECK(bring(other).bytes() == kAround);
  Put background(stored);
  absl::StatusOr<bool> more = true;
  while (more.ok() && *more) more = pages->BringMore(std::ref(background), {});
  REQUIRE(more.ok());
  CHECK(background.bytes() == kRam - bytes_of(kFirst));
}

TEST_CASE("Without a background whole frames are brought") {
  Stored stored;
  const auto pages = stored.Pages(Bringing::kAll);
  Put put(stored);
  REQUIRE(pages->Bring(0, std::ref(put)).ok());
  CHECK(put.bytes() ==
        stored.reader().index().frames[*stored.reader().FrameAt(0)].pages *
            kPage);
}

}  // namespace
}  // namespace catnap::vmm
