// Memory that a running copy of a guest gives back, while it writes.
#include <algorithm>
#include <catch2/catch.hpp>
#include <filesystem>
#include <memory>
#include <vector>

#include "catnap/catnap.h"
#include "memory/page_map.h"
#include "runtime/host_core.h"
#include "support/temporary_directory.h"
#include "support/writer_factory.h"

namespace catnap {
namespace {

using memory::GuestMemory;

constexpr uint64_t kMost = uint64_t{64} << 20;
// The guest never touches these.
constexpr base::PageRange kUntouched{uint64_t{48} << 20, 64 * base::kPageBytes};

uint64_t OwnBytesIn(const GuestMemory& memory, base::PageRange range) {
  const auto own = memory::OwnPages(memory, {.running = true});
  REQUIRE(own.ok());
  uint64_t bytes = 0;
  for (const base::PageRange& found : *own) {
    const uint64_t start = std::max(found.offset, range.offset);
    const uint64_t end =
        std::min(found.offset + found.length, range.offset + range.length);
    if (start < end) bytes += end - start;
  }
  return bytes;
}

TEST_CASE(
    "A guest that writes gives back what it did not change, and no more") {
  const test::TemporaryDirectory directory;
  const auto state = std::filesystem::path(directory.path()) / "state";
  REQUIRE(test::MakeWriterImage(state / "images").ok());
  test::WriterFactory* factory = nullptr;
  auto core = runtime::HostCore::Open(
      {.state_dir = state}, [&factory](base::Clock* clock) {
        auto made = std::make_unique<test::WriterFactory>(
            clock, test::WriterFactory::Hooks{});
        factory = made.get();
        return made;
      });
  REQUIRE(core.ok());
  const auto host = runtime::HostCore::MakeHost(*std::move(core));
  const auto image = host->GetImage(test::kWriterImage);
  REQUIRE(image.ok());
  const auto vm = MicroVM::Run(*host, *image, {.id = "writer"});
  INFO(vm.status().ToString());
  REQUIRE(vm.ok());
  {
    const auto running = factory->machine("writer");
    vmm::Machine& machine = running->machine();
    for (int round = 0; round < 50; ++round) {
      REQUIRE(factory->WaitForSteps("writer", 2));
      machine.memory().Populate(std::vector{kUntouched},
                                GuestMemory::Access::kWrite);
      REQUIRE(OwnBytesIn(machine.memory(), kUntouched) == kUntouched.length);
      // More than that is its own: nothing is looked at.
      const auto none = machine.GiveBackUnchanged(kUntouched.length);
      REQUIRE(none.ok());
      REQUIRE(*none == 0);
      const auto given = machine.GiveBackUnchanged(kMost);
      INFO(given.status().ToString());
      REQUIRE(given.ok());
      REQUIRE(*given >= kUntouched.length);
      REQUIRE(OwnBytesIn(machine.memory(), kUntouched) == 0);
    }
    // What it wrote is all there, on its disk too.
    REQUIRE(factory->WaitForSteps("writer", 8));
    REQUIRE(machine.Pause().ok());
    REQUIRE(machine.Save().ok());
    CHECK(test::CheckWriter(machine.memory(), running->root().get(),
                            /*whole=*/true)
              .ok());
    const auto paused = machine.GiveBackUnchanged(kMost);
    REQUIRE(paused.ok());
    CHECK(*paused == 0);
    REQUIRE(machine.Start().ok());
    REQUIRE(factory->WaitForSteps("writer", 2));
  }
  CHECK(vm->Terminate().ok());
}

}  // namespace
}  // namespace catnap
