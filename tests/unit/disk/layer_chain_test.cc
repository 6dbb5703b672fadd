#include "disk/layer_chain.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <catch2/catch.hpp>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "disk/layer_merge.h"
#include "unit/disk/disk_stack_fixture.h"

namespace catnap::disk {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

// Directories that are not as they were left.
class Damaged {
 public:
  Damaged() {
    const auto stack = place.Open();
    for (uint8_t i = 0; i < 3; ++i) {
      CHECK(Fill(stack.get(), 0, 4096, i).ok());
      CHECK(stack->Freeze().ok());
    }
    saved = place.Make("saved");
    CHECK(stack->LinkInto(saved, CopyMode::kClone).ok());
  }
  std::string File(int number) const {
    return saved + "/disk-00" + std::to_string(number) + ".layer";
  }
  absl::StatusCode Read() const {
    return ReadChain(saved, place.base.get()).status().code();
  }
  absl::StatusCode Open() const {
    return DiskStack::Open(place.OptionsOf(saved)).status().code();
  }

  const Place place;
  std::string saved;
};

TEST_CASE("A chain that is whole is read in its order") {
  const Damaged damaged;
  const auto chain = ReadChain(damaged.saved, damaged.place.base.get());
  REQUIRE(chain.ok());
  REQUIRE(chain->layers.size() == 3);
  CHECK(chain->leftovers.empty());
  for (int i = 0; i < 3; ++i) {
    CHECK(chain->layers[static_cast<size_t>(i)].path == damaged.File(i));
  }
}

TEST_CASE("A chain without a layer is damaged") {
  const Damaged damaged;
  REQUIRE(std::filesystem::remove(damaged.File(GENERATE(0, 1))));
  CHECK(damaged.Read() == absl::StatusCode::kDataLoss);
  CHECK(damaged.Open() == absl::StatusCode::kDataLoss);
}

TEST_CASE("A chain in another order is damaged") {
  const Damaged damaged;
  const int lower = GENERATE(0, 1);
  const std::string apart = damaged.saved + "/x";
  std::filesystem::rename(damaged.File(lower), apart);
  std::filesystem::rename(damaged.File(lower + 1), damaged.File(lower));
  std::filesystem::rename(apart, damaged.File(lower + 1));
  CHECK(damaged.Read() == absl::StatusCode::kDataLoss);
}

TEST_CASE("A chain with a layer twice is damaged") {
  const Damaged damaged;
  std::filesystem::copy_file(damaged.File(0), damaged.File(5));
  CHECK(damaged.Read() == absl::StatusCode::kDataLoss);
}

TEST_CASE("A chain on another base is damaged") {
  const Damaged damaged;
  auto file = LoopFile::Open(damaged.place.directory.File("base"), O_RDONLY,
                             damaged.place.loop.get());
  REQUIRE(file.ok());
  const auto other = RawDisk::Create(*file, {.id = {9}});
  REQUIRE(other.ok());
  CHECK(ReadChain(damaged.saved, other->get()).status().code() ==
        absl::StatusCode::kDataLoss);
  CHECK(ReadChain(damaged.saved, nullptr).status().code() ==
        absl::StatusCode::kDataLoss);
}

TEST_CASE("A chain is what its highest layer lies on, the rest is left over") {
  const Damaged damaged;
  const Place other;
  const auto stack = other.Open();
  CHECK(stack->Freeze().ok());
  std::filesystem::copy_file(stack->frozen_layers()[0].path, damaged.File(8));
  // It lies on a base of the same id: a chain of its own, the others are left.
  const auto chain = ReadChain(damaged.saved, damaged.place.base.get());
  REQUIRE(chain.ok());
  CHECK(chain->layers.size() == 1);
  CHECK(chain->leftovers.size() == 3);
}

TEST_CASE("Layers that name each other are no chain") {
  const Damaged damaged;
  // The lowest is made to lie on the highest.
  const auto header_of = [&](int number) {
    auto io = LoopFile::Open(damaged.File(number), O_RDWR, nullptr);
    REQUIRE(io.ok());
    return std::make_pair(*io, *CowLayer::ReadHeader(io->get()));
  };
  const DiskId highest = header_of(2).second.id;
  auto [io, header] = header_of(0);
  header.parent_id = highest;
  std::array<uint8_t, kHeaderBytes> bytes{};
  EncodeHeader(header, bytes);
  REQUIRE(io->WriteNow(bytes, 0).ok());
  CHECK(damaged.Read() == absl::StatusCode::kDataLoss);
}

TEST_CASE("Files that are no layers are no chain") {
  const Damaged damaged;
  std::filesystem::remove(damaged.File(1));
  SECTION("text") {
    std::ofstream(damaged.File(1)) << std::string(20000, 'x');
    CHECK(damaged.Read() == absl::StatusCode::kDataLoss);
  }
  SECTION("nothing") {
    std::ofstream(damaged.File(1)).flush();
    CHECK(damaged.Read() == absl::StatusCode::kDataLoss);
  }
  SECTION("a FIFO") {
    REQUIRE(::mkfifo(damaged.File(1).c_str(), 0600) == 0);
    CHECK(damaged.Read() == absl::StatusCode::kInvalidArgument);
  }
  SECTION("a symbolic link") {
    std::filesystem::create_symlink(damaged.File(0), damaged.File(1));
    CHECK(damaged.Read() != absl::StatusCode::kOk);
  }
}

TEST_CASE("A whole chain becomes one file") {
  const Damaged damaged;
  const auto chain = ReadChain(damaged.saved, damaged.place.base.get());
  REQUIRE(chain.ok());
  const std::string one = damaged.place.Make("one");
  CHECK(MergeChain(chain->layers, damaged.place.base, one + "/disk-000.layer",
                   damaged.place.loop.get(), {})
            .ok());
  const auto stack = damaged.place.Open(damaged.place.OptionsOf(one));
  CHECK(stack->frozen_layers().size() == 1);
  CHECK(IsAll(ReadBytes(stack.get(), 0, 4096), 2));
  CHECK(IsAll(ReadBytes(stack.get(), 4096, kMiB), kBaseByte));
  // A merge that is stopped leaves nothing.
  const std::string none = damaged.place.Make("none");
  CHECK(MergeChain(chain->layers, damaged.place.base, none + "/disk-000.layer",
                   damaged.place.loop.get(), [] { return false; })
            .code() == absl::StatusCode::kCancelled);
  CHECK(damaged.place.Names(none).empty());
}

}  // namespace
}  // namespace catnap::disk
