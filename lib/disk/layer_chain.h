#ifndef CATNAP_LIB_DISK_LAYER_CHAIN_H_
#define CATNAP_LIB_DISK_LAYER_CHAIN_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "disk/block_io.h"
#include "disk/clone_file.h"
#include "disk/layer_format.h"

namespace catnap::disk {

// The layers of a disk in a directory: files disk-000.layer, disk-001.layer,
// ..., each of which names the one below by its id. Numbers grow upwards and
// may have gaps. FORMAT.md, "Directories", says what a crash leaves.

// Longer chains are refused as damaged.
inline constexpr size_t kMaxChainLayers = 1024;

struct ChainLayer {
  std::string path;
  uint64_t number = 0;
  LayerHeader header;
  bool frozen = false;
};

struct LayerChain {
  std::vector<ChainLayer> layers;  // The lowest first.
  // Layers and temporary files that no layer of the chain needs, left by a
  // crash: the owner of the directory may remove them.
  std::vector<std::string> leftovers;
};

std::string LayerPath(const std::string& directory, uint64_t number);

// Finds the chain in a directory, which may be hostile. The highest number is
// the top; only that may be unfrozen. `base`: what the lowest layer must lie
// on; null: nothing. No layers are an empty chain. Reads headers only. Blocks.
// Errors: DATA_LOSS, naming the file: damaged, not frozen, a second one of its
// id, above one that it lies under, no chain down to the base; UNIMPLEMENTED,
// of a newer version; what the file system says.
absl::StatusOr<LayerChain> ReadChain(const std::string& directory,
                                     const BlockIo* base);

// Whether what a call makes is durable when it returns, or only once the caller
// has seen to that.
enum class Durable { kNow, kLater };

// Brings frozen layers, the lowest first, into a directory without layers,
// which with kNow is durable with their names afterwards. After an error what
// was brought is removed. Blocks.
// Errors: FAILED_PRECONDITION, one is not frozen; as CloneFile().
absl::Status LinkChain(const std::vector<ChainLayer>& layers,
                       const std::string& directory, CopyMode mode,
                       Durable durable = Durable::kNow);

// Removes all layers and temporary files from a directory. Blocks.
absl::Status RemoveChain(const std::string& directory);

}  // namespace catnap::disk

#endif  // CATNAP_LIB_DISK_LAYER_CHAIN_H_
