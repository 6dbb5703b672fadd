// Which pages a guest wrote, told by the page map of its memory.
#include <catch2/catch.hpp>
#include <vector>

#include "memory/page_map.h"
#include "memory/page_ranges.h"
#include "support/machine_fixture.h"

namespace catnap::vmm {
namespace {

using base::PageRange;

// What MakeTinyGuest() uses below 1 MiB: the CPU marks entries of the page
// tables there as used, which makes them the guest's own.
constexpr PageRange kPageTables{0, 1 << 20};

TEST_CASE("The pages that a guest wrote are its own, and no others") {
  const auto backend =
      GENERATE(memory::PageMapBackend::kBest, memory::PageMapBackend::kPagemap);
  constexpr uint64_t kRead = 0x40'0000;
  constexpr uint64_t kFirst = 0x80'0000;
  constexpr uint64_t kAlone = 0x123'4000;
  test::Assembler code;
  code.MovRdi(kRead).Load32().MovEax(1);
  for (uint64_t page = 0; page < 3; ++page) {
    code.MovRdi(kFirst + page * base::kPageBytes).Store32();
  }
  code.MovRdi(kAlone).Store32().PowerOff();
  const auto machine = test::MakeMachine(code);
  REQUIRE(machine->Start().ok());
  REQUIRE(machine->WaitForEnd(test::Deadline()));
  REQUIRE(machine->exit()->reason == EndReason::kPowerOff);
  const auto own = memory::OwnPages(machine->memory(), {.backend = backend});
  REQUIRE(own.ok());
  const std::vector<PageRange> tables{kPageTables};
  CHECK(memory::SubtractRanges(*own, tables) ==
        std::vector<PageRange>{{kFirst, 3 * base::kPageBytes},
                               {kAlone, base::kPageBytes}});
}

}  // namespace
}  // namespace catnap::vmm
