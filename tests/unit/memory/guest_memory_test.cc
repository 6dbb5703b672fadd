#include "memory/guest_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <catch2/catch.hpp>
#include <fstream>
#include <string>
#include <vector>

#include "base/status.h"
#include "base/unique_fd.h"

namespace catnap::memory {
namespace {

constexpr uint64_t kLow = 64 << 10;
constexpr uint64_t kHighStart = 1 << 20;
constexpr uint64_t kHigh = 16 << 10;

std::unique_ptr<GuestMemory> TwoRegions() {
  auto memory =
      GuestMemory::Reserve({{Gpa{0}, kLow, 0}, {Gpa{kHighStart}, kHigh, kLow}});
  REQUIRE(memory.ok());
  return *std::move(memory);
}

// The "VmFlags" line of the mapping that starts at `start`.
std::string VmFlagsOf(const void* start) {
  std::ifstream in("/proc/self/smaps");
  const std::string prefix =
      fmt::format("{:x}-", reinterpret_cast<uintptr_t>(start));
  bool found = false;
  for (std::string line; std::getline(in, line);) {
    if (line.find(prefix) == 0) found = true;
    if (found && line.rfind("VmFlags:", 0) == 0) return line;
  }
  return "";
}

TEST_CASE("GuestMemory::Slice rejects every range that leaves RAM") {
  const auto memory = TwoRegions();
  REQUIRE(memory->MapAnonymous().ok());
  const auto [at, length, ok] = GENERATE(table<uint64_t, uint64_t, bool>({
      {0, kLow, true},                 // exactly the first region
      {kLow, 0, true},                 // empty, at its end
      {kLow - 1, 2, false},            // crosses into the hole
      {kLow, 1, false},                // in the hole
      {kHighStart, kHigh, true},       // exactly the second
      {kHighStart - 1, 2, false},      // crosses out of the hole
      {kHighStart + kHigh, 1, false},  // behind the end
      {0, kHighStart + kHigh, false},  // over everything
      {UINT64_MAX, 2, false},          // the sum wraps
      {1, UINT64_MAX, false},          // the sum wraps
  }));
  CAPTURE(at, length);
  CHECK(memory->Slice(Gpa{at}, length).ok() == ok);
}

TEST_CASE("GuestMemory refuses access before something is mapped") {
  const auto memory = TwoRegions();
  CHECK(memory->Slice(Gpa{0}, 1).status().code() ==
        absl::StatusCode::kFailedPrecondition);
}

TEST_CASE("GuestMemory regions are packed in the host range") {
  const auto memory = TwoRegions();
  REQUIRE(memory->MapAnonymous().ok());
  const auto high = memory->Slice(Gpa{kHighStart}, 1);
  REQUIRE(high.ok());
  CHECK(high->data() == memory->host_base() + kLow);
  CHECK(memory->size() == kLow + kHigh);
}

TEST_CASE("GuestMemory::Reserve rejects regions that are not well formed") {
  const std::vector<Region> regions =
      GENERATE(std::vector<Region>{}, std::vector<Region>{{Gpa{0}, 0, 0}},
               std::vector<Region>{{Gpa{1}, 4096, 0}},
               std::vector<Region>{{Gpa{0}, 4097, 0}},
               std::vector<Region>{{Gpa{0}, 8192, 0}, {Gpa{4096}, 4096, 8192}},
               std::vector<Region>{{Gpa{0}, 4096, 0}, {Gpa{8192}, 4096, 8192}},
               std::vector<Region>{{Gpa{UINT64_MAX - 4095}, 8192, 0}});
  CHECK(GuestMemory::Reserve(regions).status().code() ==
        absl::StatusCode::kInvalidArgument);
}

TEST_CASE("GuestMemory scalars must be aligned and in RAM") {
  const auto memory = TwoRegions();
  REQUIRE(memory->MapAnonymous().ok());
  REQUIRE(memory->Store<uint32_t>(Gpa{8}, 0x12345678).ok());
  const auto value = memory->Load<uint32_t>(Gpa{8});
  REQUIRE(value.ok());
  CHECK(*value == 0x12345678);
  CHECK(memory->Load<uint32_t>(Gpa{9}).status().code() ==
        absl::StatusCode::kInvalidArgument);
  CHECK(memory->Load<uint32_t>(Gpa{kLow}).status().code() ==
        absl::StatusCode::kOutOfRange);
}

TEST_CASE("GuestMemory::MapPrivate shows the file and never writes to it") {
  const auto memory = TwoRegions();
  auto fd = base::CreateMemFd("template", kLow + kHigh);
  REQUIRE(fd.ok());
  REQUIRE(::pwrite(fd->get(), "abc", 3, kLow) == 3);
  REQUIRE(memory->MapPrivate(fd->get()).ok());
  std::array<uint8_t, 3> seen{};
  REQUIRE(memory->Read(Gpa{kHighStart}, seen).ok());
  CHECK(seen == std::array<uint8_t, 3>{'a', 'b', 'c'});
  REQUIRE(memory->Store<uint8_t>(Gpa{kHighStart}, 'x').ok());
  char in_file = 0;
  REQUIRE(::pread(fd->get(), &in_file, 1, kLow) == 1);
  CHECK(in_file == 'a');
}

TEST_CASE("GuestMemory::MapPrivate refuses a file that is too short") {
  const auto memory = TwoRegions();
  auto fd = base::CreateMemFd("short", kLow);
  REQUIRE(fd.ok());
  CHECK(memory->MapPrivate(fd->get()).code() ==
        absl::StatusCode::kInvalidArgument);
}

// Whether each of the first pages is in the page table, in one character: a
// page of the template (t), an own one (o), none (-).
std::string PageTableOf(const GuestMemory& memory, size_t pages) {
  const base::UniqueFd fd(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  REQUIRE(fd.valid());
  std::vector<uint64_t> entries(pages);
  const size_t bytes = pages * sizeof(uint64_t);
  const auto at =
      static_cast<off_t>(reinterpret_cast<uintptr_t>(memory.host_base()) /
                         base::kPageBytes * sizeof(uint64_t));
  REQUIRE(::pread(fd.get(), entries.data(), bytes, at) ==
          static_cast<ssize_t>(bytes));
  std::string text;
  for (const uint64_t entry : entries) {
    const bool present = (entry >> 63) != 0;
    const bool file = (entry >> 61 & 1) != 0;
    text.push_back(!present ? '-' : file ? 't' : 'o');
  }
  return text;
}

TEST_CASE(
    "GuestMemory::Populate enters pages, and copies those to be written") {
  const auto memory = TwoRegions();
  auto fd = base::CreateMemFd("template", kLow + kHigh);
  REQUIRE(fd.ok());
  const std::string content(kLow, 'a');
  REQUIRE(::pwrite(fd->get(), content.data(), kLow, 0) ==
          static_cast<ssize_t>(kLow));
  REQUIRE(memory->MapPrivate(fd->get()).ok());
  REQUIRE(PageTableOf(*memory, 4) == "----");
  constexpr uint64_t kPage = base::kPageBytes;
  const std::array<base::PageRange, 2> written = {
      base::PageRange{0, kPage}, base::PageRange{3 * kPage, kPage}};
  memory->Populate(written, GuestMemory::Access::kWrite);
  if (PageTableOf(*memory, 1) == "-") {
    WARN("nothing was looked at: the kernel does not populate");
    return;
  }
  CHECK(PageTableOf(*memory, 4) == "o--o");
  const std::array<base::PageRange, 1> read = {
      base::PageRange{kPage, 2 * kPage}};
  memory->Populate(read, GuestMemory::Access::kRead);
  CHECK(PageTableOf(*memory, 4) == "otto");
  std::array<uint8_t, 4 * kPage> seen{};
  REQUIRE(memory->Read(Gpa{0}, seen).ok());
  CHECK(std::all_of(seen.begin(), seen.end(),
                    [](uint8_t byte) { return byte == 'a'; }));
}

TEST_CASE("Guest memory stays out of forked children and of core dumps") {
  const auto memory = TwoRegions();
  REQUIRE(memory->MapAnonymous().ok());
  const std::string flags = VmFlagsOf(memory->host_base());
  CHECK_THAT(flags, Catch::Contains(" dc"));  // MADV_DONTFORK
  CHECK_THAT(flags, Catch::Contains(" dd"));  // MADV_DONTDUMP
}

}  // namespace
}  // namespace catnap::memory
