#include "disk/cow_layer.h"

#include <array>
#include <utility>

#include "base/checked.h"
#include "base/random.h"
#include "base/status.h"

namespace catnap::disk {
namespace {

absl::Status CheckSize(uint64_t bytes, uint64_t at_least) {
  if (bytes >= at_least && bytes != 0 && bytes <= kMaxVirtualBytes &&
      base::IsAligned<uint64_t>(bytes, kSectorBytes)) {
    return absl::OkStatus();
  }
  return Error(absl::StatusCode::kInvalidArgument,
               "a disk of {} bytes: must be a multiple of {}, at least {} and "
               "at most {}",
               bytes, kSectorBytes, at_least, kMaxVirtualBytes);
}

absl::Status CheckParent(const BlockIo* parent) {
  if (parent == nullptr || parent->read_only()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      "the disk below a layer must be read-only or frozen");
}

// Whether the layer was made on `parent`.
absl::Status CheckIsOn(const LayerHeader& header, const BlockIo* parent) {
  CATNAP_RETURN_IF_ERROR(CheckParent(parent));
  const bool same =
      header.has_parent == (parent != nullptr) &&
      (parent == nullptr || (header.parent_id == parent->id() &&
                             header.parent_bytes == parent->capacity()));
  if (same) return absl::OkStatus();
  return Error(absl::StatusCode::kFailedPrecondition,
               "the disk of {} bytes below the layer is not the one of {} "
               "bytes that it was made on",
               parent == nullptr ? 0 : parent->capacity(), header.parent_bytes);
}

}  // namespace

absl::StatusOr<std::shared_ptr<CowLayer>> CowLayer::Create(
    std::shared_ptr<FileIo> file, uint64_t virtual_bytes,
    std::shared_ptr<BlockIo> parent, CowLayerOptions options) {
  CATNAP_ASSIGN_OR_RETURN(const DiskId id, base::RandomBytes<16>());
  return CreateWithId(std::move(file), id, virtual_bytes, std::move(parent),
                      std::move(options));
}

absl::StatusOr<std::shared_ptr<CowLayer>> CowLayer::CreateWithId(
    std::shared_ptr<FileIo> file, DiskId id, uint64_t virtual_bytes,
    std::shared_ptr<BlockIo> parent, CowLayerOptions options) {
  CATNAP_RETURN_IF_ERROR(CheckParent(parent.get()));
  LoadedLayer layer;
  if (parent != nullptr) {
    layer.header.has_parent = true;
    layer.header.parent_id = parent->id();
    layer.header.parent_bytes = parent->capacity();
  }
  CATNAP_RETURN_IF_ERROR(CheckSize(virtual_bytes, layer.header.parent_bytes));
  layer.header.id = id;
  layer.commit.sequence = 1;
  layer.commit.virtual_bytes = virtual_bytes;
  CATNAP_ASSIGN_OR_RETURN(const uint64_t size, file->Size());
  if (size != 0) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "the file for a new layer has {} bytes, must be empty", size);
  }
  std::vector<uint8_t> bytes(kFirstFreePage * kPageBytes);
  const std::span<uint8_t> all(bytes);
  EncodeHeader(layer.header, all.first<kHeaderBytes>());
  EncodeCommit(
      layer.commit,
      all.subspan(CommitOffset(layer.commit.sequence)).first<kCommitBytes>());
  CATNAP_RETURN_IF_ERROR(file->WriteNow(bytes, 0));
  layer.map = std::make_unique<LayerMap>(virtual_bytes);
  layer.space = std::make_unique<SpaceMap>();
  layer.space->FinishClaims();
  return std::shared_ptr<CowLayer>(
      new CowLayer(std::move(file), std::move(parent), std::move(options),
                   std::move(layer)));
}

absl::StatusOr<std::shared_ptr<CowLayer>> CowLayer::CreateOnTop(
    std::shared_ptr<FileIo> file, std::shared_ptr<BlockIo> parent,
    CowLayerOptions options) {
  const uint64_t bytes = parent->capacity();
  return Create(std::move(file), bytes, std::move(parent), std::move(options));
}

