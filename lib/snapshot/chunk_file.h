#ifndef CATNAP_LIB_SNAPSHOT_CHUNK_FILE_H_
#define CATNAP_LIB_SNAPSHOT_CHUNK_FILE_H_

#include "absl/status/statusor.h"
#include "base/unique_fd.h"
#include "snapshot/page_index.h"

namespace catnap::snapshot {

// Opens a chunk file for reading and makes sure that it is the one that the
// index means: a regular file of its size, with its id.
// Errors: DATA_LOSS, it is another or not there; UNIMPLEMENTED, of a newer
// writer; others as the system says.
absl::StatusOr<base::UniqueFd> OpenChunkFile(int directory,
                                             const ChunkFile& file);

}  // namespace catnap::snapshot

#endif  // CATNAP_LIB_SNAPSHOT_CHUNK_FILE_H_
