#include "disk/layer_merge.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <optional>
#include <utility>

#include "base/status.h"
#include "disk/await.h"
#include "disk/loop_file.h"

namespace catnap::disk {
namespace {

constexpr uint64_t kPieceBlocks = (uint64_t{1} << 20) / kBlockBytes;
constexpr uint64_t kZeroBlocks = (uint64_t{1} << 30) / kBlockBytes;
static_assert(kZeroBlocks * kBlockBytes <= kMaxZeroBytes);

// So that no flush of the guest waits behind more than that.
constexpr uint64_t kFlushBytes = uint64_t{64} << 20;

enum class Content { kBelow, kData, kZero };

// Goes over all blocks in ascending order, and copies runs of one content.
class Merger {
 public:
  Merger(const std::vector<std::shared_ptr<CowLayer>>& layers, CowLayer* into,
         bool on_zeroes, const MergePace& pace)
      : layers_(layers), into_(into), on_zeroes_(on_zeroes), pace_(pace) {}

  absl::Status Merge() {
    for (auto cluster = Next(0); cluster.has_value();
         cluster = Next(*cluster + 1)) {
      CATNAP_RETURN_IF_ERROR(AddCluster(*cluster));
    }
    return EndRun();
  }

 private:
  std::optional<uint64_t> Next(uint64_t from) const {
    std::optional<uint64_t> next;
    for (const auto& layer : layers_) {
      const auto own = layer->NextCluster(from);
      if (own.has_value()) next = std::min(*own, next.value_or(*own));
    }
    return next;
  }

  absl::Status AddCluster(uint64_t cluster) {
    unsigned data = 0;
    unsigned zero = 0;
    for (size_t i = layers_.size(); i > 0; --i) {
      const MapEntry entry = layers_[i - 1]->EntryOf(cluster);
      const unsigned above = data | zero;
      data |= entry.data_bits & ~above;
      zero |= entry.zero_bits & ~above;
    }
    for (unsigned i = 0; i < kBlocksPerCluster; ++i) {
      const Content content = (data >> i & 1) != 0   ? Content::kData
                              : (zero >> i & 1) != 0 ? Content::kZero
                                                     : Content::kBelow;
      CATNAP_RETURN_IF_ERROR(
          AddBlock(cluster * kBlocksPerCluster + i, content));
    }
    return absl::OkStatus();
  }

  absl::Status AddBlock(uint64_t block, Content content) {
    const uint64_t most =
        content == Content::kData ? kPieceBlocks : kZeroBlocks;
    if (content != content_ || block != end_ || end_ - first_ >= most) {
      CATNAP_RETURN_IF_ERROR(EndRun());
      first_ = block;
      content_ = content;
    }
    end_ = block + 1;
    return absl::OkStatus();
  }

  absl::Status EndRun() {
    const uint64_t offset = first_ * kBlockBytes;
    // The disk's last block need not be whole.
    const uint64_t length =
        std::min(end_ * kBlockBytes, into_->capacity()) - offset;
    const Content content = std::exchange(content_, Content::kBelow);
    if (content == Content::kZero && !on_zeroes_) {
      return Await([&](BlockCompletion done) {
        into_->WriteZeroes(offset, length, std::move(done));
      });
    }
    if (content != Content::kData) return absl::OkStatus();
    bytes_.resize(length);
    const iovec buffer{bytes_.data(), length};
    // The highest reads from those below it where they have the block.
    CATNAP_RETURN_IF_ERROR(Await([&](BlockCompletion done) {
      layers_.back()->Read({&buffer, 1}, offset, std::move(done));
    }));
    CATNAP_RETURN_IF_ERROR(Await([&](BlockCompletion done) {
      into_->Write({&buffer, 1}, offset, std::move(done));
    }));
    unflushed_ += length;
    if (unflushed_ >= kFlushBytes) {
      unflushed_ = 0;
      CATNAP_RETURN_IF_ERROR(
          Await([&](BlockCompletion done) { into_->Flush(std::move(done)); }));
    }
    if (pace_ && !pace_()) return absl::CancelledError("the merge was stopped");
    return absl::OkStatus();
  }

