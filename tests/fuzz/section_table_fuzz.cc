#include <array>
#include <set>
#include <utility>
#include <vector>

#include "fuzz/fuzz_input.h"
#include "fuzz/fuzz_target.h"
#include "state/section.h"

// A section table and the file it stands in. What is accepted must be what
// was written, and must keep every promise a reader builds on.

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  namespace state = catnap::state;
  catnap::fuzz::FuzzInput input(data, size);
  const auto file_bytes = input.Integer<uint64_t>();
  const auto first_byte = input.Integer<uint64_t>();
  const auto table = input.Rest();
  const auto headers = state::DecodeSectionTable(table, first_byte, file_bytes);
  if (!headers.ok()) return 0;
  std::vector<uint8_t> again;
  std::set<std::pair<state::SectionId, uint32_t>> keys;
  uint64_t end = first_byte;
  for (const state::SectionHeader& header : *headers) {
    FUZZ_CHECK(header.offset >= end);
    FUZZ_CHECK(header.offset <= file_bytes);
    FUZZ_CHECK(header.length <= file_bytes - header.offset);
    FUZZ_CHECK(header.length <= state::kMaxSectionBytes);
    FUZZ_CHECK(keys.emplace(header.id, header.instance).second);
    FUZZ_CHECK(!state::SectionName(header.id, header.instance).empty());
    end = header.offset + header.length;
    std::array<uint8_t, state::kSectionHeaderBytes> bytes{};
    state::EncodeSectionHeader(header, bytes);
    again.insert(again.end(), bytes.begin(), bytes.end());
  }
  FUZZ_CHECK(std::vector<uint8_t>(table.begin(), table.end()) == again);
  return 0;
}
