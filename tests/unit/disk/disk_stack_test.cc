#include "disk/disk_stack.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <catch2/catch.hpp>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "unit/disk/disk_stack_fixture.h"

namespace catnap::disk {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

TEST_CASE("A DiskStack is the base until it is written, and keeps the writes") {
  const Place place;
  {
    const auto stack = place.Open();
    CHECK(stack->capacity() == kBaseBytes);
    CHECK(IsAll(ReadBytes(stack.get(), 0, kMiB), kBaseByte));
    CHECK(Fill(stack.get(), 4096, 4096, 7).ok());
    CHECK(Flush(stack.get()).ok());
  }
  const auto stack = place.Open();
  CHECK(place.Names(place.layers()) == Names{"disk-000.layer"});
  CHECK(IsAll(ReadBytes(stack.get(), 4096, 4096), 7));
  CHECK(IsAll(ReadBytes(stack.get(), 8192, 4096), kBaseByte));
}

TEST_CASE("A frozen DiskStack goes on in a new layer, and the old one stays") {
  const Place place;
  const auto stack = place.Open();
  CHECK(Fill(stack.get(), 0, 8192, 7).ok());
  CHECK(stack->PrepareFreeze().ok());
  CHECK(Fill(stack.get(), 4096, 4096, 8).ok());
  CHECK(stack->Freeze().ok());
  const std::string saved = place.Make("saved");
  CHECK(stack->LinkInto(saved, CopyMode::kLink).ok());
  CHECK(Fill(stack.get(), 0, 512, 9).ok());
  CHECK(Zero(stack.get(), 4096, 4096).ok());
  CHECK(IsAll(ReadBytes(stack.get(), 0, 512), 9));
  CHECK(IsAll(ReadBytes(stack.get(), 512, 3584), 7));
  CHECK(IsAll(ReadBytes(stack.get(), 4096, 4096), 0));
  // Another disk from what was saved.
  const auto chain = ReadChain(saved, place.base.get());
  REQUIRE(chain.ok());
  const std::string other = place.Make("other");
  CHECK(LinkChain(chain->layers, other, CopyMode::kLink).ok());
  const auto copy = place.Open(place.OptionsOf(other));
  CHECK(IsAll(ReadBytes(copy.get(), 0, 4096), 7));
  CHECK(IsAll(ReadBytes(copy.get(), 4096, 4096), 8));
  CHECK(place.Names(other) == Names{"disk-000.layer", "disk-001.layer"});
}

TEST_CASE("A disk that is made durable later is like any other") {
  const Place place;
  const auto stack = place.Open();
  CHECK(Fill(stack.get(), 0, 4096, 7).ok());
  CHECK(stack->Freeze().ok());
  const auto saved =
      stack->LinkInto(place.Make("saved"), CopyMode::kLink, Durable::kLater);
  REQUIRE(saved.ok());
  REQUIRE(saved->size() == 1);
  CHECK(saved->front().path == place.directory.File("saved/disk-000.layer"));
  CHECK(saved->front().header.id == stack->frozen_layers()[0].header.id);
  const std::string other = place.Make("other");
  CHECK(LinkChain(*saved, other, CopyMode::kLink, Durable::kLater).ok());
  DiskStackOptions options = place.OptionsOf(other);
  options.durable = Durable::kLater;
  {
    const auto copy = place.Open(options);
    CHECK(place.Names(other) == Names{"disk-000.layer", "disk-001.layer"});
    CHECK(Fill(copy.get(), 4096, 4096, 8).ok());
    CHECK(copy->Sync().ok());
    CHECK(Flush(copy.get()).ok());
    CHECK(copy->Freeze().ok());
    CHECK(Fill(copy.get(), 8192, 4096, 9).ok());
    CHECK(copy->Sync().ok());
    CHECK(Flush(copy.get()).ok());
  }
  const auto copy = place.Open(options);
  CHECK(IsAll(ReadBytes(copy.get(), 0, 4096), 7));
  CHECK(IsAll(ReadBytes(copy.get(), 4096, 4096), 8));
  CHECK(IsAll(ReadBytes(copy.get(), 8192, 4096), 9));
  std::filesystem::remove_all(other);
  CHECK_FALSE(copy->Sync().ok());
}

TEST_CASE("A clone of a chain shares no file with it") {
  const Place place;
  const auto stack = place.Open();
  CHECK(Fill(stack.get(), 0, kMiB, 7).ok());
  CHECK(stack->Freeze().ok());
  const std::string saved = place.Make("saved");
  CHECK(stack->LinkInto(saved, CopyMode::kClone).ok());
  const std::string from = stack->frozen_layers()[0].path;
  const std::string to = saved + "/disk-000.layer";
  struct stat one {};
  struct stat two {};
  REQUIRE(::stat(from.c_str(), &one) == 0);
  REQUIRE(::stat(to.c_str(), &two) == 0);
  CHECK(one.st_ino != two.st_ino);
  CHECK(one.st_size == two.st_size);
  CHECK(two.st_blocks <= one.st_blocks + 64);  // Holes stay holes.
  CHECK(CloneFile(from, to).code() == absl::StatusCode::kAlreadyExists);
  CHECK_FALSE(CloneFile(place.layers(), saved + "/x").ok());
  CHECK(place.Names(saved) == Names{"disk-000.layer"});
  const auto copy = place.Open(place.OptionsOf(saved));
  CHECK(IsAll(ReadBytes(copy.get(), 0, kMiB), 7));
}

TEST_CASE("A DiskStack grows over freezes and merges") {
  const Place place;
  DiskStackOptions options = place.Options();
  options.max_frozen = 1;
  const auto stack = place.Open(options);
  CHECK(Fill(stack.get(), 0, 512, 7).ok());
  CHECK(stack->PrepareFreeze().ok());  // Made before the disk grows.
  CHECK(Resize(stack.get(), 3 * kMiB).ok());
  CHECK(stack->Freeze().ok());
  CHECK(stack->capacity() == 3 * kMiB);
  CHECK(Fill(stack.get(), 3 * kMiB - 512, 512, 8).ok());
  CHECK(Resize(stack.get(), 4 * kMiB).ok());
  CHECK(stack->Freeze().ok());
  stack->WaitForMerges();
  CHECK(stack->frozen_layers().size() == 1);
  CHECK(stack->capacity() == 4 * kMiB);
  CHECK(IsAll(ReadBytes(stack.get(), 0, 512), 7));
  CHECK(IsAll(ReadBytes(stack.get(), 512, kBaseBytes - 512), kBaseByte));
  CHECK(IsAll(ReadBytes(stack.get(), kBaseBytes, 3 * kMiB - 512 - kBaseBytes),
              0));
  CHECK(IsAll(ReadBytes(stack.get(), 3 * kMiB - 512, 512), 8));
  CHECK(IsAll(ReadBytes(stack.get(), 3 * kMiB, kMiB), 0));
}

TEST_CASE(
    "A merge leaves the links of snapshots alone, and shadows what it "
    "zeroed") {
  const Place place;
  DiskStackOptions options = place.Options();
  options.max_frozen = 1;
  const auto stack = place.Open(options);
  CHECK(Fill(stack.get(), 0, 256 << 10, 7).ok());
  CHECK(stack->Freeze().ok());
  const std::string saved = place.Make("saved");
  CHECK(stack->LinkInto(saved, CopyMode::kLink).ok());
  CHECK(Zero(stack.get(), 64 << 10, 64 << 10).ok());
  CHECK(Zero(stack.get(), kMiB, 4096).ok());
  CHECK(Fill(stack.get(), 0, 4096, 8).ok());
  CHECK(stack->Freeze().ok());
  stack->WaitForMerges();
  CHECK(stack->frozen_layers().size() == 1);
  CHECK(place.Names(place.layers()) ==
        Names{"disk-001.layer", "disk-002.layer"});
  CHECK(IsAll(ReadBytes(stack.get(), 0, 4096), 8));
  CHECK(IsAll(ReadBytes(stack.get(), 4096, 60 << 10), 7));
  CHECK(IsAll(ReadBytes(stack.get(), 64 << 10, 64 << 10), 0));
  CHECK(IsAll(ReadBytes(stack.get(), 128 << 10, 128 << 10), 7));
  CHECK(IsAll(ReadBytes(stack.get(), kMiB, 4096), 0));
  CHECK(IsAll(ReadBytes(stack.get(), kMiB + 4096, 4096), kBaseByte));
  const auto old = place.Open(place.OptionsOf(saved));
  CHECK(IsAll(ReadBytes(old.get(), 0, 256 << 10), 7));
  CHECK(IsAll(ReadBytes(old.get(), kMiB, 4096), kBaseByte));
}

// A small file system, where it may be mounted.
class FullDisk {
 public:
  explicit FullDisk(const Place& place)
      : at_(place.Make("small")),
        mounted_(::mount("none", at_.c_str(), "tmpfs", 0, "size=2m") == 0) {}
  FullDisk(const FullDisk&) = delete;
  FullDisk& operator=(const FullDisk&) = delete;
  ~FullDisk() {
    if (mounted_) ::umount2(at_.c_str(), MNT_DETACH);
  }
  bool mounted() const { return mounted_; }
  const std::string& at() const { return at_; }
  bool Grow() const {
    return ::mount("none", at_.c_str(), "tmpfs", MS_REMOUNT, "size=64m") == 0;
  }

