#include <fcntl.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <catch2/catch.hpp>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "disk/cow_layer.h"
#include "disk/loop_file.h"
#include "disk/raw_disk.h"
#include "io/event_loop.h"
#include "support/temporary_directory.h"
#include "unit/io/loop_test_support.h"

// Disks on real files and loops.

namespace catnap::disk {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

struct Ended {
  absl::StatusCode code;
  std::string text;
};

// Starts one request and waits for its end.
template <typename Call>
Ended Await(Call&& call) {
  const io::Inbox<Ended> inbox;
  call([inbox](const absl::Status& status) {
    inbox.Put({status.code(), status.ToString()});
  });
  return inbox.WaitFor(1).front();
}

Ended Write(BlockIo* disk, const std::vector<uint8_t>& bytes, uint64_t offset) {
  const iovec buffer{const_cast<uint8_t*>(bytes.data()), bytes.size()};
  return Await([&](BlockCompletion done) {
    disk->Write({&buffer, 1}, offset, std::move(done));
  });
}

std::vector<uint8_t> Read(BlockIo* disk, uint64_t length, uint64_t offset) {
  std::vector<uint8_t> bytes(length, uint8_t{0xee});
  const iovec buffer{bytes.data(), bytes.size()};
  const Ended ended = Await([&](BlockCompletion done) {
    disk->Read({&buffer, 1}, offset, std::move(done));
  });
  CHECK(ended.text == "OK");
  return bytes;
}

Ended Flush(BlockIo* disk) {
  return Await([&](BlockCompletion done) { disk->Flush(std::move(done)); });
}

void WaitForDrain(BlockIo* disk) {
  const io::Inbox<int> drained;
  disk->Drain([drained] { drained.Put(0); });
  drained.WaitFor(1);
}

std::shared_ptr<LoopFile> OpenFile(const std::string& path, int flags,
                                   io::EventLoop* loop) {
  auto file = LoopFile::Open(path, flags, loop);
  REQUIRE(file.ok());
  return *file;
}

std::vector<uint8_t> Fill(uint64_t length, uint8_t value) {
  return std::vector<uint8_t>(length, value);
}

TEST_CASE("A RawDisk is the file, with zeroes where it was cut") {
  const auto backend = GENERATE(from_range(io::Backends()));
  const test::TemporaryDirectory directory;
  const auto loop = io::MakeLoop({.backend = backend});
  const std::string path = directory.File("raw");
  const auto file = OpenFile(path, O_RDWR | O_CREAT, loop.get());
  REQUIRE(file->SetSize(kMiB).ok());
  auto made = RawDisk::Create(file, {.read_only = false});
  REQUIRE(made.ok());
  const auto disk = *made;
  CHECK(disk->capacity() == kMiB);
  CHECK(Write(disk.get(), Fill(8192, 7), 4096).text == "OK");
  CHECK(Flush(disk.get()).text == "OK");
  CHECK(Read(disk.get(), 8192, 4096) == Fill(8192, 7));
  CHECK(Await([&](BlockCompletion done) {
          disk->Discard(4096, 4096, std::move(done));
        }).text == "OK");
  CHECK(Read(disk.get(), 4096, 4096) == Fill(4096, 0));
  CHECK(Read(disk.get(), 4096, 8192) == Fill(4096, 7));
  CHECK(Await([&](BlockCompletion done) {
          disk->Resize(2 * kMiB, std::move(done));
        }).text == "OK");
  CHECK(disk->capacity() == 2 * kMiB);
  REQUIRE(file->SetSize(8704).ok());
  auto expected = Fill(1024, 0);
  std::fill(expected.begin(), expected.begin() + 512, uint8_t{7});
  CHECK(Read(disk.get(), 1024, 8192) == expected);
  WaitForDrain(disk.get());
}

TEST_CASE("A RawDisk says what is wrong with a file or request") {
  const test::TemporaryDirectory directory;
  const auto loop = io::MakeLoop({});
  const auto file =
      OpenFile(directory.File("raw"), O_RDWR | O_CREAT, loop.get());
  REQUIRE(file->SetSize(1000).ok());
  const auto odd = RawDisk::Create(file, {});
  CHECK(odd.status().code() == absl::StatusCode::kInvalidArgument);
  REQUIRE(file->SetSize(1024).ok());
  const auto disk = RawDisk::Create(file, {});
  REQUIRE(disk.ok());
  CHECK(Write(disk->get(), Fill(512, 1), 0).code ==
        absl::StatusCode::kFailedPrecondition);
  CHECK(Flush(disk->get()).text == "OK");
  CHECK(!LoopFile::Open(directory.path(), O_RDONLY, loop.get()).ok());
}

TEST_CASE("A CowLayer on a file keeps many requests in flight") {
  const auto backend = GENERATE(from_range(io::Backends()));
  const test::TemporaryDirectory directory;
  const auto loop = io::MakeLoop({.backend = backend});
  const std::string path = directory.File("layer");
  const auto base =
      OpenFile(directory.File("raw"), O_RDWR | O_CREAT, loop.get());
  REQUIRE(base->SetSize(8 * kMiB).ok());
  REQUIRE(base->WriteNow(Fill(8 * kMiB, 3), 0).ok());
  const auto raw = RawDisk::Create(base, {});
  REQUIRE(raw.ok());
  static constexpr size_t kRequests = 512;
  static constexpr uint64_t kStep = 12 << 10;  // 8 KiB written, 4 KiB not.
  {
    auto layer = CowLayer::CreateOnTop(
        OpenFile(path, O_RDWR | O_CREAT, loop.get()), *raw, {});
    REQUIRE(layer.ok());
    const io::Inbox<Ended> inbox;
    const auto bytes = Fill(8192, 9);
    const iovec buffer{const_cast<uint8_t*>(bytes.data()), bytes.size()};
    for (size_t i = 0; i < kRequests; ++i) {
      (*layer)->Write({&buffer, 1}, i * kStep, [inbox](const auto& status) {
        inbox.Put({status.code(), status.ToString()});
      });
    }
    for (const Ended& ended : inbox.WaitFor(kRequests)) {
      CHECK(ended.text == "OK");
    }
    CHECK(Flush(layer->get()).text == "OK");
    WaitForDrain(layer->get());
  }
  const auto again =
      CowLayer::Open(OpenFile(path, O_RDWR, loop.get()), *raw, {});
  REQUIRE(again.ok());
  const auto all = Read(again->get(), kRequests * kStep, 0);
  bool same = true;
  for (size_t at = 0; at < all.size(); ++at) {
    same = same && all[at] == (at % kStep < 8192 ? 9 : 3);
  }
  CHECK(same);
}

TEST_CASE("A CowLayer takes requests of several threads over a shared disk") {
  const test::TemporaryDirectory directory;
  const auto base_loop = io::MakeLoop({});
  const auto loop = io::MakeLoop({});
  const auto base =
      OpenFile(directory.File("raw"), O_RDWR | O_CREAT, base_loop.get());
  REQUIRE(base->SetSize(8 * kMiB).ok());
  const auto raw = RawDisk::Create(base, {});
  REQUIRE(raw.ok());
  auto layer = CowLayer::CreateOnTop(
      OpenFile(directory.File("layer"), O_RDWR | O_CREAT, loop.get()), *raw,
      {});
  REQUIRE(layer.ok());
  const auto work = [&](uint8_t id) {
    for (uint64_t i = 0; i < 50; ++i) {
      // Halves of one block, so that the two meet.
      Write(layer->get(), Fill(2048, id), i * 4096 + uint64_t{id} * 2048);
      if (i % 10 == 0) Flush(layer->get());
    }
  };
  {
    const std::jthread one(work, uint8_t{0});
    const std::jthread other(work, uint8_t{1});
  }
  auto expected = Fill(4096, 0);
  std::fill(expected.begin() + 2048, expected.end(), uint8_t{1});
  for (uint64_t i = 0; i < 50; ++i) {
    CHECK(Read(layer->get(), 4096, i * 4096) == expected);
  }
  WaitForDrain(layer->get());
}

// A file system of a few KiB, where the process may mount one.
class SmallFileSystem {
 public:
  explicit SmallFileSystem(std::string path)
      : path_(std::move(path)), mounted_(Mount(0, "size=256k")) {}
  SmallFileSystem(const SmallFileSystem&) = delete;
  SmallFileSystem& operator=(const SmallFileSystem&) = delete;
  ~SmallFileSystem() {
    if (mounted_) ::umount2(path_.c_str(), MNT_DETACH);
  }
  bool mounted() const { return mounted_; }
  bool Grow() { return Mount(MS_REMOUNT, "size=16m"); }

