#ifndef CATNAP_LIB_DISK_LAYER_MERGE_H_
#define CATNAP_LIB_DISK_LAYER_MERGE_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "disk/cow_layer.h"
#include "disk/layer_cache.h"
#include "disk/layer_chain.h"
#include "io/event_loop.h"
#include "io/file.h"

namespace catnap::disk {

// One layer instead of several that lie on each other. It has the id of the
// highest and lies on what the lowest lies on, so those above and below know no
// difference.

// Called after each piece of at most 1 MiB: may wait, so that others get at the
// disk. False: stop.
using MergePace = std::function<bool()>;

// Fills a temporary file with what `layers` (frozen, the lowest first, on
// `below`) have, frozen and durable; its AtomicFile::Commit() makes it take
// another's place. Reads what they have and nothing below; 1 MiB of memory
// besides the layer's map. Blocks: not on the loop's thread.
// Errors: CANCELLED, `pace` said so or the loop stopped; RESOURCE_EXHAUSTED,
// the disk is full; DATA_LOSS, a layer is damaged.
absl::StatusOr<std::shared_ptr<CowLayer>> MergeLayers(
    const std::vector<std::shared_ptr<CowLayer>>& layers,
    std::shared_ptr<BlockIo> below, io::AtomicFile* file, io::EventLoop* loop,
    const MergePace& pace);

// The same with the files of a chain that nobody changes, all of which become
// the file `path`. `base` as with ReadChain().
absl::Status MergeChain(const std::vector<ChainLayer>& chain,
                        std::shared_ptr<BlockIo> base, const std::string& path,
                        io::EventLoop* loop, const MergePace& pace);

// Opens the file of a layer for `loop`. `cache`: of those that may be open
// elsewhere, or null. Errors: DATA_LOSS, it is not the layer
// that the chain says, or not frozen and `writable` is false; as
// CowLayer::Open(). Blocks.
absl::StatusOr<std::shared_ptr<CowLayer>> OpenChainLayer(
    const ChainLayer& layer, std::shared_ptr<BlockIo> parent,
    CowLayerOptions options, LayerCache* cache, io::EventLoop* loop);

}  // namespace catnap::disk

#endif  // CATNAP_LIB_DISK_LAYER_MERGE_H_
