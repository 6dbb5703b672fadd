#include <vector>

#include "fuzz/fuzz_input.h"
#include "fuzz/fuzz_target.h"
#include "snapshot/page_index.h"

// A page index. What is accepted must be what was written, must keep the
// promises that readers build on, and another snapshot can be laid over it.

namespace {

using catnap::snapshot::Frame;
using catnap::snapshot::PageIndex;
using catnap::snapshot::PageKind;
using catnap::snapshot::PageRun;

void CheckPromises(const PageIndex& index) {
  uint64_t page = 0;
  std::vector<int> uses(index.frames.size());
  for (const PageRun& run : index.runs) {
    FUZZ_CHECK(run.page == page && run.pages > 0);
    page += run.pages;
    if (run.kind != PageKind::kStored) continue;
    for (uint32_t i = 0; i < run.pages; ++i) {
      const size_t frame = catnap::snapshot::FrameOfSlot(index, run.slot + i);
      FUZZ_CHECK(frame < uses.size());
      ++uses[frame];
    }
  }
  FUZZ_CHECK(page == index.ram_pages);
  for (size_t i = 0; i < uses.size(); ++i) {
    const Frame& frame = index.frames[i];
    FUZZ_CHECK(uses[i] > 0 && static_cast<uint32_t>(uses[i]) <= frame.pages);
    FUZZ_CHECK(frame.file < index.files.size());
    FUZZ_CHECK(frame.offset + frame.bytes <=
               index.files[frame.file].file_bytes);
    FUZZ_CHECK(i == 0 || index.frames[i - 1].file < frame.file ||
               index.frames[i - 1].offset + index.frames[i - 1].bytes <=
                   frame.offset);
  }
}

}  // namespace

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  catnap::fuzz::FuzzInput input(data, size);
  const uint64_t ram_pages = input.Between<uint16_t>(1, 5000);
  const bool has_parent = (input.Integer<uint8_t>() & 1) != 0;
  const auto bytes = input.Rest();
  const auto index =
      catnap::snapshot::DecodePageIndex(bytes, ram_pages, has_parent);
  if (!index.ok()) return 0;
  CheckPromises(*index);
  FUZZ_CHECK(catnap::snapshot::EncodePageIndex(*index) ==
             std::vector<uint8_t>(bytes.begin(), bytes.end()));
  catnap::snapshot::ShouldCompact(*index);
  catnap::snapshot::OwnRanges(*index);
  // Every third page becomes zero.
  catnap::snapshot::NewPages added;
  for (uint32_t page = 0; page < ram_pages; page += 3) {
    added.runs.push_back(
        {.page = page, .pages = 1, .kind = PageKind::kZero, .slot = 0});
  }
  const PageIndex above =
      catnap::snapshot::OverlayPages(&*index, ram_pages, has_parent, added);
  CheckPromises(above);
  const auto again = catnap::snapshot::DecodePageIndex(
      catnap::snapshot::EncodePageIndex(above), ram_pages, has_parent);
  FUZZ_CHECK(again.ok() && *again == above);
  return 0;
}
