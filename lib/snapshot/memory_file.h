#ifndef CATNAP_LIB_SNAPSHOT_MEMORY_FILE_H_
#define CATNAP_LIB_SNAPSHOT_MEMORY_FILE_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "snapshot/format.h"
#include "snapshot/page_index.h"
#include "state/saved_section.h"

namespace catnap::snapshot {

// What memory.catnap holds.
struct MemoryFile {
  Header header;
  std::vector<state::SavedSection> sections;
  PageIndex index;
};

// The bytes of memory.catnap. Of `header`, the ids and the size of RAM are
// looked at, the rest is made.
std::vector<uint8_t> EncodeMemoryFile(
    const Header& header, std::span<const state::SavedSection> sections,
    const PageIndex& index);

// Reads and checks all of it. `fd` is a regular file, read from its start.
// Nothing is allocated before its size was compared with the file's and with
// the limits. Errors: DATA_LOSS; UNIMPLEMENTED, of a newer writer; others as
// the system says.
absl::StatusOr<MemoryFile> ReadMemoryFile(int fd);

}  // namespace catnap::snapshot

#endif  // CATNAP_LIB_SNAPSHOT_MEMORY_FILE_H_
