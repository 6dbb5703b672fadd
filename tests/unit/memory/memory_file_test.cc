#include "memory/memory_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>

#include "unit/memory/memory_test_support.h"

namespace catnap::memory {
namespace {

constexpr uint64_t kSize = 1 << 20;

TEST_CASE("MemoryFile takes memory only where it was written") {
  const auto file = NewFile(kSize);
  CHECK(Must(file->AllocatedBytes()) == 0);
  Fill(*file, Pages(3, 2), 7);
  CHECK(Must(file->AllocatedBytes()) == 2 * kPage);
}

TEST_CASE("MemoryFile::Writable rejects ranges that leave the file") {
  const auto file = NewFile(kSize);
  const auto [offset, length, ok] = GENERATE(table<uint64_t, uint64_t, bool>({
      {0, kSize, true},
      {kSize, 0, true},
      {kSize - kPage, 2 * kPage, false},
      {UINT64_MAX, 2, false},
      {1, UINT64_MAX, false},
  }));
  CAPTURE(offset, length);
  CHECK(file->Writable({offset, length}).ok() == ok);
}

TEST_CASE("MemoryFile::Create rejects sizes that are not whole pages") {
  const uint64_t size = GENERATE(0ull, 1ull, 4097ull, UINT64_MAX);
  CHECK(MemoryFile::Create("test", size).status().code() ==
        absl::StatusCode::kInvalidArgument);
}

TEST_CASE("A memory file never shrinks or grows") {
  const auto file = NewFile(kSize);
  CHECK(::ftruncate(file->fd(), kSize / 2) != 0);
  CHECK(::ftruncate(file->fd(), kSize * 2) != 0);
}

TEST_CASE("A sealed memory file is not written to any more") {
  const auto file = NewFile(kSize);
  Fill(*file, Pages(0, 1), 7);
  Must(file->Seal());
  CHECK_FALSE(file->writable());
  CHECK(file->Writable(Pages(0, 1)).status().code() ==
        absl::StatusCode::kFailedPrecondition);
  CHECK(file->Populate(Pages(0, 1)).code() ==
        absl::StatusCode::kFailedPrecondition);
  CHECK(::pwrite(file->fd(), "x", 1, 0) < 0);
  CHECK(::mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_SHARED, file->fd(),
               0) == MAP_FAILED);
  std::array<uint8_t, 2> bytes{};
  Must(file->Read(kPage - 1, bytes));
  CHECK(bytes == std::array<uint8_t, 2>{7, 0});
}

TEST_CASE("MemoryFile::Seal twice is no error") {
  const auto file = NewFile(kSize);
  Must(file->Seal());
  Must(file->Seal());
}

TEST_CASE("A memory file cannot be sealed while others can write to it") {
  const auto file = NewFile(kSize);
  auto other = Must(base::Mapping::Shared(file->fd(), kSize));
  CHECK(file->Seal().code() == absl::StatusCode::kUnavailable);
  other.Reset();
  Must(file->Seal());
}

TEST_CASE("A file sealed to its alias is filled through the alias alone") {
  const auto file = NewFile(kSize);
  Must(file->SealToAlias());
  CHECK(::pwrite(file->fd(), "x", 1, 0) < 0);
  CHECK_FALSE(base::Mapping::Shared(file->fd(), kSize).ok());
  Fill(*file, Pages(1, 1), 9);
  CHECK(file->Discard(Pages(1, 1)).code() ==
        absl::StatusCode::kFailedPrecondition);
  Must(file->Seal());
  std::array<uint8_t, 1> byte{};
  Must(file->Read(kPage, byte));
  CHECK(byte[0] == 9);
}

TEST_CASE("MemoryFile::Discard gives memory back") {
  const auto file = NewFile(kSize);
  Must(file->Populate(Pages(0, 8)));
  CHECK(Must(file->AllocatedBytes()) == 8 * kPage);
  Must(file->Discard(Pages(2, 4)));
  CHECK(Must(file->AllocatedBytes()) == 4 * kPage);
}

TEST_CASE("MemoryFile::Read rejects ranges that leave the file") {
  const auto file = NewFile(kSize);
  std::array<uint8_t, 2> bytes{};
  CHECK(file->Read(kSize - 1, bytes).code() == absl::StatusCode::kOutOfRange);
  CHECK(file->Read(UINT64_MAX, bytes).code() == absl::StatusCode::kOutOfRange);
}

TEST_CASE("The alias stays out of forked children and of core dumps") {
  const auto file = NewFile(kSize);
  const auto flags = VmFlagsIn(Must(file->Writable(Pages(0, 1))).data(), kSize);
  REQUIRE(flags.size() == 1);
  CHECK_THAT(flags[0], Catch::Contains(" dc") && Catch::Contains(" dd"));
}

TEST_CASE("MemoryFile::Adopt takes sealed files only") {
  const auto file = NewFile(kSize);
  CHECK(MemoryFile::Adopt(file->fd()).status().code() ==
        absl::StatusCode::kInvalidArgument);
  Must(file->Seal());
  const auto adopted = Must(MemoryFile::Adopt(file->fd()));
  CHECK(adopted->size() == kSize);
  CHECK_FALSE(adopted->writable());
  CHECK_FALSE(MemoryFile::Adopt(-1).ok());
}

}  // namespace
}  // namespace catnap::memory
