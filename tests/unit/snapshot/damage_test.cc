#include <sys/mount.h>

#include <catch2/catch.hpp>
#include <csignal>
#include <stop_token>
#include <thread>

#include "base/byte_order.h"
#include "base/crc32c.h"
#include "base/thread.h"
#include "support/lowered_limit.h"
#include "unit/snapshot/snapshot_guest.h"

namespace catnap::snapshot {
namespace {

using test::Filling;
using test::kPage;
using test::MakeFolder;
using test::MakePool;
using test::ReadBytes;
using test::SnapshotGuest;
using test::WriteBytes;

// A directory with a small snapshot, and what must come out of it.
class SmallSnapshot {
 public:
  SmallSnapshot() {
    for (size_t page = 2; page < 7; ++page) guest_.Fill(page, Filling::kText);
    const std::vector<state::SavedSection> sections = {
        {.id = state::SectionId::kMachine, .bytes = {1, 2, 3}},
        {.id = state::SectionId::kVcpu, .bytes = std::vector<uint8_t>(40, 7)}};
    const auto changed = guest_.changed();
    const auto written = WriteSnapshot(
        path(),
        {.sections = sections, .memory = guest_.memory(), .changed = changed},
        {.pool = pool_.get(), .durable = false});
    REQUIRE(written.ok());
    index_ = written->index;
  }

  const std::string& path() const { return directory_.path(); }
  WorkerPool* pool() { return pool_.get(); }
  const PageIndex& index() const { return index_; }
  const std::vector<uint8_t>& memory() { return guest_.memory(); }
  std::string File(const std::string& name) const {
    return directory_.File(name);
  }
  std::string ChunkFileName() const { return index_.files.front().name; }

  // Opens and reads all of it. OK only when memory is what it must be.
  absl::Status Read() {
    const auto reader = SnapshotReader::Open(path());
    if (!reader.ok()) return reader.status();
    std::vector<uint8_t> memory(guest_.memory().size());
    if (memory.size() != (*reader)->ram_bytes()) {
      return absl::InternalError("another size of memory");
    }
    absl::Status status = (*reader)->ReadAll(memory, {.pool = pool()});
    if (status.ok() && memory != guest_.memory()) {
      return absl::InternalError("wrong memory");
    }
    return status;
  }

