#ifndef CATNAP_TESTS_GOLDEN_GOLDEN_GUEST_H_
#define CATNAP_TESTS_GOLDEN_GOLDEN_GUEST_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/page_range.h"
#include "snapshot/format.h"
#include "state/saved_section.h"

// What the golden snapshots hold. Never changes: it is what files that exist
// were made of.
namespace catnap::test {

inline constexpr size_t kGoldenPages = 64;
inline constexpr snapshot::Id kGoldenParent = {
    0x50, 0x61, 0x72, 0x65, 0x6e, 0x74, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10};

// Writes "page P of NAME" all over a page.
inline void FillGoldenPage(std::vector<uint8_t>* memory, size_t page,
                           const std::string& name) {
  const std::string text = "page " + std::to_string(page) + " of " + name + ' ';
  const size_t start = page * base::kPageBytes;
  for (size_t i = 0; i < base::kPageBytes; ++i) {
    (*memory)[start + i] = static_cast<uint8_t>(text[i % text.size()]);
  }
}

// v1/alone: pages 8 to 47 of its own, the others zero.
inline std::vector<uint8_t> GoldenAlone() {
  std::vector<uint8_t> memory(kGoldenPages * base::kPageBytes);
  for (size_t page = 8; page < 48; ++page) {
    FillGoldenPage(&memory, page, "alone");
  }
  return memory;
}

// The memory of the image that v1/child has as its parent.
inline std::vector<uint8_t> GoldenImage() {
  std::vector<uint8_t> memory(kGoldenPages * base::kPageBytes);
  for (size_t page = 0; page < 32; ++page) {
    FillGoldenPage(&memory, page, "image");
  }
  return memory;
}

// The generation before v1/child: pages 16 to 31 changed, 4 became zero.
inline std::vector<uint8_t> GoldenChildBefore() {
  std::vector<uint8_t> memory = GoldenImage();
  for (size_t page = 16; page < 32; ++page) {
    FillGoldenPage(&memory, page, "before");
  }
  for (size_t i = 0; i < base::kPageBytes; ++i) {
    memory[4 * base::kPageBytes + i] = 0;
  }
  return memory;
}

// v1/child: page 20 as in the image again, 40 to 43 new.
inline std::vector<uint8_t> GoldenChild() {
  std::vector<uint8_t> memory = GoldenChildBefore();
  FillGoldenPage(&memory, 20, "image");
  for (size_t page = 40; page < 44; ++page) {
    FillGoldenPage(&memory, page, "child");
  }
  return memory;
}

inline std::vector<state::SavedSection> GoldenSections() {
  return {{.id = state::SectionId::kMachine,
           .version = 1,
           .critical = true,
           .bytes = {0x08, 0x01, 0x10, 0x02}},
          {.id = state::SectionId::kVcpu,
           .instance = 1,
           .bytes = std::vector<uint8_t>(100, 0x5a)}};
}

}  // namespace catnap::test

#endif  // CATNAP_TESTS_GOLDEN_GOLDEN_GUEST_H_
