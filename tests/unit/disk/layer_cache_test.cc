#include "disk/layer_cache.h"

#include <fcntl.h>

#include <array>
#include <atomic>
#include <catch2/catch.hpp>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "unit/disk/disk_stack_fixture.h"

namespace catnap::disk {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

using Layer = std::shared_ptr<const LoadedLayer>;

// A disk with a frozen layer, and links of it for others.
class Frozen {
 public:
  Frozen() {
    const auto stack = place.Open();
    REQUIRE(Fill(stack.get(), 4096, kMiB, 7).ok());
    REQUIRE(stack->Freeze().ok());
    REQUIRE(stack->LinkInto(place.Make("one"), CopyMode::kLink).ok());
    REQUIRE(stack->LinkInto(place.Make("two"), CopyMode::kLink).ok());
    REQUIRE(stack->LinkInto(place.Make("clone"), CopyMode::kClone).ok());
  }

  std::shared_ptr<LoopFile> File(const std::string& name) const {
    auto file = LoopFile::Open(LayerPath(place.directory.File(name), 0), O_RDWR,
                               place.loop.get());
    REQUIRE(file.ok());
    return *std::move(file);
  }
  DiskStackOptions Options(const std::string& name,
                           std::shared_ptr<LayerCache> cache) const {
    DiskStackOptions options = place.OptionsOf(place.directory.File(name));
    options.cache = std::move(cache);
    return options;
  }
  // Nobody could open it any more.
  void DamageMap() const {
    const auto file = File("one");
    auto commit = LoadLayerCommit(file.get());
    REQUIRE(commit.ok());
    const std::array<uint8_t, 8> bytes{1, 2, 3};
    REQUIRE(file->WriteNow(bytes, commit->root.page * kPageBytes).ok());
  }

  const Place place;
};

Layer Load(LayerCache* cache, LoopFile* file) {
  auto layer = cache->Load(file);
  INFO(layer.status().ToString());
  REQUIRE(layer.ok());
  return *std::move(layer);
}

TEST_CASE("A frozen layer is read once for all who have its file open") {
  const Frozen frozen;
  LayerCache cache;
  const auto one = frozen.File("one");
  const auto two = frozen.File("two");
  const auto clone = frozen.File("clone");
  Layer first = Load(&cache, one.get());
  CHECK(first->commit.frozen);
  CHECK(Load(&cache, two.get()) == first);
  const Layer other = Load(&cache, clone.get());
  CHECK(other != first);
  CHECK(other->header.id == first->header.id);
  // It is not kept for nobody.
  const std::weak_ptr<const LoadedLayer> gone = first;
  first.reset();
  CHECK(gone.expired());
  frozen.DamageMap();
  CHECK(cache.Load(two.get()).status().code() == absl::StatusCode::kDataLoss);
  CHECK(Load(&cache, clone.get()) == other);
}

TEST_CASE("A layer that is written is its owner's alone") {
  const Frozen frozen;
  LayerCache cache;
  const auto stack = frozen.place.Open(frozen.Options("one", nullptr));
  const std::string path = LayerPath(frozen.place.directory.File("one"), 1);
  const auto open = [&] {
    auto file = LoopFile::Open(path, O_RDONLY, frozen.place.loop.get());
    REQUIRE(file.ok());
    return *std::move(file);
  };
  const auto one = open();
  const auto two = open();
  const Layer first = Load(&cache, one.get());
  CHECK_FALSE(first->commit.frozen);
  CHECK(Load(&cache, two.get()) != first);
}

TEST_CASE("Threads that read a layer at once keep one of it") {
  const Frozen frozen;
  LayerCache cache;
  constexpr size_t kThreads = 4;
  std::vector<std::shared_ptr<LoopFile>> files;
  for (size_t i = 0; i < kThreads; ++i) {
    files.push_back(frozen.File(i % 2 == 0 ? "one" : "two"));
  }
  for (int round = 0; round < 50; ++round) {
    std::array<absl::StatusOr<Layer>, kThreads> layers;
    std::atomic<size_t> ready{0};
    std::vector<std::thread> threads;
    for (size_t i = 0; i < kThreads; ++i) {
      threads.emplace_back([&, i] {
        ++ready;
        while (ready < kThreads) std::this_thread::yield();
        layers[i] = cache.Load(files[i].get());
      });
    }
    for (std::thread& thread : threads) thread.join();
    std::set<Layer> all;
    for (const auto& layer : layers) {
      REQUIRE(layer.ok());
      all.insert(*layer);
    }
    REQUIRE(all.size() == 1);
  }
}

TEST_CASE("Disks that share what a layer says are disks of their own") {
  const Frozen frozen;
  const auto cache = std::make_shared<LayerCache>();
  auto one = frozen.place.Open(frozen.Options("one", cache));
  // Read again, it would be refused.
  frozen.DamageMap();
  CHECK_FALSE(DiskStack::Open(frozen.Options("two", nullptr)).ok());
  const auto two = frozen.place.Open(frozen.Options("two", cache));
  CHECK(Fill(one.get(), 0, 8192, 8).ok());
  CHECK(Fill(two.get(), 0, 8192, 9).ok());
  CHECK(one->Freeze().ok());
  CHECK(Flush(two.get()).ok());
  CHECK(IsAll(ReadBytes(one.get(), 0, 8192), 8));
  CHECK(IsAll(ReadBytes(two.get(), 0, 8192), 9));
  one.reset();
  CHECK(IsAll(ReadBytes(two.get(), 8192, kMiB - 4096), 7));
  CHECK(IsAll(ReadBytes(two.get(), kMiB + 4096, 4096), kBaseByte));
}

}  // namespace
}  // namespace catnap::disk