 private:
  const test::TemporaryDirectory directory_;
  const std::unique_ptr<WorkerPool> pool_ = MakePool(1);
  SnapshotGuest guest_{16};
  PageIndex index_;
};

// Puts the right checksum behind a header that was changed.
void SealHeader(std::vector<uint8_t>* file, size_t header_bytes) {
  const size_t at = header_bytes - sizeof(uint32_t);
  base::StoreLe(file->data() + at, base::Crc32c(std::span(*file).first(at)));
}

TEST_CASE("Every flipped bit of a snapshot is found") {
  SmallSnapshot small;
  const std::string name =
      GENERATE(std::string(kMemoryFileName), std::string("chunks"));
  const std::string path =
      small.File(name == "chunks" ? small.ChunkFileName() : name);
  const std::vector<uint8_t> good = ReadBytes(path);
  REQUIRE(small.Read().ok());
  for (size_t at = 0; at < good.size(); ++at) {
    CAPTURE(name, at);
    std::vector<uint8_t> bad = good;
    bad[at] ^= static_cast<uint8_t>(1U << (at % 8));
    WriteBytes(path, bad);
    const absl::StatusCode code = small.Read().code();
    REQUIRE((code == absl::StatusCode::kDataLoss ||
             code == absl::StatusCode::kUnimplemented));
  }
  WriteBytes(path, good);
  CHECK(small.Read().ok());
}

TEST_CASE("A snapshot that was cut anywhere is refused") {
  SmallSnapshot small;
  const std::string name =
      GENERATE(std::string(kMemoryFileName), std::string("chunks"));
  const std::string path =
      small.File(name == "chunks" ? small.ChunkFileName() : name);
  const std::vector<uint8_t> good = ReadBytes(path);
  for (size_t length = 0; length < good.size(); ++length) {
    CAPTURE(name, length);
    WriteBytes(path, {good.begin(), good.begin() + static_cast<int>(length)});
    REQUIRE(small.Read().code() == absl::StatusCode::kDataLoss);
  }
  std::vector<uint8_t> longer = good;
  longer.push_back(0);
  WriteBytes(path, longer);
  CHECK(small.Read().code() == absl::StatusCode::kDataLoss);
}

TEST_CASE("A damaged frame is named, with its file") {
  SmallSnapshot small;
  std::vector<uint8_t> bytes = ReadBytes(small.File(small.ChunkFileName()));
  bytes.back() ^= 1;
  WriteBytes(small.File(small.ChunkFileName()), bytes);
  const auto reader = SnapshotReader::Open(small.path());
  REQUIRE(reader.ok());  // Frames are looked at when they are read.
  const absl::Status status = (*reader)->Verify({.pool = small.pool()});
  CHECK(status.code() == absl::StatusCode::kDataLoss);
  CHECK_THAT(
      std::string(status.message()),
      Catch::Contains(small.ChunkFileName()) && Catch::Contains("frame 0"));
  auto decompressor = codec::ZstdDecompressor::Create();
  REQUIRE(decompressor.ok());
  base::ScratchBuffer compressed;
  std::vector<uint8_t> into(16 * kPage);
  CHECK((*reader)->ReadFrame(0, &*decompressor, &compressed, into).code() ==
        absl::StatusCode::kDataLoss);
}

TEST_CASE("A chunk file that is cut after it was opened is DATA_LOSS") {
  SmallSnapshot small;
  const auto reader = SnapshotReader::Open(small.path());
  REQUIRE(reader.ok());
  const bool plain = GENERATE(false, true);
  std::filesystem::resize_file(small.File(small.ChunkFileName()), 70);
  const absl::Status status =
      (*reader)->Verify({.pool = small.pool(), .plain_io = plain});
  CHECK(status.code() == absl::StatusCode::kDataLoss);
}

TEST_CASE("A missing or foreign chunk file is DATA_LOSS") {
  SmallSnapshot small;
  SmallSnapshot other;
  const std::string path = small.File(small.ChunkFileName());
  SECTION("missing") { std::filesystem::remove(path); }
  SECTION("of another snapshot, of the same size") {
    std::vector<uint8_t> bytes = ReadBytes(other.File(other.ChunkFileName()));
    bytes.resize(ReadBytes(path).size());
    WriteBytes(path, bytes);
  }
  SECTION("a directory") {
    std::filesystem::remove(path);
    std::filesystem::create_directory(path);
  }
  SECTION("a symbolic link") {
    std::filesystem::rename(path, path + ".moved");
    std::filesystem::create_symlink(path + ".moved", path);
  }
  const absl::Status status = small.Read();
  CHECK_FALSE(status.ok());
  CHECK_THAT(std::string(status.message()),
             Catch::Contains(small.ChunkFileName()));
}

TEST_CASE("What a newer library wrote is UNIMPLEMENTED") {
  SmallSnapshot small;
  const bool chunks = GENERATE(false, true);
  const std::string path =
      small.File(chunks ? small.ChunkFileName() : std::string(kMemoryFileName));
  std::vector<uint8_t> bytes = ReadBytes(path);
  const size_t header = chunks ? kChunkHeaderBytes : kHeaderBytes;
  SECTION("and only newer ones can read") {
    base::StoreLe<uint32_t>(bytes.data() + 8, 2);
    base::StoreLe<uint32_t>(bytes.data() + 12, 2);
    SealHeader(&bytes, header);
    WriteBytes(path, bytes);
    CHECK(small.Read().code() == absl::StatusCode::kUnimplemented);
  }
  SECTION("with a field that must not be overlooked") {
    bytes[header - 8] = 1;
    SealHeader(&bytes, header);
    WriteBytes(path, bytes);
    CHECK(small.Read().code() == absl::StatusCode::kUnimplemented);
  }
  SECTION("unless it says that this one can read it") {
    base::StoreLe<uint32_t>(bytes.data() + 8, 2);
    SealHeader(&bytes, header);
    WriteBytes(path, bytes);
    CHECK(small.Read().ok());
  }
}

TEST_CASE("A directory without a snapshot is NOT_FOUND") {
  const test::TemporaryDirectory directory;
  CHECK(SnapshotReader::Open(directory.path()).status().code() ==
        absl::StatusCode::kNotFound);
  CHECK(SnapshotReader::Open(directory.File("none")).status().code() ==
        absl::StatusCode::kNotFound);
}

TEST_CASE("A base whose file was swapped is not built upon") {
  SmallSnapshot small;
  SmallSnapshot other;
  const test::TemporaryDirectory next;
  std::filesystem::copy_file(other.File(other.ChunkFileName()),
                             small.File(small.ChunkFileName()),
                             std::filesystem::copy_options::overwrite_existing);
  CHECK(WriteSnapshot(next.path(),
                      {.memory = small.memory(),
                       .base = BaseSnapshot{.index = &small.index(),
                                            .directory = small.path()}},
                      {.pool = small.pool()})
            .status()
            .code() == absl::StatusCode::kDataLoss);
}

TEST_CASE("A full disk is RESOURCE_EXHAUSTED") {
  // The limit of a file's size stands for the disk's; SIGXFSZ comes with it.
  sigset_t set{};
  sigemptyset(&set);
  sigaddset(&set, SIGXFSZ);
  REQUIRE(::pthread_sigmask(SIG_BLOCK, &set, nullptr) == 0);
  const auto pool = MakePool();
  SnapshotGuest guest(2000);
  for (size_t page = 0; page < 2000; ++page) guest.Fill(page, Filling::kNoise);
  const auto changed = guest.changed();
  // Before anything is written, in the first and in a later buffer.
  const rlim_t limit = GENERATE(0U, 100'000U, 3'000'000U);
  const bool plain = GENERATE(false, true);
  const test::TemporaryDirectory directory;
  absl::Status status;
  {
    const test::LoweredLimit lowered(RLIMIT_FSIZE, limit);
    status = WriteSnapshot(directory.path(),
                           {.memory = guest.memory(), .changed = changed},
                           {.pool = pool.get(), .plain_io = plain})
                 .status();
  }
  CAPTURE(limit, plain, status.ToString());
  CHECK(status.code() == absl::StatusCode::kResourceExhausted);
  // The next try, elsewhere, succeeds with the same pool.
  const test::TemporaryDirectory again;
  CHECK(WriteSnapshot(again.path(),
                      {.memory = guest.memory(), .changed = changed},
                      {.pool = pool.get()})
            .ok());
}

TEST_CASE("A full file system is RESOURCE_EXHAUSTED") {
  const test::TemporaryDirectory directory;
  if (::mount("tmpfs", directory.path().c_str(), "tmpfs", 0, "size=1m") != 0) {
    return;  // Needs root; the case above stands for it.
  }
  const auto pool = MakePool();
  SnapshotGuest guest(1000);
  for (size_t page = 0; page < 1000; ++page) guest.Fill(page, Filling::kNoise);
  const auto changed = guest.changed();
  const absl::Status status =
      WriteSnapshot(directory.path(),
                    {.memory = guest.memory(), .changed = changed},
                    {.pool = pool.get()})
          .status();
  CHECK(::umount(directory.path().c_str()) == 0);
  CHECK(status.code() == absl::StatusCode::kResourceExhausted);
}

TEST_CASE("Writing and reading stop when they are told to") {
  const auto pool = MakePool();
  SnapshotGuest guest(20'000);
  for (size_t page = 0; page < 20'000; ++page) {
    guest.Fill(page, page % 2 == 0 ? Filling::kText : Filling::kNoise);
  }
  const auto changed = guest.changed();
  const SnapshotContent content = {.memory = guest.memory(),
                                   .changed = changed};
  SECTION("before") {
    const test::TemporaryDirectory directory;
    std::stop_source stop;
    stop.request_stop();
    CHECK(WriteSnapshot(directory.path(), content,
                        {.pool = pool.get(), .stop = stop.get_token()})
              .status()
              .code() == absl::StatusCode::kCancelled);
    CHECK(std::filesystem::is_empty(directory.path()));
  }
  SECTION("at some moment") {
    for (int milliseconds = 0; milliseconds < 40; milliseconds += 8) {
      const test::TemporaryDirectory directory;
      std::stop_source stop;
      auto stopper = base::Thread::Start("stopper", [&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
        stop.request_stop();
      });
      REQUIRE(stopper.ok());
      const auto status =
          WriteSnapshot(
              directory.path(), content,
              {.pool = pool.get(), .durable = false, .stop = stop.get_token()})
              .status();
      stopper->Join();
      CHECK((status.ok() || absl::IsCancelled(status)));
    }
  }
  SECTION("by a deadline") {
    const test::TemporaryDirectory directory;
    CHECK(WriteSnapshot(directory.path(), content,
                        {.pool = pool.get(),
                         .deadline = std::chrono::steady_clock::now()})
              .status()
              .code() == absl::StatusCode::kDeadlineExceeded);
  }
  SECTION("while reading") {
    const test::TemporaryDirectory directory;
    REQUIRE(WriteSnapshot(directory.path(), content,
                          {.pool = pool.get(), .durable = false})
                .ok());
    const auto reader = SnapshotReader::Open(directory.path());
    REQUIRE(reader.ok());
    std::stop_source stop;
    stop.request_stop();
    CHECK((*reader)
              ->Verify({.pool = pool.get(), .stop = stop.get_token()})
              .code() == absl::StatusCode::kCancelled);
    CHECK((*reader)
              ->Verify({.pool = pool.get(),
                        .deadline = std::chrono::steady_clock::now()})
              .code() == absl::StatusCode::kDeadlineExceeded);
    CHECK((*reader)->Verify({.pool = pool.get()}).ok());
  }
}

TEST_CASE("Reading refuses a target of another size") {
  SmallSnapshot small;
  const auto reader = SnapshotReader::Open(small.path());
  REQUIRE(reader.ok());
  std::vector<uint8_t> memory(15 * kPage);
  CHECK((*reader)->ReadAll(memory, {.pool = small.pool()}).code() ==
        absl::StatusCode::kInvalidArgument);
  CHECK((*reader)->Verify({}).code() == absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace catnap::snapshot