 private:
  bool Mount(unsigned long flags, const char* options) {  // NOLINT
    return ::mount("tmpfs", path_.c_str(), "tmpfs", flags, options) == 0;
  }
  const std::string path_;
  const bool mounted_;
};

TEST_CASE("A CowLayer waits for room on a file system that is full") {
  const auto backend = GENERATE(from_range(io::Backends()));
  const test::TemporaryDirectory directory;
  SmallFileSystem small(directory.path());
  if (!small.mounted()) {
    WARN("not tried: this process may not mount a tmpfs");
    return;
  }
  const auto loop = io::MakeLoop({.backend = backend});
  const io::Inbox<std::string> reports;
  CowLayerOptions options;
  options.on_parked = [reports](const std::string& why) { reports.Put(why); };
  options.first_retry = std::chrono::milliseconds(1);
  auto layer = CowLayer::Create(
      OpenFile(directory.File("layer"), O_RDWR | O_CREAT, loop.get()), 4 * kMiB,
      nullptr, std::move(options));
  REQUIRE(layer.ok());
  const io::Inbox<Ended> inbox;
  const auto bytes = Fill(kMiB, 9);
  const iovec buffer{const_cast<uint8_t*>(bytes.data()), bytes.size()};
  (*layer)->Write({&buffer, 1}, 0, [inbox](const absl::Status& status) {
    inbox.Put({status.code(), status.ToString()});
  });
  CHECK(!reports.WaitFor(1).front().empty());
  CHECK(inbox.size() == 0);
  REQUIRE(small.Grow());
  CHECK(inbox.WaitFor(1).front().text == "OK");
  CHECK(reports.WaitFor(2).back().empty());
  CHECK(Flush(layer->get()).text == "OK");
  CHECK(Read(layer->get(), kMiB, 0) == bytes);
  WaitForDrain(layer->get());
}

// Writes and flushes, a block and a round after the other, and reports each
// round that was flushed. Never returns.
[[noreturn]] void WriteForEver(const std::string& path, int report) {
  const auto loop = io::EventLoop::Create({});
  if (!loop.ok()) ::_exit(2);
  auto file = LoopFile::Open(path, O_RDWR | O_CREAT, loop->get());
  if (!file.ok()) ::_exit(3);
  auto layer = CowLayer::Create(*file, 64 * kMiB, nullptr, {});
  if (!layer.ok()) ::_exit(4);
  for (uint32_t round = 1;; ++round) {
    std::vector<uint8_t> bytes(4096);
    for (size_t at = 0; at < bytes.size(); at += 4) {
      std::memcpy(&bytes[at], &round, 4);
    }
    if (Write(layer->get(), bytes, uint64_t{round % 61} * 5 * 4096).text !=
            "OK" ||
        (round % 7 == 0 && Flush(layer->get()).text != "OK")) {
      ::_exit(5);
    }
    if (round % 7 == 0 && ::write(report, &round, 4) != 4) ::_exit(6);
  }
}

TEST_CASE("What a CowLayer flushed survives kill -9") {
  const test::TemporaryDirectory directory;
  const std::string path = directory.File("layer");
  std::array<int, 2> ends{};
  REQUIRE(::pipe2(ends.data(), O_CLOEXEC) == 0);
  const pid_t child = ::fork();
  if (child == 0) WriteForEver(path, ends[1]);
  REQUIRE(child > 0);
  ::close(ends[1]);
  uint32_t flushed = 0;
  // Long enough to overwrite every block.
  while (flushed < 140 && ::read(ends[0], &flushed, 4) == 4) {
  }
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  uint32_t later = 0;
  while (::read(ends[0], &later, 4) == 4) flushed = later;
  ::close(ends[0]);
  REQUIRE(flushed >= 140);

  const auto loop = io::MakeLoop({});
  auto layer = CowLayer::Open(OpenFile(path, O_RDWR, loop.get()), nullptr, {});
  REQUIRE(layer.ok());
  for (uint32_t slot = 0; slot < 61; ++slot) {
    const auto bytes = Read(layer->get(), 4096, uint64_t{slot} * 5 * 4096);
    uint32_t value = 0;
    std::memcpy(&value, bytes.data(), 4);
    const uint32_t promised = flushed - (flushed - slot) % 61;
    CAPTURE(slot, value, promised, flushed);
    CHECK(value >= promised);
    CHECK(value % 61 == slot);
  }
}

}  // namespace
}  // namespace catnap::disk
