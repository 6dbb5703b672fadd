#ifndef CATNAP_LIB_DISK_LAYER_CACHE_H_
#define CATNAP_LIB_DISK_LAYER_CACHE_H_

#include <map>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "disk/layer_loader.h"
#include "disk/loop_file.h"

namespace catnap::disk {

// What the layers say that disks have open, by file: who opens a frozen one
// that another has open, be it by another name, neither reads its map again nor
// keeps a map of his own. Forks and those that run from one image have most of
// their layers in common.
//
// A file is told by its inode, which no other file can have while somebody has
// it open; that a frozen one never changes is FORMAT.md's promise.
//
// Thread-safe. Memory: under 200 bytes for each layer that is open.
class LayerCache {
 public:
  // As LoadLayer(). The result must go before `file` does. Blocks on the disk
  // where nobody has it open.
  absl::StatusOr<std::shared_ptr<const LoadedLayer>> Load(LoopFile* file);

 private:
  std::shared_ptr<const LoadedLayer> Find(const FileKey& key);

  base::Mutex mutex_;
  std::map<FileKey, std::weak_ptr<const LoadedLayer>> layers_
      ABSL_GUARDED_BY(mutex_);
};

}  // namespace catnap::disk

#endif  // CATNAP_LIB_DISK_LAYER_CACHE_H_
