#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <catch2/catch.hpp>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "io/event_loop.h"
#include "io/file.h"
#include "support/temporary_directory.h"
#include "unit/io/loop_test_support.h"

namespace catnap::io {
namespace {

using absl::StatusCode;

std::vector<uint8_t> Pattern(size_t size) {
  std::vector<uint8_t> bytes(size);
  for (size_t i = 0; i < size; ++i) {
    bytes[i] = static_cast<uint8_t>(i * 31 + i / 251);
  }
  return bytes;
}

// A loop and a file to use it on.
struct Fixture {
  explicit Fixture(EventLoopOptions options = {}) {
    options.backend = GENERATE(from_range(Backends()));
    loop = MakeLoop(options);
    auto opened = OpenFile(directory.File("file"), O_RDWR | O_CREAT);
    REQUIRE(opened.ok());
    file = *std::move(opened);
  }
  int fd() const { return file.get(); }

  const test::TemporaryDirectory directory;
  base::UniqueFd file;
  std::unique_ptr<EventLoop> loop;  // Last: it ends before the file.
};

TEST_CASE("A read returns what a write put there") {
  Fixture f;
  const std::vector<uint8_t> data = Pattern(3 << 20);
  const auto written = Await([&](Completion done) {
    f.loop->Write(f.fd(), data.data(), data.size(), 12345, std::move(done));
  });
  REQUIRE(written.ok());
  CHECK(written.value == data.size());
  std::vector<uint8_t> back(data.size());
  const auto read = Await([&](Completion done) {
    f.loop->Read(f.fd(), back.data(), back.size(), 12345, std::move(done));
  });
  REQUIRE(read.ok());
  CHECK(read.value == data.size());
  CHECK(back == data);
}

TEST_CASE("A read across the end of the file returns what is there") {
  Fixture f;
  const std::vector<uint8_t> data = Pattern(1000);
  REQUIRE(WriteFully(f.fd(), data.data(), data.size(), 0).ok());
  std::vector<uint8_t> back(4096);
  const auto [offset, expected] =
      GENERATE(table<uint64_t, size_t>({{0, 1000}, {999, 1}, {1000, 0}}));
  const auto read = Await([&, at = offset](Completion done) {
    f.loop->Read(f.fd(), back.data(), back.size(), at, std::move(done));
  });
  REQUIRE(read.ok());
  CHECK(read.value == expected);
}

TEST_CASE("Vectors may have more segments than one system call takes") {
  Fixture f;
  static constexpr size_t kSegments = 3000;  // IOV_MAX is 1,024.
  static constexpr size_t kSegmentBytes = 7;
  std::vector<uint8_t> data = Pattern(kSegments * kSegmentBytes);
  std::vector<uint8_t> back(data.size());
  std::vector<iovec> from(2000, iovec{nullptr, 0});  // Empty ones do not count.
  std::vector<iovec> to;
  for (size_t i = 0; i < kSegments; ++i) {
    from.push_back({data.data() + i * kSegmentBytes, kSegmentBytes});
    to.push_back({back.data() + i * kSegmentBytes, kSegmentBytes});
  }
  const auto written = Await([&](Completion done) {
    f.loop->WriteVector(f.fd(), from, 1, std::move(done));
  });
  REQUIRE(written.ok());
  CHECK(written.value == data.size());
  const auto read = Await([&](Completion done) {
    f.loop->ReadVector(f.fd(), to, 1, std::move(done));
  });
  REQUIRE(read.ok());
  CHECK(read.value == data.size());
  CHECK(back == data);
}

TEST_CASE("A vector that meets the end of the file counts up to there") {
  Fixture f;
  const std::vector<uint8_t> data = Pattern(100);
  REQUIRE(WriteFully(f.fd(), data.data(), data.size(), 0).ok());
  std::vector<uint8_t> first(60);
  std::vector<uint8_t> second(60, 0xee);
  const std::array<iovec, 2> into{iovec{first.data(), first.size()},
                                  iovec{second.data(), second.size()}};
  const auto read = Await([&](Completion done) {
    f.loop->ReadVector(f.fd(), into, 0, std::move(done));
  });
  REQUIRE(read.ok());
  CHECK(read.value == 100);
  CHECK(std::equal(first.begin(), first.end(), data.begin()));
  CHECK(std::equal(second.begin(), second.begin() + 40, data.begin() + 60));
  CHECK(second[40] == 0xee);
}

TEST_CASE("A transfer of nothing completes with 0") {
  Fixture f;
  const auto read = Await([&](Completion done) {
    f.loop->ReadVector(f.fd(), {}, 0, std::move(done));
  });
  REQUIRE(read.ok());
  CHECK(read.value == 0);
}

TEST_CASE("A write to a full disk is RESOURCE_EXHAUSTED") {
  Fixture f;
  const auto full = OpenFile("/dev/full", O_WRONLY);
  REQUIRE(full.ok());
  const auto written = Await([&](Completion done) {
    f.loop->Write(full->get(), "abc", 3, 0, std::move(done));
  });
  CHECK(written.code == StatusCode::kResourceExhausted);
  CHECK_THAT(written.text, Catch::Contains("write 3 bytes at offset 0") &&
                               Catch::Contains("full"));
}

TEST_CASE("Ranges that no file has are refused by value") {
  Fixture f;
  char byte = 0;
  const auto past_end = Await([&](Completion done) {
    f.loop->Read(f.fd(), &byte, 1, INT64_MAX, std::move(done));
  });
  CHECK(past_end.code == StatusCode::kInvalidArgument);
  CHECK_THAT(past_end.text, Catch::Contains("9223372036854775807"));
  const std::array<iovec, 2> wrapping{iovec{&byte, SIZE_MAX},
                                      iovec{&byte, SIZE_MAX}};
  const auto wrapped = Await([&](Completion done) {
    f.loop->WriteVector(f.fd(), wrapping, 0, std::move(done));
  });
  CHECK(wrapped.code == StatusCode::kInvalidArgument);
  const auto hole = Await([&](Completion done) {
    f.loop->Fallocate(f.fd(), 0, UINT64_MAX, 1, std::move(done));
  });
  CHECK(hole.code == StatusCode::kInvalidArgument);
}

TEST_CASE("Operations on a bad descriptor fail with the kernel's reason") {
  Fixture f;
  char byte = 0;
  const auto closed = Await(
      [&](Completion done) { f.loop->Read(-1, &byte, 1, 0, std::move(done)); });
  CHECK_FALSE(closed.ok());
  CHECK_THAT(closed.text, Catch::Contains("descriptor -1"));
  const auto read_only = OpenFile(f.directory.File("file"), O_RDONLY);
  REQUIRE(read_only.ok());
  const auto written = Await([&](Completion done) {
    f.loop->Write(read_only->get(), &byte, 1, 0, std::move(done));
  });
  CHECK_FALSE(written.ok());
  const auto synced =
      Await([&](Completion done) { f.loop->Fsync(-1, std::move(done)); });
  CHECK_FALSE(synced.ok());
}

TEST_CASE("Fsync and Fdatasync complete with 0") {
  Fixture f;
  REQUIRE(WriteFully(f.fd(), "abc", 3, 0).ok());
  const auto all =
      Await([&](Completion done) { f.loop->Fsync(f.fd(), std::move(done)); });
  REQUIRE(all.ok());
  CHECK(all.value == 0);
  const auto data = Await(
      [&](Completion done) { f.loop->Fdatasync(f.fd(), std::move(done)); });
  REQUIRE(data.ok());
  CHECK(data.value == 0);
}

TEST_CASE("A punched hole reads as zeros and gives its blocks back") {
  Fixture f;
  auto file = base::CreateMemFd("hole", 1 << 20);
  REQUIRE(file.ok());
  const std::vector<uint8_t> data(1 << 20, 0xaa);
  REQUIRE(WriteFully(file->get(), data.data(), data.size(), 0).ok());
  const auto punched = Await([&](Completion done) {
    f.loop->Fallocate(file->get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                      0, 512 << 10, std::move(done));
  });
  REQUIRE(punched.ok());
  std::vector<uint8_t> back(1 << 20);
  REQUIRE(ReadFully(file->get(), back.data(), back.size(), 0).ok());
  CHECK(std::count(back.begin(), back.end(), 0) == 512 << 10);
  struct stat info {};
  REQUIRE(::fstat(file->get(), &info) == 0);
  CHECK(info.st_blocks * 512 <= 512 << 10);
}

TEST_CASE("Far more operations than the queue holds all complete, once") {
  Fixture f({.queue_entries = 4, .plain_workers = 2});
  static constexpr size_t kOperations = 5000;
  static constexpr size_t kBytes = 512;
  const std::vector<uint8_t> data = Pattern(kOperations * kBytes);
  std::vector<uint8_t> back(data.size());
  const Outcomes writes;
  for (size_t i = 0; i < kOperations; ++i) {
    f.loop->Write(f.fd(), data.data() + i * kBytes, kBytes, i * kBytes,
                  Into(writes));
  }
  writes.WaitFor(kOperations);
  const Outcomes reads;
  for (size_t i = 0; i < kOperations; ++i) {
    f.loop->Read(f.fd(), back.data() + i * kBytes, kBytes, i * kBytes,
                 Into(reads));
  }
  const auto results = reads.WaitFor(kOperations);
  CHECK(back == data);
  CHECK(std::all_of(results.begin(), results.end(), [](const auto& result) {
    return result.ok() && result.value == kBytes;
  }));
  f.loop->Stop();
  CHECK(writes.size() == kOperations);
  CHECK(reads.size() == kOperations);
}

TEST_CASE("Completions may start the next operation") {
  Fixture f;
  // Each write starts the next: a chain that only the loop's thread drives.
  struct Chain {
    EventLoop* loop;
    int fd;
    Inbox<size_t> done;
    void Step(size_t at) {
      if (at == 1000) return done.Put(at);
      loop->Write(fd, "x", 1, at, [this, at](absl::StatusOr<size_t> result) {
        result.ok() ? Step(at + *result) : done.Put(at);
      });
    }
  } chain{f.loop.get(), f.fd(), {}};
  chain.Step(0);
  CHECK(chain.done.WaitFor(1).front() == 1000);
}

TEST_CASE("Cancelled file operations end once, and their buffers are free") {
  Fixture f({.queue_entries = 4, .plain_workers = 1});
  static constexpr size_t kOperations = 200;
  static constexpr size_t kBytes = 64 << 10;
  const std::vector<uint8_t> data = Pattern(kBytes);
  REQUIRE(WriteFully(f.fd(), data.data(), data.size(), 0).ok());
  auto buffers = std::make_unique<std::vector<uint8_t>>(kOperations * kBytes);
  const Outcomes results;
  // From one turn of the loop, so that most are still queued when cancelled.
  f.loop->Post([&] {
    std::vector<OperationId> ids;
    for (size_t i = 0; i < kOperations; ++i) {
      ids.push_back(f.loop->Read(f.fd(), buffers->data() + i * kBytes, kBytes,
                                 0, Into(results)));
    }
    for (const OperationId id : ids) f.loop->Cancel(id);
    for (const OperationId id : ids) f.loop->Cancel(id);
  });
  const auto ended = results.WaitFor(kOperations);
  buffers.reset();  // A late transfer would now be a crash.
  CHECK(std::all_of(ended.begin(), ended.end(), [](const auto& result) {
    return result.ok() ? result.value == kBytes
                       : result.code == StatusCode::kCancelled;
  }));
  f.loop->Stop();
  CHECK(results.size() == kOperations);
}

TEST_CASE("Cancelling what has ended, or never was, does nothing") {
  Fixture f;
  const Outcomes results;
  const OperationId old = f.loop->Fsync(f.fd(), Into(results));
  results.WaitFor(1);
  Settle(f.loop.get());  // Its place is free again.
  f.loop->Cancel(old);
  f.loop->Cancel({});
  f.loop->Cancel({.slot = 1u << 31, .generation = 1});
  for (size_t i = 0; i < 100; ++i) {
    f.loop->Fsync(f.fd(), Into(results));
    f.loop->Cancel(old);
  }
  const auto ended = results.WaitFor(101);
  CHECK(std::all_of(ended.begin(), ended.end(),
                    [](const auto& result) { return result.ok(); }));
}

TEST_CASE("A read that would never end is cancelled in the kernel",
          "[io_uring]") {
  const auto loop = MakeLoop({.backend = LoopBackendKind::kIoUring});
  std::array<int, 2> ends{};
  REQUIRE(::pipe2(ends.data(), O_CLOEXEC) == 0);
  const base::UniqueFd reader(ends[0]);
  const base::UniqueFd writer(ends[1]);
  char byte = 0;
  const Outcomes results;
  const OperationId id = loop->Read(reader.get(), &byte, 1, 0, Into(results));
  Settle(loop.get());
  CHECK(results.size() == 0);
  loop->Cancel(id);
  CHECK(results.WaitFor(1).front().code == StatusCode::kCancelled);
}

}  // namespace
}  // namespace catnap::io