 private:
  const std::string at_;
  const bool mounted_;
};

TEST_CASE("A freeze on a full disk fails, and the disk goes on") {
  const Place place;
  const FullDisk small(place);
  if (!small.mounted()) {
    WARN("not tried: this process may not mount a tmpfs");
    return;
  }
  const io::Inbox<std::string> reports;
  DiskStackOptions options = place.OptionsOf(small.at());
  options.on_parked = [reports](const std::string& why) { reports.Put(why); };
  options.first_retry = std::chrono::milliseconds(1);
  const auto stack = place.Open(options);
  CHECK(Fill(stack.get(), 0, kMiB, 7).ok());
  const std::vector<uint8_t> bytes(kMiB, 8);
  const iovec buffer{const_cast<uint8_t*>(bytes.data()), bytes.size()};
  AwaitedRequest write;
  stack->Write({&buffer, 1}, kMiB, write.completion());
  CHECK_FALSE(reports.WaitFor(1).front().empty());
  CHECK(stack->parked());
  CHECK(stack->PrepareFreeze().code() == absl::StatusCode::kResourceExhausted);
  CHECK(stack->Freeze().code() == absl::StatusCode::kResourceExhausted);
  CHECK(stack->frozen_layers().empty());
  CHECK(IsAll(ReadBytes(stack.get(), 0, kMiB), 7));
  REQUIRE(small.Grow());
  CHECK(write.Wait().ok());
  CHECK(stack->Freeze().ok());
  CHECK(IsAll(ReadBytes(stack.get(), kMiB, kMiB), 8));
}

TEST_CASE("A freeze that a crash cut short is not a freeze") {
  const Place place;
  {
    const auto stack = place.Open();
    CHECK(Fill(stack.get(), 0, 4096, 7).ok());
    CHECK(stack->PrepareFreeze().ok());
    // As if the process ended here: the empty layer above is there.
    std::filesystem::copy(place.layers(), place.directory.File("crashed"));
  }
  const std::string crashed = place.directory.File("crashed");
  CHECK(place.Names(crashed) == Names{"disk-000.layer", "disk-001.layer"});
  const auto stack = place.Open(place.OptionsOf(crashed));
  CHECK(place.Names(crashed) == Names{"disk-000.layer"});
  CHECK(stack->frozen_layers().empty());
  CHECK(IsAll(ReadBytes(stack.get(), 0, 4096), 7));
  CHECK(Fill(stack.get(), 0, 4096, 8).ok());
}

// Everything at random, one thing after the other, against bytes in memory.
TEST_CASE("A DiskStack is what was written, however often it is frozen") {
  const uint64_t seed = GENERATE(range(uint64_t{1}, uint64_t{9}));
  CAPTURE(seed);
  std::mt19937_64 random(seed);
  const Place place;
  DiskStackOptions options = place.Options();
  options.max_frozen = 1 + seed % 3;
  auto stack = place.Open(options);
  std::vector<uint8_t> model(kBaseBytes, kBaseByte);
  std::map<std::string, std::vector<uint8_t>> saved;
  for (int step = 0; step < 150; ++step) {
    CAPTURE(step);
    const uint64_t sectors = model.size() / kSectorBytes;
    uint64_t at = random() % sectors;
    uint64_t count = 1 + random() % 40;
    if (random() % 8 == 0) count = 1 + random() % sectors;
    if (random() % 2 == 0) at = at / 8 * 8;
    count = std::min(count, sectors - at);
    const uint64_t offset = at * kSectorBytes;
    const uint64_t length = count * kSectorBytes;
    const auto value = static_cast<uint8_t>(random());
    const uint64_t kind = random() % 32;
    if (kind < 12) {
      REQUIRE(Fill(stack.get(), offset, length, value).ok());
      std::memset(&model[offset], value, length);
    } else if (kind < 18) {
      REQUIRE(Zero(stack.get(), offset, length).ok());
      std::memset(&model[offset], 0, length);
    } else if (kind < 21) {
      REQUIRE(Flush(stack.get()).ok());
    } else if (kind < 25) {
      REQUIRE(stack->Freeze().ok());
    } else if (kind < 26) {
      REQUIRE(stack->PrepareFreeze().ok());
    } else if (kind < 27) {
      model.resize(model.size() + (1 + random() % 300) * kSectorBytes);
      REQUIRE(Resize(stack.get(), model.size()).ok());
    } else if (kind < 28) {
      REQUIRE(stack->Freeze().ok());
      const std::string name = place.Make(std::to_string(step));
      REQUIRE(stack->LinkInto(name, CopyMode::kLink).ok());
      saved[name] = model;
    } else if (kind < 29) {
      stack->WaitForMerges();
      CHECK(stack->frozen_layers().size() <= options.max_frozen);
    } else if (kind < 30) {
      REQUIRE(Flush(stack.get()).ok());
      stack.reset();
      stack = place.Open(options);
    } else {
      CHECK(ReadBytes(stack.get(), 0, model.size()) == model);
    }
    const bool same =
        ReadBytes(stack.get(), offset, length) ==
        std::vector<uint8_t>(
            model.begin() + static_cast<ptrdiff_t>(offset),
            model.begin() + static_cast<ptrdiff_t>(offset + length));
    REQUIRE(same);
  }
  CHECK(ReadBytes(stack.get(), 0, model.size()) == model);
  for (const auto& [name, content] : saved) {
    CAPTURE(name);
    const auto copy = place.Open(place.OptionsOf(name));
    CHECK(ReadBytes(copy.get(), 0, content.size()) == content);
  }
}

TEST_CASE("A DiskStack is frozen and merged under the requests of threads") {
  const Place place;
  DiskStackOptions options = place.Options();
  options.max_frozen = 2;
  const auto stack = place.Open(options);
  constexpr int kThreads = 3;
  constexpr uint64_t kArea = 256 << 10;
  std::atomic<bool> stop{false};
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  threads.reserve(kThreads);
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      const uint64_t area = static_cast<uint64_t>(t) * kArea;
      std::vector<uint8_t> model(kArea, kBaseByte);
      std::mt19937_64 random(static_cast<uint64_t>(t));
      std::vector<uint8_t> bytes;
      while (!stop) {
        const uint64_t at = random() % (kArea / 4096) * 4096;
        bytes.assign(4096, static_cast<uint8_t>(random()));
        const iovec buffer{bytes.data(), bytes.size()};
        if (random() % 4 == 0) {
          std::fill(bytes.begin(), bytes.end(), uint8_t{0});
          if (!Zero(stack.get(), area + at, 4096).ok()) ++wrong;
        } else if (!WriteBytes(stack.get(), bytes, area + at).ok()) {
          ++wrong;
        }
        std::copy(bytes.begin(), bytes.end(),
                  model.begin() + static_cast<ptrdiff_t>(at));
        const uint64_t look = random() % (kArea / 4096) * 4096;
        const absl::Status read = Await([&](BlockCompletion done) {
          stack->Read({&buffer, 1}, area + look, std::move(done));
        });
        if (!read.ok() || std::memcmp(bytes.data(), &model[look], 4096) != 0) {
          ++wrong;
        }
        if (random() % 16 == 0 && !Flush(stack.get()).ok()) ++wrong;
      }
    });
  }
  for (int i = 0; i < 12; ++i) {
    CHECK(stack->Freeze().ok());
    const std::string name = place.Make("s" + std::to_string(i));
    CHECK(stack->LinkInto(name, CopyMode::kLink).ok());
    CHECK(ReadChain(name, place.base.get()).ok());
  }
  stack->WaitForMerges();
  stop = true;
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
  CHECK(stack->frozen_layers().size() <= 2);
}