absl::StatusOr<std::shared_ptr<CowLayer>> CowLayer::Open(
    std::shared_ptr<FileIo> file, std::shared_ptr<BlockIo> parent,
    CowLayerOptions options) {
  CATNAP_ASSIGN_OR_RETURN(LoadedLayer layer, LoadLayer(file.get()));
  if (layer.commit.frozen) {
    return OpenFrozen(std::move(file),
                      std::make_shared<const LoadedLayer>(std::move(layer)),
                      std::move(parent), std::move(options));
  }
  CATNAP_RETURN_IF_ERROR(CheckIsOn(layer.header, parent.get()));
  return std::shared_ptr<CowLayer>(
      new CowLayer(std::move(file), std::move(parent), std::move(options),
                   std::move(layer)));
}

absl::StatusOr<std::shared_ptr<CowLayer>> CowLayer::OpenFrozen(
    std::shared_ptr<FileIo> file, std::shared_ptr<const LoadedLayer> loaded,
    std::shared_ptr<BlockIo> parent, CowLayerOptions options) {
  if (!loaded->commit.frozen) {
    return absl::FailedPreconditionError("the layer is not frozen");
  }
  CATNAP_RETURN_IF_ERROR(CheckIsOn(loaded->header, parent.get()));
  LoadedLayer layer;
  layer.header = loaded->header;
  layer.commit = loaded->commit;
  return std::shared_ptr<CowLayer>(
      new CowLayer(std::move(file), std::move(parent), std::move(options),
                   std::move(layer), std::move(loaded)));
}

absl::StatusOr<LayerHeader> CowLayer::ReadHeader(FileIo* file) {
  return LoadLayerHeader(file);
}

CowLayer::CowLayer(std::shared_ptr<FileIo> file,
                   std::shared_ptr<BlockIo> parent, CowLayerOptions options,
                   LoadedLayer loaded,
                   std::shared_ptr<const LoadedLayer> frozen)
    : file_(std::move(file)),
      parent_(std::move(parent)),
      header_(loaded.header),
      first_retry_(options.first_retry),
      last_retry_(options.last_retry),
      park_(options.park),
      on_parked_(std::move(options.on_parked)),
      committed_(loaded.commit),
      capacity_(loaded.commit.virtual_bytes),
      frozen_(std::move(frozen)),
      map_(std::move(loaded.map)),
      space_(std::move(loaded.space)),
      retry_delay_(first_retry_) {}

CowLayer::~CowLayer() {
  std::list<std::shared_ptr<LayerRequest>> requests;
  std::vector<FlushWaiter> flushes;
  {
    const base::MutexLock lock(&mutex_);
    requests.swap(requests_);
    flushes.swap(flushes_);
  }
  const absl::Status cancelled = absl::CancelledError("the disk is gone");
  for (const auto& request : requests) std::move(request->done)(cancelled);
  for (FlushWaiter& flush : flushes) std::move(flush.done)(cancelled);
}

uint64_t CowLayer::capacity() const {
  const base::MutexLock lock(&mutex_);
  return capacity_;
}

bool CowLayer::read_only() const {
  const base::MutexLock lock(&mutex_);
  return committed_.frozen || freezing_;
}

uint64_t CowLayer::allocated_bytes() const {
  const base::MutexLock lock(&mutex_);
  const SpaceMap& space = frozen_ != nullptr ? *frozen_->space : *space_;
  return space.used_clusters() * kClusterBytes;
}

bool CowLayer::parked() const {
  const base::MutexLock lock(&mutex_);
  return unable_ > 0 || commit_unable_;
}

std::optional<uint64_t> CowLayer::NextCluster(uint64_t from) const {
  const base::MutexLock lock(&mutex_);
  return MapLocked().NextReserved(from);
}

MapEntry CowLayer::EntryOf(uint64_t cluster) const {
  const base::MutexLock lock(&mutex_);
  const LayerMap& map = MapLocked();
  if (cluster / kEntriesPerPage >= map.map_pages()) return {};
  return map.Get(cluster);
}

void CowLayer::Read(std::span<const iovec> buffers, uint64_t offset,
                    BlockCompletion done) {
  auto request = std::make_shared<LayerRequest>();
  request->kind = LayerRequest::Kind::kRead;
  request->offset = offset;
  request->length = TotalBytes(buffers);
  request->buffers.assign(buffers.begin(), buffers.end());
  request->done = std::move(done);
  Start(std::move(request));
}

