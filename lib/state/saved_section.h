#ifndef CATNAP_LIB_STATE_SAVED_SECTION_H_
#define CATNAP_LIB_STATE_SAVED_SECTION_H_

#include <cstdint>
#include <vector>

#include "state/section.h"

namespace catnap::state {

// The state of one part of a machine, apart from any file: what becomes a
// section of a snapshot, or was one.
struct SavedSection {
  SectionId id{};
  uint32_t instance = 0;
  uint16_t version = 0;
  bool critical = false;
  std::vector<uint8_t> bytes{};  // Tagged fields.

  friend bool operator==(const SavedSection&, const SavedSection&) = default;
};

}  // namespace catnap::state

#endif  // CATNAP_LIB_STATE_SAVED_SECTION_H_
