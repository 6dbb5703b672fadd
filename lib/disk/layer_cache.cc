#include "disk/layer_cache.h"

#include <utility>

#include "base/status.h"

namespace catnap::disk {

std::shared_ptr<const LoadedLayer> LayerCache::Find(const FileKey& key) {
  const base::MutexLock lock(&mutex_);
  const auto found = layers_.find(key);
  return found == layers_.end() ? nullptr : found->second.lock();
}

absl::StatusOr<std::shared_ptr<const LoadedLayer>> LayerCache::Load(
    LoopFile* file) {
  CATNAP_ASSIGN_OR_RETURN(const FileKey key, file->Key());
  if (auto known = Find(key); known != nullptr) return known;
  CATNAP_ASSIGN_OR_RETURN(LoadedLayer loaded, LoadLayer(file));
  auto layer = std::make_shared<const LoadedLayer>(std::move(loaded));
  // One that is written is its owner's alone.
  if (!layer->commit.frozen) return layer;
  const base::MutexLock lock(&mutex_);
  std::erase_if(layers_,
                [](const auto& entry) { return entry.second.expired(); });
  std::weak_ptr<const LoadedLayer>& place = layers_[key];
  // Others may have read it meanwhile: all keep one of them.
  if (auto first = place.lock(); first != nullptr) return first;
  place = layer;
  return layer;
}

}  // namespace catnap::disk
