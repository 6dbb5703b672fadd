#include "runtime/stored_disk.h"

#include <fcntl.h>

#include <algorithm>

#include "base/status.h"
#include "disk/layer_loader.h"
#include "disk/loop_file.h"
#include "state/decoder.h"
#include "state/encoder.h"

namespace catnap::runtime {
namespace {

constexpr uint16_t kVersion = 1;
constexpr uint32_t kTopLayer = 1;  // Its id, 16 bytes.

static_assert(kVersion == 1 && kTopLayer == 1,
              "field ids are on disk: read lib/state/FORMAT.md first");

}  // namespace

absl::Status AddDiskSection(const disk::DiskStack& disk,
                            std::vector<state::SavedSection>* sections) {
  const std::vector<disk::ChainLayer> frozen = disk.frozen_layers();
  if (frozen.empty()) {
    return absl::FailedPreconditionError("the disk was not frozen");
  }
  state::SavedSection section;
  section.id = state::SectionId::kDisk;
  section.version = kVersion;
  state::StateEncoder out(&section.bytes);
  out.Bytes(kTopLayer, frozen.back().header.id);
  CATNAP_RETURN_IF_ERROR(out.status());
  sections->push_back(std::move(section));
  return absl::OkStatus();
}

absl::StatusOr<disk::LayerChain> ReadStoredDisk(
    const std::filesystem::path& directory, const disk::BlockIo* base,
    const std::vector<state::SavedSection>& sections) {
  CATNAP_ASSIGN_OR_RETURN(disk::LayerChain chain,
                          disk::ReadChain(directory.string(), base));
  const auto section = std::find_if(
      sections.begin(), sections.end(), [](const state::SavedSection& it) {
        return it.id == state::SectionId::kDisk && it.version == kVersion;
      });
  if (section == sections.end()) return chain;
  disk::DiskId top{};
  state::StateDecoder in(section->bytes);
  while (in.Next()) {
    if (in.id() == kTopLayer) in.CopyBytes(top);
  }
  CATNAP_RETURN_IF_ERROR(
      AddContext(in.status(), state::SectionName(section->id, 0)));
  if (chain.layers.empty() || chain.layers.back().header.id != top) {
    return Error(absl::StatusCode::kDataLoss,
                 "{} does not have the highest layer of the disk that was "
                 "stored there; the {} it has are no disk of that guest",
                 directory.string(), chain.layers.size());
  }
  return chain;
}

absl::Status VerifyStoredDisk(const disk::LayerChain& chain) {
  for (const disk::ChainLayer& layer : chain.layers) {
    // Nothing asynchronous is asked of it.
    CATNAP_ASSIGN_OR_RETURN(
        const auto file,
        disk::LoopFile::Open(layer.path, O_RDONLY | O_NOFOLLOW, nullptr));
    CATNAP_RETURN_IF_ERROR(
        AddContext(disk::LoadLayer(file.get()).status(), layer.path));
  }
  return absl::OkStatus();
}

}  // namespace catnap::runtime
