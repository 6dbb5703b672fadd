#ifndef CATNAP_LIB_DISK_LAYER_MAP_H_
#define CATNAP_LIB_DISK_LAYER_MAP_H_

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "disk/layer_format.h"

namespace catnap::disk {

// The three levels of pages in the file, from the leaves up.
enum class MapLevel { kMap = 0, kDirectory = 1, kRoot = 2 };
inline constexpr int kMapLevels = 3;

// Where each cluster of the disk is, in memory as a whole, and which pages of
// it differ from the file. Thread-compatible.
//
// Memory: a little over 4 KiB for each 32 MiB of the disk of which something
// was written or discarded, and 8 bytes for each other: at most 129 MiB for
// 1 TiB.
class LayerMap {
 public:
  explicit LayerMap(uint64_t virtual_bytes) { Grow(virtual_bytes); }

  void Grow(uint64_t virtual_bytes);
  uint64_t map_pages() const { return pages_.size(); }

  MapEntry Get(uint64_t cluster) const;
  // The first cluster not before `from` that Reserve() made room for; it may
  // still be empty.
  std::optional<uint64_t> NextReserved(uint64_t from) const;
  // Makes room, so that Set() can follow. False: no memory.
  [[nodiscard]] bool Reserve(uint64_t first_cluster, uint64_t last_cluster);
  // REQUIRES: Reserve() of the cluster was true.
  void Set(uint64_t cluster, const MapEntry& entry);

  // For opening: a map page as it is in the file. False: no memory.
  [[nodiscard]] bool Load(uint64_t index, PagePointer pointer,
                          std::span<const uint8_t, kPageBytes> bytes);
  void LoadPointer(MapLevel level, uint64_t index, PagePointer pointer);

  // For commits. The pages of a level that differ from the file, which then
  // count as equal; on failure the caller marks them again.
  std::vector<uint32_t> TakeDirty(MapLevel level);
  bool AnyDirty() const;
  void MarkDirty(MapLevel level, uint32_t index);
  // Pages of TakeDirty() that were not serialized.
  void PutBackDirty(MapLevel level, std::span<const uint32_t> pages);
  // The page's bytes for the file. False: it is empty and needs none.
  bool Serialize(MapLevel level, uint32_t index,
                 std::span<uint8_t, kPageBytes> into);
  PagePointer Pointer(MapLevel level, uint32_t index) const;
  // After the page was written; the page above becomes dirty.
  void SetPointer(MapLevel level, uint32_t index, PagePointer pointer);

 private:
  struct Page {
    std::array<uint64_t, kEntriesPerPage> entries{};
  };
  // A page of any level, as the file has it.
  struct OnDisk {
    PagePointer pointer;
    bool dirty = false;
  };

  OnDisk& At(MapLevel level, uint32_t index) {
    return on_disk_[static_cast<size_t>(level)][index];
  }

  std::vector<std::unique_ptr<Page>> pages_;  // Null: nothing is mapped.
  std::array<std::vector<OnDisk>, kMapLevels> on_disk_;
  std::array<std::vector<uint32_t>, kMapLevels> dirty_;
};

}  // namespace catnap::disk

#endif  // CATNAP_LIB_DISK_LAYER_MAP_H_
