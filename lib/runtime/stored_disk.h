#ifndef CATNAP_LIB_RUNTIME_STORED_DISK_H_
#define CATNAP_LIB_RUNTIME_STORED_DISK_H_

#include <filesystem>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "disk/block_io.h"
#include "disk/disk_stack.h"
#include "disk/layer_chain.h"
#include "state/saved_section.h"

namespace catnap::runtime {

// What a stored guest says of the disk that was frozen with it. The layers
// beside it name those below them, but not which of them is the highest: with
// that file missing, the rest would be the disk as it was earlier.

// Adds it to the guest's sections, after DiskStack::Freeze().
absl::Status AddDiskSection(const disk::DiskStack& disk,
                            std::vector<state::SavedSection>* sections);

// Finds the layers in a stored guest's directory. `base` as with
// disk::ReadChain(). A guest that says nothing of its disk has what is there.
// Errors: as ReadChain(); DATA_LOSS, a layer is missing.
absl::StatusOr<disk::LayerChain> ReadStoredDisk(
    const std::filesystem::path& directory, const disk::BlockIo* base,
    const std::vector<state::SavedSection>& sections);

// Reads all that the layers say of themselves, which is everything but the
// blocks' content. Blocks. Errors: DATA_LOSS, names the file.
absl::Status VerifyStoredDisk(const disk::LayerChain& chain);

}  // namespace catnap::runtime

#endif  // CATNAP_LIB_RUNTIME_STORED_DISK_H_
