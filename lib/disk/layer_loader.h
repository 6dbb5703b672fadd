#ifndef CATNAP_LIB_DISK_LAYER_LOADER_H_
#define CATNAP_LIB_DISK_LAYER_LOADER_H_

#include <memory>

#include "absl/status/statusor.h"
#include "disk/file_io.h"
#include "disk/layer_format.h"
#include "disk/layer_map.h"
#include "disk/space.h"

namespace catnap::disk {

// All that a layer file says, checked.
struct LoadedLayer {
  LayerHeader header;
  CommitRecord commit;
  std::unique_ptr<LayerMap> map;
  std::unique_ptr<SpaceMap> space;
};

// Errors: as LoadLayer().
absl::StatusOr<LayerHeader> LoadLayerHeader(FileIo* file);

// The record that rules: the last complete commit. Errors: as LoadLayer().
absl::StatusOr<CommitRecord> LoadLayerCommit(FileIo* file);

// Reads a layer file that may be hostile. Every page that it names is in the
// file, has the checksum that its pointer says and is named once; every cluster
// of data is in the file, named once and no map page. Reads the map only, and
// uses memory as LayerMap and SpaceMap say. Blocks on the disk.
// Errors: DATA_LOSS, naming what is wrong and where; UNIMPLEMENTED, of a newer
// version; RESOURCE_EXHAUSTED, no memory; what the file says.
absl::StatusOr<LoadedLayer> LoadLayer(FileIo* file);

}  // namespace catnap::disk

#endif  // CATNAP_LIB_DISK_LAYER_LOADER_H_
