#include "disk/layer_loader.h"

#include <array>
#include <bit>
#include <utility>

#include "base/byte_order.h"
#include "base/checked.h"
#include "base/crc32c.h"
#include "base/status.h"

namespace catnap::disk {
namespace {

using PageBytes = std::array<uint8_t, kPageBytes>;

absl::Status Damaged(absl::Status status) {
  // The file is shorter than what it says of itself.
  if (absl::IsOutOfRange(status)) {
    return Error(absl::StatusCode::kDataLoss, "layer file: {}",
                 std::string(status.message()));
  }
  return status;
}

class Loader {
 public:
  Loader(FileIo* file, uint64_t file_bytes, LoadedLayer* layer)
      : file_(file), file_bytes_(file_bytes), layer_(layer) {}

  absl::Status Load() {
    const PagePointer root = layer_->commit.root;
    layer_->map->LoadPointer(MapLevel::kRoot, 0, root);
    if (root.page != 0) CATNAP_RETURN_IF_ERROR(LoadRoot(root));
    // After all pages, so that data in a page's place is found.
    for (uint64_t page = 0; page < layer_->map->map_pages(); ++page) {
      if (layer_->map->Pointer(MapLevel::kMap, static_cast<uint32_t>(page))
              .page != 0) {
        CATNAP_RETURN_IF_ERROR(CheckEntries(page));
      }
    }
    layer_->space->FinishClaims();
    return absl::OkStatus();
  }

 private:
  absl::Status LoadRoot(PagePointer pointer) {
    PageBytes root{};
    CATNAP_RETURN_IF_ERROR(ReadPage(pointer, &root));
    const uint64_t map_pages = layer_->map->map_pages();
    for (uint64_t i = 0; i < kPointersPerPage; ++i) {
      const PagePointer directory =
          UnpackPointer(base::LoadLe<uint64_t>(&root[i * 8]));
      if (directory == PagePointer{}) continue;
      CATNAP_RETURN_IF_ERROR(
          CheckInDisk(i * kPointersPerPage, map_pages, pointer));
      layer_->map->LoadPointer(MapLevel::kDirectory, i, directory);
      CATNAP_RETURN_IF_ERROR(LoadDirectory(i * kPointersPerPage, directory));
    }
    return absl::OkStatus();
  }

  absl::Status LoadDirectory(uint64_t first, PagePointer pointer) {
    PageBytes directory{};
    CATNAP_RETURN_IF_ERROR(ReadPage(pointer, &directory));
    PageBytes page{};
    for (uint64_t i = 0; i < kPointersPerPage; ++i) {
      const PagePointer map =
          UnpackPointer(base::LoadLe<uint64_t>(&directory[i * 8]));
      if (map == PagePointer{}) continue;
      CATNAP_RETURN_IF_ERROR(
          CheckInDisk(first + i, layer_->map->map_pages(), pointer));
      CATNAP_RETURN_IF_ERROR(ReadPage(map, &page));
      if (!layer_->map->Load(first + i, map, page)) {
        return absl::ResourceExhaustedError("no memory for a layer's map");
      }
    }
    return absl::OkStatus();
  }

  static absl::Status CheckInDisk(uint64_t index, uint64_t map_pages,
                                  PagePointer where) {
    if (index < map_pages) return absl::OkStatus();
    return Error(absl::StatusCode::kDataLoss,
                 "layer file: the page at offset {} maps what is behind the "
                 "disk's end",
                 where.page * kPageBytes);
  }

  absl::Status ReadPage(PagePointer pointer, PageBytes* into) {
    const uint64_t offset = pointer.page * kPageBytes;
    if (!base::InRange<uint64_t>(offset, kPageBytes, file_bytes_)) {
      return Error(absl::StatusCode::kDataLoss,
                   "layer file: a map page at offset {} is behind the file's "
                   "end at {}",
                   offset, file_bytes_);
    }
    if (!layer_->space->ClaimPage(pointer.page)) {
      return Error(absl::StatusCode::kDataLoss,
                   "layer file: the page at offset {} is named twice", offset);
    }
    CATNAP_RETURN_IF_ERROR(Damaged(file_->ReadNow(*into, offset)));
    if (base::Crc32c(*into) != pointer.crc32c) {
      return Error(absl::StatusCode::kDataLoss,
                   "layer file: checksum of the map page at offset {} is wrong",
                   offset);
    }
    return absl::OkStatus();
  }