  const std::vector<std::shared_ptr<CowLayer>>& layers_;
  CowLayer* const into_;  // Not owned.
  const bool on_zeroes_;  // Nothing lies below.
  const MergePace& pace_;
  // The run: blocks [first_, end_).
  Content content_ = Content::kBelow;
  uint64_t first_ = 0;
  uint64_t end_ = 0;
  std::vector<uint8_t> bytes_;
  uint64_t unflushed_ = 0;
};

}  // namespace

absl::StatusOr<std::shared_ptr<CowLayer>> MergeLayers(
    const std::vector<std::shared_ptr<CowLayer>>& layers,
    std::shared_ptr<BlockIo> below, io::AtomicFile* file, io::EventLoop* loop,
    const MergePace& pace) {
  base::UniqueFd fd(::fcntl(file->fd(), F_DUPFD_CLOEXEC, 0));
  if (!fd.valid()) return ErrnoError(errno, "copy a descriptor");
  const auto io = std::make_shared<LoopFile>(
      std::make_shared<const base::UniqueFd>(std::move(fd)), loop);
  CowLayerOptions options;
  // A write that waits for room would hold up whoever stops the merge.
  options.park = false;
  const bool on_zeroes = below == nullptr;
  CATNAP_ASSIGN_OR_RETURN(
      auto merged,
      CowLayer::CreateWithId(io, layers.back()->id(), layers.back()->capacity(),
                             std::move(below), std::move(options)));
  CATNAP_RETURN_IF_ERROR(Merger(layers, merged.get(), on_zeroes, pace).Merge());
  CATNAP_RETURN_IF_ERROR(
      Await([&](BlockCompletion done) { merged->Freeze(std::move(done)); }));
  return merged;
}

absl::StatusOr<std::shared_ptr<CowLayer>> OpenChainLayer(
    const ChainLayer& layer, std::shared_ptr<BlockIo> parent,
    CowLayerOptions options, LayerCache* cache, io::EventLoop* loop) {
  CATNAP_ASSIGN_OR_RETURN(
      const auto file,
      LoopFile::Open(layer.path,
                     (layer.frozen ? O_RDONLY : O_RDWR) | O_NOFOLLOW, loop));
  absl::StatusOr<std::shared_ptr<CowLayer>> opened;
  if (layer.frozen && cache != nullptr) {
    auto loaded = cache->Load(file.get());
    opened = loaded.ok()
                 ? CowLayer::OpenFrozen(file, *std::move(loaded),
                                        std::move(parent), std::move(options))
                 : loaded.status();
  } else {
    opened = CowLayer::Open(file, std::move(parent), std::move(options));
  }
  if (!opened.ok()) return AddContext(opened.status(), layer.path);
  if ((*opened)->id() != layer.header.id ||
      (*opened)->read_only() != layer.frozen) {
    return Error(absl::StatusCode::kDataLoss,
                 "{} is another layer than a moment ago", layer.path);
  }
  return opened;
}

absl::Status MergeChain(const std::vector<ChainLayer>& chain,
                        std::shared_ptr<BlockIo> base, const std::string& path,
                        io::EventLoop* loop, const MergePace& pace) {
  if (chain.empty()) {
    return absl::InvalidArgumentError("there are no layers to merge");
  }
  std::vector<std::shared_ptr<CowLayer>> layers;
  std::shared_ptr<BlockIo> parent = base;
  for (const ChainLayer& layer : chain) {
    if (!layer.frozen) {
      return Error(absl::StatusCode::kFailedPrecondition, "{} is not frozen",
                   layer.path);
    }
    CATNAP_ASSIGN_OR_RETURN(auto opened,
                            OpenChainLayer(layer, parent, {}, nullptr, loop));
    parent = opened;
    layers.push_back(std::move(opened));
  }
  CATNAP_ASSIGN_OR_RETURN(const auto file, io::AtomicFile::Create(path));
  CATNAP_ASSIGN_OR_RETURN(
      const auto merged,
      MergeLayers(layers, std::move(base), file.get(), loop, pace));
  return file->Commit();
}

}  // namespace catnap::disk
