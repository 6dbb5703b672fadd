#include "disk/layer_map.h"

#include <algorithm>
#include <new>
#include <utility>

#include "base/byte_order.h"

namespace catnap::disk {
namespace {

constexpr uint64_t DivideUp(uint64_t value, uint64_t by) {
  return value / by + (value % by != 0 ? 1 : 0);
}

}  // namespace

void LayerMap::Grow(uint64_t virtual_bytes) {
  const uint64_t pages = DivideUp(virtual_bytes, kMapPageCovers);
  pages_.resize(std::max<uint64_t>(pages_.size(), pages));
  on_disk_[0].resize(pages_.size());
  on_disk_[1].resize(DivideUp(pages_.size(), kPointersPerPage));
  on_disk_[2].resize(1);
}

MapEntry LayerMap::Get(uint64_t cluster) const {
  const auto& page = pages_[cluster / kEntriesPerPage];
  if (page == nullptr) return {};
  return UnpackEntry(page->entries[cluster % kEntriesPerPage]);
}

std::optional<uint64_t> LayerMap::NextReserved(uint64_t from) const {
  for (uint64_t index = from / kEntriesPerPage; index < pages_.size();
       ++index) {
    if (pages_[index] != nullptr) {
      return std::max(from, index * kEntriesPerPage);
    }
  }
  return std::nullopt;
}

bool LayerMap::Reserve(uint64_t first_cluster, uint64_t last_cluster) {
  for (uint64_t index = first_cluster / kEntriesPerPage;
       index <= last_cluster / kEntriesPerPage; ++index) {
    if (pages_[index] != nullptr) continue;
    pages_[index].reset(new (std::nothrow) Page);
    if (pages_[index] == nullptr) return false;
  }
  return true;
}

void LayerMap::Set(uint64_t cluster, const MapEntry& entry) {
  const uint64_t index = cluster / kEntriesPerPage;
  pages_[index]->entries[cluster % kEntriesPerPage] = PackEntry(entry);
  MarkDirty(MapLevel::kMap, static_cast<uint32_t>(index));
}

bool LayerMap::Load(uint64_t index, PagePointer pointer,
                    std::span<const uint8_t, kPageBytes> bytes) {
  pages_[index].reset(new (std::nothrow) Page);
  if (pages_[index] == nullptr) return false;
  for (size_t i = 0; i < kEntriesPerPage; ++i) {
    pages_[index]->entries[i] = base::LoadLe<uint64_t>(&bytes[i * 8]);
  }
  LoadPointer(MapLevel::kMap, index, pointer);
  return true;
}

void LayerMap::LoadPointer(MapLevel level, uint64_t index,
                           PagePointer pointer) {
  At(level, static_cast<uint32_t>(index)).pointer = pointer;
}

std::vector<uint32_t> LayerMap::TakeDirty(MapLevel level) {
  // The marks stay until each page is serialized: a change before that is
  // in what will be written.
  return std::exchange(dirty_[static_cast<size_t>(level)], {});
}

bool LayerMap::AnyDirty() const {
  return std::any_of(dirty_.begin(), dirty_.end(),
                     [](const auto& list) { return !list.empty(); });
}

void LayerMap::MarkDirty(MapLevel level, uint32_t index) {
  OnDisk& page = At(level, index);
  if (page.dirty) return;
  page.dirty = true;
  dirty_[static_cast<size_t>(level)].push_back(index);
}

void LayerMap::PutBackDirty(MapLevel level, std::span<const uint32_t> pages) {
  auto& list = dirty_[static_cast<size_t>(level)];
  list.insert(list.end(), pages.begin(), pages.end());
}

bool LayerMap::Serialize(MapLevel level, uint32_t index,
                         std::span<uint8_t, kPageBytes> into) {
  At(level, index).dirty = false;
  std::fill(into.begin(), into.end(), uint8_t{0});
  bool any = false;
  if (level == MapLevel::kMap) {
    for (size_t i = 0; i < kEntriesPerPage; ++i) {
      MapEntry entry = UnpackEntry(pages_[index]->entries[i]);
      // Given out for a write that has not ended: nothing is in it yet.
      if (entry.data_bits == 0) entry.cluster = 0;
      base::StoreLe<uint64_t>(&into[i * 8], PackEntry(entry));
      any = any || entry != MapEntry{};
    }
    return any;
  }
  const auto& below = on_disk_[static_cast<size_t>(level) - 1];
  const size_t first = index * kPointersPerPage;
  const size_t count = std::min<size_t>(kPointersPerPage, below.size() - first);
  for (size_t i = 0; i < count; ++i) {
    const PagePointer pointer = below[first + i].pointer;
    base::StoreLe<uint64_t>(&into[i * 8], PackPointer(pointer));
    any = any || pointer.page != 0;
  }
  return any;
}

PagePointer LayerMap::Pointer(MapLevel level, uint32_t index) const {
  return on_disk_[static_cast<size_t>(level)][index].pointer;
}

void LayerMap::SetPointer(MapLevel level, uint32_t index, PagePointer pointer) {
  At(level, index).pointer = pointer;
  if (level == MapLevel::kRoot) return;
  MarkDirty(static_cast<MapLevel>(static_cast<int>(level) + 1),
            static_cast<uint32_t>(index / kPointersPerPage));
}

}  // namespace catnap::disk