  absl::Status CheckEntries(uint64_t page) {
    for (uint64_t i = 0; i < kEntriesPerPage; ++i) {
      const uint64_t cluster = page * kEntriesPerPage + i;
      const MapEntry entry = layer_->map->Get(cluster);
      if (entry == MapEntry{}) continue;
      if (!Plausible(cluster, entry)) {
        return Error(absl::StatusCode::kDataLoss,
                     "layer file: the map entry of the disk's offset {} is "
                     "impossible (cluster {}, bits {:#x} and {:#x})",
                     cluster * kClusterBytes, entry.cluster, entry.data_bits,
                     entry.zero_bits);
      }
      if (entry.cluster != 0 && !layer_->space->ClaimCluster(entry.cluster)) {
        return Error(absl::StatusCode::kDataLoss,
                     "layer file: the cluster at offset {} is used twice",
                     entry.cluster * kClusterBytes);
      }
    }
    return absl::OkStatus();
  }

  // Whether the entry maps blocks of the disk to what the file has.
  bool Plausible(uint64_t cluster, const MapEntry& entry) const {
    const auto both = static_cast<uint16_t>(entry.data_bits & entry.zero_bits);
    if (both != 0 || (entry.cluster == 0) != (entry.data_bits == 0)) {
      return false;
    }
    const auto any = static_cast<uint16_t>(entry.data_bits | entry.zero_bits);
    const auto last = static_cast<uint64_t>(std::bit_width(any)) - 1;
    const auto end = static_cast<uint64_t>(std::bit_width(entry.data_bits));
    return cluster * kClusterBytes + last * kBlockBytes <
               layer_->commit.virtual_bytes &&
           entry.cluster * kClusterBytes + end * kBlockBytes <= file_bytes_;
  }

  FileIo* const file_;  // Not owned.
  const uint64_t file_bytes_;
  LoadedLayer* const layer_;  // Not owned.
};

}  // namespace

absl::StatusOr<LayerHeader> LoadLayerHeader(FileIo* file) {
  std::array<uint8_t, kHeaderBytes> bytes{};
  CATNAP_RETURN_IF_ERROR(Damaged(file->ReadNow(bytes, 0)));
  return DecodeHeader(bytes);
}

absl::StatusOr<CommitRecord> LoadLayerCommit(FileIo* file) {
  absl::StatusOr<CommitRecord> best =
      absl::DataLossError("layer file: both commit records are damaged");
  for (const uint64_t slot : {uint64_t{0}, uint64_t{1}}) {
    std::array<uint8_t, kCommitBytes> bytes{};
    CATNAP_RETURN_IF_ERROR(Damaged(file->ReadNow(bytes, CommitOffset(slot))));
    const absl::StatusOr<CommitRecord> commit = DecodeCommit(bytes);
    // One that is damaged is a commit that a crash cut short.
    if (!commit.ok() || CommitOffset(commit->sequence) != CommitOffset(slot)) {
      continue;
    }
    if (!best.ok() || commit->sequence > best->sequence) best = *commit;
  }
  return best;
}

absl::StatusOr<LoadedLayer> LoadLayer(FileIo* file) {
  LoadedLayer layer;
  CATNAP_ASSIGN_OR_RETURN(layer.header, LoadLayerHeader(file));
  CATNAP_ASSIGN_OR_RETURN(layer.commit, LoadLayerCommit(file));
  CATNAP_ASSIGN_OR_RETURN(const uint64_t file_bytes, file->Size());
  layer.map = std::make_unique<LayerMap>(layer.commit.virtual_bytes);
  layer.space = std::make_unique<SpaceMap>();
  Loader loader(file, file_bytes, &layer);
  CATNAP_RETURN_IF_ERROR(loader.Load());
  return layer;
}

}  // namespace catnap::disk