// Writes, flushes, freezes and merges, and reports each round that is flushed.
[[noreturn]] void FreezeForEver(const std::string& directory, int report) {
  const auto loop = io::EventLoop::Create({});
  if (!loop.ok()) ::_exit(2);
  DiskStackOptions options;
  options.directory = directory;
  options.capacity = 8 * kMiB;
  options.loop = loop->get();
  options.max_frozen = 2;
  const auto stack = DiskStack::Open(std::move(options));
  if (!stack.ok()) ::_exit(3);
  for (uint32_t round = 1;; ++round) {
    std::vector<uint8_t> bytes(4096);
    std::memcpy(bytes.data(), &round, 4);
    if (!WriteBytes(stack->get(), bytes, uint64_t{round % 61} * 5 * 4096)
             .ok() ||
        !Flush(stack->get()).ok()) {
      ::_exit(4);
    }
    if (::write(report, &round, 4) != 4) ::_exit(5);
    if (round % 3 == 0 && !(*stack)->Freeze().ok()) ::_exit(6);
  }
}

TEST_CASE("What a DiskStack flushed survives kill -9 in freezes and merges") {
  const test::TemporaryDirectory directory;
  std::mt19937_64 random(1);
  for (int life = 0; life < 12; ++life) {
    CAPTURE(life);
    const std::string layers = directory.File(std::to_string(life));
    std::filesystem::create_directory(layers);
    std::array<int, 2> ends{};
    REQUIRE(::pipe2(ends.data(), O_CLOEXEC) == 0);
    const pid_t child = ::fork();
    if (child == 0) FreezeForEver(layers, ends[1]);
    REQUIRE(child > 0);
    ::close(ends[1]);
    uint32_t flushed = 0;
    const uint32_t wanted = 6 + static_cast<uint32_t>(random() % 20);
    while (flushed < wanted && ::read(ends[0], &flushed, 4) == 4) {
    }
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 6000));
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    uint32_t later = 0;
    while (::read(ends[0], &later, 4) == 4) flushed = later;
    ::close(ends[0]);
    REQUIRE(flushed >= wanted);

    const auto loop = io::MakeLoop({});
    DiskStackOptions options;
    options.directory = layers;
    options.loop = loop.get();
    const auto stack = Place::Open(options);
    CHECK(stack->capacity() == 8 * kMiB);
    for (uint32_t slot = 0; slot < 61; ++slot) {
      const auto bytes =
          ReadBytes(stack.get(), uint64_t{slot} * 5 * 4096, 4096);
      uint32_t value = 0;
      std::memcpy(&value, bytes.data(), 4);
      const uint32_t promised =
          flushed < slot ? 0 : flushed - (flushed - slot) % 61;
      CAPTURE(slot, value, promised, flushed);
      CHECK((value == promised || value == flushed + 1));
    }
  }
}

}  // namespace
}  // namespace catnap::disk