void CowLayer::Write(std::span<const iovec> buffers, uint64_t offset,
                     BlockCompletion done) {
  auto request = std::make_shared<LayerRequest>();
  request->kind = LayerRequest::Kind::kWrite;
  request->offset = offset;
  request->length = TotalBytes(buffers);
  request->buffers.assign(buffers.begin(), buffers.end());
  request->done = std::move(done);
  Start(std::move(request));
}

void CowLayer::Discard(uint64_t offset, uint64_t length, BlockCompletion done) {
  WriteZeroes(offset, length, std::move(done));
}

void CowLayer::WriteZeroes(uint64_t offset, uint64_t length,
                           BlockCompletion done) {
  auto request = std::make_shared<LayerRequest>();
  request->kind = LayerRequest::Kind::kZero;
  request->offset = offset;
  request->length = length;
  request->done = std::move(done);
  Start(std::move(request));
}

void CowLayer::Resize(uint64_t new_capacity, BlockCompletion done) {
  absl::Status status;
  {
    const base::MutexLock lock(&mutex_);
    status = CheckSize(new_capacity, capacity_);
    if (committed_.frozen || freezing_) {
      status = absl::FailedPreconditionError("the layer is frozen");
    }
    if (status.ok()) {
      map_->Grow(new_capacity);
      capacity_ = new_capacity;
    }
  }
  if (!status.ok()) {
    file_->Post([status = std::move(status), done = std::move(done)]() mutable {
      std::move(done)(std::move(status));
    });
    return;
  }
  QueueFlush(std::move(done), /*parks=*/true);
}

void CowLayer::Freeze(BlockCompletion done) {
  absl::Status status;
  uint64_t number = 0;
  {
    const base::MutexLock lock(&mutex_);
    if (committed_.frozen || freezing_) {
      status = absl::FailedPreconditionError("the layer is frozen already");
    } else if (unable_ > 0 || commit_unable_) {
      status = absl::ResourceExhaustedError(parked_reason_);
    } else {
      freezing_ = true;
      freeze_done_ = std::move(done);
      number = ++freeze_number_;
    }
  }
  if (!status.ok()) {
    // NOLINTNEXTLINE(bugprone-use-after-move): moved only when all was well.
    file_->Post([status = std::move(status), done = std::move(done)]() mutable {
      std::move(done)(std::move(status));
    });
    return;
  }
  Drain([self = shared_from_this(), number] { self->CommitFreeze(number); });
}

void CowLayer::CommitFreeze(uint64_t number) {
  {
    const base::MutexLock lock(&mutex_);
    if (!freezing_ || freeze_number_ != number) return;  // Given up.
    freeze_now_ = true;
  }
  // Weak: the layer holds what it calls.
  QueueFlush(
      [weak = weak_from_this(), number](absl::Status flushed) {
        const auto self = weak.lock();
        if (self != nullptr) self->EndFreeze(number, std::move(flushed));
      },
      /*parks=*/false);
}

void CowLayer::EndFreeze(uint64_t number, absl::Status status) {
  BlockCompletion done;
  {
    const base::MutexLock lock(&mutex_);
    if (!freezing_ || freeze_number_ != number) return;
    freezing_ = false;
    freeze_now_ = false;
    done = std::move(freeze_done_);
  }
  std::move(done)(std::move(status));
}

void CowLayer::GiveUpFreeze(const absl::Status& why) {
  BlockCompletion done;
  {
    const base::MutexLock lock(&mutex_);
    if (!freezing_) return;
    freezing_ = false;
    freeze_now_ = false;  // The next commit is an ordinary one.
    done = std::move(freeze_done_);
  }
  file_->Post(
      [why, done = std::move(done)]() mutable { std::move(done)(why); });
}

void CowLayer::Drain(DrainCompletion done) {
  // By way of the loop, so that this too is never called inside the call.
  file_->Post([self = shared_from_this(), done = std::move(done)]() mutable {
    std::vector<DrainCompletion> drained;
    {
      const base::MutexLock lock(&self->mutex_);
      drained = self->in_flight_.Wait(std::move(done));
    }
    self->CallAll(std::move(drained));
  });
}

void CowLayer::CallAll(std::vector<DrainCompletion> calls) {
  for (DrainCompletion& call : calls) std::move(call)();
}

}  // namespace catnap::disk
