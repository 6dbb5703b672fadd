#ifndef CATNAP_TESTS_UNIT_DISK_DISK_STACK_FIXTURE_H_
#define CATNAP_TESTS_UNIT_DISK_DISK_STACK_FIXTURE_H_

#include <fcntl.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "disk/await.h"
#include "disk/disk_stack.h"
#include "disk/loop_file.h"
#include "disk/raw_disk.h"
#include "support/temporary_directory.h"
#include "unit/io/loop_test_support.h"

// Stacks of layers on real files, for several tests.

namespace catnap::disk {

// Ends inside a block, and inside a cluster.
inline constexpr uint64_t kBaseBytes = (uint64_t{2} << 20) + 3 * kSectorBytes;
inline constexpr uint8_t kBaseByte = 3;

inline absl::Status WriteBytes(BlockIo* disk, const std::vector<uint8_t>& bytes,
                               uint64_t offset) {
  const iovec buffer{const_cast<uint8_t*>(bytes.data()), bytes.size()};
  return Await([&](BlockCompletion done) {
    disk->Write({&buffer, 1}, offset, std::move(done));
  });
}

inline absl::Status Fill(BlockIo* disk, uint64_t offset, uint64_t length,
                         uint8_t value) {
  return WriteBytes(disk, std::vector<uint8_t>(length, value), offset);
}

inline std::vector<uint8_t> ReadBytes(BlockIo* disk, uint64_t offset,
                                      uint64_t length) {
  std::vector<uint8_t> bytes(length, uint8_t{0xee});
  const iovec buffer{bytes.data(), bytes.size()};
  const absl::Status status = Await([&](BlockCompletion done) {
    disk->Read({&buffer, 1}, offset, std::move(done));
  });
  INFO(status.ToString());
  CHECK(status.ok());
  return bytes;
}

inline absl::Status Zero(BlockIo* disk, uint64_t offset, uint64_t length) {
  return Await([&](BlockCompletion done) {
    disk->Discard(offset, length, std::move(done));
  });
}

inline absl::Status Flush(BlockIo* disk) {
  return Await([&](BlockCompletion done) { disk->Flush(std::move(done)); });
}

inline absl::Status Resize(BlockIo* disk, uint64_t bytes) {
  return Await(
      [&](BlockCompletion done) { disk->Resize(bytes, std::move(done)); });
}

inline bool IsAll(const std::vector<uint8_t>& bytes, uint8_t value) {
  return std::all_of(bytes.begin(), bytes.end(),
                     [=](uint8_t byte) { return byte == value; });
}

// A base image in a directory, and the directory of a disk on it.
class Place {
 public:
  Place() {
    std::filesystem::create_directory(layers());
    const std::vector<uint8_t> content(kBaseBytes, kBaseByte);
    auto file =
        LoopFile::Open(directory.File("base"), O_RDWR | O_CREAT, loop.get());
    REQUIRE(file.ok());
    REQUIRE((*file)->WriteNow(content, 0).ok());
    auto disk = RawDisk::Create(*file, {.id = {1, 2}});
    REQUIRE(disk.ok());
    base = *disk;
  }

  std::string layers() const { return directory.File("layers"); }
  std::string Make(const std::string& name) const {
    std::filesystem::create_directory(directory.File(name));
    return directory.File(name);
  }
  DiskStackOptions Options() const { return OptionsOf(layers()); }
  DiskStackOptions OptionsOf(const std::string& where) const {
    DiskStackOptions options;
    options.directory = where;
    options.base = base;
    options.loop = loop.get();
    options.max_frozen = 0;
    return options;
  }
  std::shared_ptr<DiskStack> Open() const { return Open(Options()); }
  static std::shared_ptr<DiskStack> Open(DiskStackOptions options) {
    auto stack = DiskStack::Open(std::move(options));
    INFO(stack.status().ToString());
    REQUIRE(stack.ok());
    return *std::move(stack);
  }
  std::vector<std::string> Names(const std::string& where) const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(where)) {
      names.push_back(entry.path().filename());
    }
    std::sort(names.begin(), names.end());
    return names;
  }

  const test::TemporaryDirectory directory;
  const std::unique_ptr<io::EventLoop> loop = io::MakeLoop({});
  std::shared_ptr<BlockIo> base;
};

using Names = std::vector<std::string>;

}  // namespace catnap::disk

#endif  // CATNAP_TESTS_UNIT_DISK_DISK_STACK_FIXTURE_H_
