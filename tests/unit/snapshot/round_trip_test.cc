#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <thread>

#include "base/unique_fd.h"
#include "io/file.h"
#include "unit/snapshot/snapshot_guest.h"

namespace catnap::snapshot {
namespace {

using test::Filling;
using test::kPage;
using test::MakeFolder;
using test::MakePool;
using test::Restore;
using test::SnapshotGuest;

std::vector<state::SavedSection> SomeSections() {
  return {{.id = state::SectionId::kMachine,
           .version = 3,
           .critical = true,
           .bytes = {1, 2, 3}},
          {.id = state::SectionId::kVcpu, .instance = 1, .bytes = {}},
          {.id = static_cast<state::SectionId>(4711),
           .bytes = std::vector<uint8_t>(10'000, 9)}};
}

TEST_CASE("A snapshot gives back sections, ids and memory") {
  const test::TemporaryDirectory directory;
  const auto pool = MakePool();
  SnapshotGuest guest(300);
  for (int i = 0; i < 200; ++i) guest.FillAny();
  const auto sections = SomeSections();
  const auto changed = guest.changed();
  const bool plain = GENERATE(false, true);
  const auto written = WriteSnapshot(
      directory.path(),
      {.sections = sections, .memory = guest.memory(), .changed = changed},
      {.pool = pool.get(), .plain_io = plain});
  REQUIRE(written.ok());
  const auto reader = SnapshotReader::Open(directory.path());
  REQUIRE(reader.ok());
  CHECK((*reader)->id() == written->id);
  CHECK_FALSE((*reader)->parent().has_value());
  CHECK((*reader)->ram_bytes() == guest.memory().size());
  CHECK((*reader)->sections() == sections);
  CHECK((*reader)->index() == written->index);
  CHECK((*reader)->stored_bytes() == written->written_bytes);
  std::vector<uint8_t> memory(guest.memory().size());
  REQUIRE(
      (*reader)->ReadAll(memory, {.pool = pool.get(), .plain_io = plain}).ok());
  CHECK(memory == guest.memory());
  CHECK((*reader)->Verify({.pool = pool.get()}).ok());
  uint64_t changed_bytes = 0;
  for (const base::PageRange& range : changed) changed_bytes += range.length;
  CHECK((written->stored_pages + written->zero_pages) * kPage == changed_bytes);
}

TEST_CASE("A snapshot fills a memfd without a mapping") {
  const test::TemporaryDirectory directory;
  const auto pool = MakePool();
  SnapshotGuest guest(100);
  for (int i = 0; i < 100; ++i) guest.FillAny();
  const auto changed = guest.changed();
  REQUIRE(WriteSnapshot(directory.path(),
                        {.memory = guest.memory(), .changed = changed},
                        {.pool = pool.get()})
              .ok());
  const auto reader = SnapshotReader::Open(directory.path());
  REQUIRE(reader.ok());
  const auto memfd = base::CreateMemFd("test", guest.memory().size());
  REQUIRE(memfd.ok());
  REQUIRE((*reader)
              ->ReadPages(
                  [&memfd](base::PageRange range, const uint8_t* from) {
                    return io::WriteFully(memfd->get(), from, range.length,
                                          range.offset);
                  },
                  {.pool = pool.get()})
              .ok());
  std::vector<uint8_t> memory(guest.memory().size());
  REQUIRE(io::ReadFully(memfd->get(), memory.data(), memory.size(), 0).ok());
  CHECK(memory == guest.memory());
}

TEST_CASE("A snapshot of nothing has no chunk file") {
  const test::TemporaryDirectory directory;
  const auto pool = MakePool(1);
  SnapshotGuest guest(16);
  guest.Note(3);  // Touched, and zero all the same.
  const auto changed = guest.changed();
  const auto written = WriteSnapshot(
      directory.path(), {.memory = guest.memory(), .changed = changed},
      {.pool = pool.get()});
  REQUIRE(written.ok());
  CHECK(written->zero_pages == 1);
  CHECK(written->index.files.empty());
  const auto reader = SnapshotReader::Open(directory.path());
  REQUIRE(reader.ok());
  CHECK((*reader)->Verify({.pool = pool.get()}).ok());
}

TEST_CASE("Pages that are the parent's are not stored") {
  const test::TemporaryDirectory directory;
  const auto pool = MakePool();
  SnapshotGuest image(64, 1);
  for (size_t page = 0; page < 32; ++page) image.Fill(page, Filling::kText);
  SnapshotGuest guest(64, 2);
  guest.memory() = image.memory();
  guest.Note(1);                   // As in the image.
  guest.Fill(2, Filling::kZero);   // Zero, where the image is not.
  guest.Fill(40, Filling::kZero);  // Zero in both.
  guest.Fill(5, Filling::kNoise);
  const auto changed = guest.changed();
  const Id parent = {1, 2, 3};
  const auto written = WriteSnapshot(directory.path(),
                                     {.memory = guest.memory(),
                                      .changed = changed,
                                      .parent = parent,
                                      .parent_memory = image.memory()},
                                     {.pool = pool.get()});
  REQUIRE(written.ok());
  CHECK(written->parent_pages == 2);
  CHECK(written->zero_pages == 1);
  CHECK(written->stored_pages == 1);
  CHECK(written->own_bytes == 2 * kPage);
  const auto reader = SnapshotReader::Open(directory.path());
  REQUIRE(reader.ok());
  CHECK((*reader)->parent() == parent);
  CHECK(OwnRanges((*reader)->index()) ==
        std::vector<base::PageRange>{{2 * kPage, kPage}, {5 * kPage, kPage}});
  std::vector<uint8_t> memory = image.memory();
  REQUIRE(Restore(**reader, pool.get(), &memory).ok());
  CHECK(memory == guest.memory());
}

TEST_CASE("Generations share files until they are compacted") {
  const uint64_t seed = GENERATE(range(1U, 9U));
  CAPTURE(seed);
  const test::TemporaryDirectory directory;
  const auto pool = MakePool();
  SnapshotGuest image(200, seed);
  for (int i = 0; i < 150; ++i) image.FillAny();
  SnapshotGuest guest(200, seed + 100);
  guest.memory() = image.memory();
  const Id parent = {7};
  std::string before;
  PageIndex base;
  int compactions = 0;
  for (int generation = 0; generation < 12; ++generation) {
    CAPTURE(generation);
    const size_t changes = 1 + guest.Random() % 60;
    for (size_t i = 0; i < changes; ++i) guest.FillAny();
    const size_t same = guest.Random() % guest.pages();
    std::memcpy(guest.memory().data() + same * kPage,
                image.memory().data() + same * kPage, kPage);
    guest.Note(same);
    std::vector<base::PageRange> changed = guest.changed();
    const std::string folder =
        MakeFolder(directory, std::to_string(generation));
    SnapshotContent content = {.memory = guest.memory(),
                               .parent = parent,
                               .parent_memory = image.memory()};
    if (generation > 0 && ShouldCompact(base)) {
      changed = UnionOf(changed, OwnRanges(base));
      ++compactions;
    } else if (generation > 0) {
      content.base = {.index = &base, .directory = before};
    }
    content.changed = changed;
    const auto written =
        WriteSnapshot(folder, content, {.pool = pool.get(), .durable = false});
    REQUIRE(written.ok());
    // The older directory goes; what is needed of it is linked.
    if (!before.empty()) std::filesystem::remove_all(before);
    const auto reader = SnapshotReader::Open(folder);
    REQUIRE(reader.ok());
    CHECK((*reader)->index() == written->index);
    std::vector<uint8_t> memory = image.memory();
    REQUIRE(Restore(**reader, pool.get(), &memory).ok());
    REQUIRE(memory == guest.memory());
    CHECK(written->index.files.size() <= kCompactFiles);
    base = written->index;
    before = folder;
    guest.Forget();
  }
  CHECK(compactions > 0);
}

TEST_CASE("A second snapshot writes what changed and no more") {
  const test::TemporaryDirectory directory;
  const auto pool = MakePool();
  SnapshotGuest guest(4000);
  for (size_t page = 0; page < 4000; ++page) guest.Fill(page, Filling::kNoise);
  const std::string first = MakeFolder(directory, "first");
  auto changed = guest.changed();
  const auto one =
      WriteSnapshot(first, {.memory = guest.memory(), .changed = changed},
                    {.pool = pool.get(), .durable = false});
  REQUIRE(one.ok());
  guest.Forget();
  for (int i = 0; i < 40; ++i)
    guest.Fill(guest.Random() % 4000, Filling::kNoise);
  changed = guest.changed();
  const std::string second = MakeFolder(directory, "second");
  const auto two = WriteSnapshot(
      second,
      {.memory = guest.memory(),
       .changed = changed,
       .base = BaseSnapshot{.index = &one->index, .directory = first}},
      {.pool = pool.get(), .durable = false});
  REQUIRE(two.ok());
  CHECK(two->written_bytes * 20 < one->written_bytes);
  CHECK(two->index.files.size() == 2);
}

TEST_CASE("The hot set stands first, in order of touch") {
  const test::TemporaryDirectory directory;
  const auto pool = MakePool();
  SnapshotGuest guest(300);
  for (size_t page = 0; page < 300; ++page) guest.Fill(page, Filling::kText);
  const auto changed = guest.changed();
  // Page 299, then 10 to 12; page 11 again, which is one page only.
  const std::vector<base::PageRange> hot = {
      {299 * kPage, kPage}, {10 * kPage, 3 * kPage}, {11 * kPage, kPage}};
  REQUIRE(
      WriteSnapshot(directory.path(),
                    {.memory = guest.memory(), .changed = changed, .hot = hot},
                    {.pool = pool.get()})
          .ok());
  const auto reader = SnapshotReader::Open(directory.path());
  REQUIRE(reader.ok());
  REQUIRE((*reader)->hot_frames() == 1);
  const size_t frame = (*reader)->FramesInOrder().front();
  CHECK((*reader)->index().frames[frame].pages == 4);
  CHECK((*reader)->FrameAt(12 * kPage) == frame);
  CHECK((*reader)->FrameAt(13 * kPage) != frame);
  auto decompressor = codec::ZstdDecompressor::Create();
  REQUIRE(decompressor.ok());
  base::ScratchBuffer compressed;
  std::vector<uint8_t> pages(4 * kPage);
  REQUIRE((*reader)->ReadFrame(frame, &*decompressor, &compressed, pages).ok());
  CHECK(std::equal(pages.begin(), pages.begin() + kPage,
                   guest.memory().begin() + 299 * kPage));
  std::vector<uint8_t> memory(guest.memory().size());
  REQUIRE(Restore(**reader, pool.get(), &memory).ok());
  CHECK(memory == guest.memory());
}

TEST_CASE("Frames are as large as asked, those of the hot set small") {
  const test::TemporaryDirectory directory;
  const auto pool = MakePool(1);
  SnapshotGuest guest(600);
  for (size_t page = 0; page < 600; ++page) guest.Fill(page, Filling::kText);
  const auto changed = guest.changed();
  const std::vector<base::PageRange> hot = {{0, 100 * kPage}};
  const auto [asked, memory, hot_pages, rest_pages] =
      GENERATE(table<uint32_t, size_t, uint32_t, uint32_t>({
          {kImageFramePages, size_t{32} << 20, kHotFramePages, 256},
          {kFramePages, size_t{32} << 20, kHotFramePages, 128},
          {1, size_t{32} << 20, 1, 1},
          // Two for the only thread have room.
          {kImageFramePages, size_t{2} << 20, kHotFramePages, 188},
      }));
  CAPTURE(asked, memory);
  const auto written = WriteSnapshot(
      directory.path(),
      {.memory = guest.memory(), .changed = changed, .hot = hot},
      {.pool = pool.get(), .frame_pages = asked, .max_memory_bytes = memory});
  REQUIRE(written.ok());
  const auto reader = SnapshotReader::Open(directory.path());
  REQUIRE(reader.ok());
  const std::vector<size_t> order = (*reader)->FramesInOrder();
  CHECK((*reader)->index().frames[order.front()].pages == hot_pages);
  CHECK((*reader)->hot_frames() == (100 + hot_pages - 1) / hot_pages);
  CHECK((*reader)->index().frames[order[(*reader)->hot_frames()]].pages ==
        rest_pages);
  std::vector<uint8_t> read(guest.memory().size());
  REQUIRE(Restore(**reader, pool.get(), &read).ok());
  CHECK(read == guest.memory());
}

TEST_CASE("A small snapshot has frames for all threads") {
  const test::TemporaryDirectory directory;
  const auto pool = MakePool(4);
  SnapshotGuest guest(600);
  for (size_t page = 0; page < 600; ++page) guest.Fill(page, Filling::kText);
  const auto changed = guest.changed();
  const auto written = WriteSnapshot(
      directory.path(), {.memory = guest.memory(), .changed = changed},
      {.pool = pool.get(), .frame_pages = kImageFramePages});
  REQUIRE(written.ok());
  CHECK(written->index.frames.size() >= 8);
}

TEST_CASE("Frames of no pages or too many are refused") {
  const test::TemporaryDirectory directory;
  const auto pool = MakePool(1);
  SnapshotGuest guest(1);
  const uint32_t asked = GENERATE(0u, kMaxFramePages + 1, UINT32_MAX);
  CHECK(WriteSnapshot(directory.path(), {.memory = guest.memory()},
                      {.pool = pool.get(), .frame_pages = asked})
            .status()
            .code() == absl::StatusCode::kInvalidArgument);
}

TEST_CASE("Every stored page is found by its frame") {
  const test::TemporaryDirectory directory;
  const auto pool = MakePool();
  SnapshotGuest guest(500);
  for (int i = 0; i < 300; ++i) guest.FillAny();
  const auto changed = guest.changed();
  REQUIRE(WriteSnapshot(directory.path(),
                        {.memory = guest.memory(), .changed = changed},
                        {.pool = pool.get()})
              .ok());
  const auto reader = SnapshotReader::Open(directory.path());
  REQUIRE(reader.ok());
  std::vector<int> frame_of(500, -1);
  for (const size_t frame : (*reader)->FramesInOrder()) {
    for (const FramePlace& place : (*reader)->PlacesOf(frame)) {
      for (uint64_t at = 0; at < place.range.length; at += kPage) {
        int& found = frame_of[(place.range.offset + at) / kPage];
        REQUIRE(found == -1);
        found = static_cast<int>(frame);
      }
    }
  }
  for (size_t page = 0; page < 500; ++page) {
    const auto frame = (*reader)->FrameAt(page * kPage);
    REQUIRE((frame.has_value() ? static_cast<int>(*frame) : -1) ==
            frame_of[page]);
  }
  CHECK_FALSE((*reader)->FrameAt(500 * kPage).has_value());
}

TEST_CASE("Pages outside of what changed are not touched") {
  const test::TemporaryDirectory directory;
  const auto pool = MakePool();
  constexpr size_t kPages = 64;
  // A touch of anything but page 5 would end the test.
  void* const raw = ::mmap(nullptr, kPages * kPage, PROT_NONE,
                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(raw != MAP_FAILED);
  auto* const memory = static_cast<uint8_t*>(raw);
  REQUIRE(::mprotect(memory + 5 * kPage, kPage, PROT_READ | PROT_WRITE) == 0);
  memory[5 * kPage] = 1;
  const std::vector<base::PageRange> changed = {{5 * kPage, kPage}};
  const auto written = WriteSnapshot(
      directory.path(),
      {.memory = {memory, kPages * kPage}, .changed = changed, .hot = changed},
      {.pool = pool.get()});
  CHECK(written.ok());
  ::munmap(raw, kPages * kPage);
}

TEST_CASE("Several snapshots at once share a pool") {
  const test::TemporaryDirectory directory;
  const auto pool = MakePool();
  constexpr size_t kWriters = 4;
  std::vector<std::thread> threads;
  std::vector<absl::Status> results(kWriters, absl::UnknownError("not run"));
  for (size_t i = 0; i < kWriters; ++i) {
    const std::string folder = MakeFolder(directory, std::to_string(i));
    threads.emplace_back([&, i, folder] {
      SnapshotGuest guest(400, i);
      for (int n = 0; n < 400; ++n) guest.FillAny();
      const auto changed = guest.changed();
      const auto written =
          WriteSnapshot(folder, {.memory = guest.memory(), .changed = changed},
                        {.pool = pool.get(), .durable = false});
      results[i] = written.status();
      const auto reader = SnapshotReader::Open(folder);
      if (!reader.ok()) {
        results[i] = reader.status();
        return;
      }
      std::vector<uint8_t> memory(guest.memory().size());
      results[i] = Restore(**reader, pool.get(), &memory);
      if (memory != guest.memory()) results[i] = absl::DataLossError("differs");
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const absl::Status& result : results) CHECK(result.ok());
}

TEST_CASE("The writer refuses what makes no snapshot") {
  const test::TemporaryDirectory directory;
  const auto pool = MakePool(1);
  SnapshotGuest guest(16);
  const std::vector<base::PageRange> outside = {{15 * kPage, 2 * kPage}};
  const std::vector<base::PageRange> unaligned = {{1, kPage}};
  const std::vector<base::PageRange> twice = {{0, 2 * kPage}, {kPage, kPage}};
  const std::vector<base::PageRange> wraps = {
      {~uint64_t{0} & ~(kPage - 1), 2 * kPage}};
  for (const auto& changed : {outside, unaligned, twice, wraps}) {
    CHECK(WriteSnapshot(directory.path(),
                        {.memory = guest.memory(), .changed = changed},
                        {.pool = pool.get()})
              .status()
              .code() == absl::StatusCode::kInvalidArgument);
  }
  CHECK(WriteSnapshot(directory.path(), {.memory = guest.memory()}, {})
            .status()
            .code() == absl::StatusCode::kInvalidArgument);
  CHECK(WriteSnapshot(directory.path(), {}, {.pool = pool.get()})
            .status()
            .code() == absl::StatusCode::kInvalidArgument);
  PageIndex base;
  base.ram_pages = 16;
  base.has_parent = true;
  CHECK(WriteSnapshot(directory.path(),
                      {.memory = guest.memory(),
                       .base = BaseSnapshot{.index = &base, .directory = "/"}},
                      {.pool = pool.get()})
            .status()
            .code() == absl::StatusCode::kFailedPrecondition);
  CHECK(std::filesystem::is_empty(directory.path()));
}

}  // namespace
}  // namespace catnap::snapshot
