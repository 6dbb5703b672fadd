#include "device/register_page.h"

#include <algorithm>
#include <array>
#include <catch2/catch.hpp>
#include <cstring>
#include <fstream>
#include <numeric>
#include <string>
#include <vector>

#include "base/status.h"
#include "base/thread.h"

namespace catnap::device {
namespace {

RegisterPages Pages(size_t count) {
  auto pages = RegisterPages::Create(count);
  REQUIRE(pages.ok());
  return *std::move(pages);
}

TEST_CASE("RegisterPages are zeroed, page-aligned and one behind the other") {
  RegisterPages pages = Pages(3);
  CHECK(pages.count() == 3);
  CHECK(pages.size() == 3 * kRegisterPageSize);
  CHECK(reinterpret_cast<uintptr_t>(pages.host_base()) % kRegisterPageSize ==
        0);
  CHECK(pages.page(2).Load32(0) == 0);
  pages.page(2).Store32(kRegisterPageSize - 4, 0x01020304);
  CHECK(pages.host_base()[3 * kRegisterPageSize - 4] == 0x04);  // Little-endian
  CHECK(pages.page(1).Load32(kRegisterPageSize - 4) == 0);
  CHECK(pages.page(2).Load32(kRegisterPageSize - 4) == 0x01020304);
}

TEST_CASE("RegisterPages::Create refuses no pages and too many") {
  CHECK(RegisterPages::Create(0).status().code() ==
        absl::StatusCode::kInvalidArgument);
  CHECK(RegisterPages::Create(SIZE_MAX / 2).status().code() ==
        absl::StatusCode::kInvalidArgument);
}

TEST_CASE("RegisterPage::CopyIn writes exactly its bytes at any alignment") {
  RegisterPages pages = Pages(1);
  RegisterPage page = pages.page(0);
  const auto offset = GENERATE(range<size_t>(0x100, 0x108));
  const auto size = GENERATE(range<size_t>(0, 18));
  CAPTURE(offset, size);
  std::vector<uint8_t> bytes(size);
  std::iota(bytes.begin(), bytes.end(), uint8_t{1});
  page.CopyIn(offset, bytes);
  std::vector<uint8_t> expected(kRegisterPageSize, 0);
  std::copy(bytes.begin(), bytes.end(),
            expected.begin() + static_cast<ptrdiff_t>(offset));
  CHECK(std::memcmp(pages.host_base(), expected.data(), expected.size()) == 0);
}

TEST_CASE("RegisterPage::CopyIn reaches the last byte of the page") {
  RegisterPages pages = Pages(1);
  const std::array<uint8_t, 3> bytes = {7, 8, 9};
  pages.page(0).CopyIn(kRegisterPageSize - bytes.size(), bytes);
  CHECK(pages.host_base()[kRegisterPageSize - 1] == 9);
}

TEST_CASE("A reader never sees half of a 32-bit value") {
  static constexpr uint32_t kOne = 0x11111111;
  static constexpr uint32_t kTwo = 0x22222222;
  static constexpr int kRounds = 20'000;
  RegisterPages pages = Pages(1);
  RegisterPage page = pages.page(0);
  page.Store32(0x100, kOne);
  auto writer = base::Thread::Start("writer", [page]() mutable {
    const std::array<uint8_t, 4> two = {0x22, 0x22, 0x22, 0x22};
    for (int i = 0; i < kRounds; ++i) {
      page.Store32(0x100, kOne);
      page.CopyIn(0x100, two);
    }
  });
  REQUIRE(writer.ok());
  int torn = 0;
  for (int i = 0; i < kRounds; ++i) {
    const uint32_t seen = page.Load32(0x100);
    torn += (seen != kOne && seen != kTwo) ? 1 : 0;
  }
  writer->Join();
  CHECK(torn == 0);
  CHECK(page.Load32(0x100) == kTwo);
}

TEST_CASE("Register pages stay out of forked children and of core dumps") {
  RegisterPages pages = Pages(2);
  std::ifstream in("/proc/self/smaps");
  const std::string prefix =
      fmt::format("{:x}-", reinterpret_cast<uintptr_t>(pages.host_base()));
  std::string flags;
  bool found = false;
  for (std::string line; flags.empty() && std::getline(in, line);) {
    found = found || line.rfind(prefix, 0) == 0;
    if (found && line.rfind("VmFlags:", 0) == 0) flags = line;
  }
  CHECK_THAT(flags, Catch::Contains(" dc"));  // MADV_DONTFORK
  CHECK_THAT(flags, Catch::Contains(" dd"));  // MADV_DONTDUMP
}

}  // namespace
}  // namespace catnap::device
