#include "disk/disk_stack.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <optional>

#include "base/status.h"
#include "disk/await.h"
#include "disk/layer_merge.h"
#include "disk/loop_file.h"
#include "io/file.h"

namespace catnap::disk {

absl::StatusOr<std::shared_ptr<DiskStack>> DiskStack::Open(
    DiskStackOptions options) {
  CATNAP_ASSIGN_OR_RETURN(const LayerChain chain,
                          ReadChain(options.directory, options.base.get()));
  const std::shared_ptr<DiskStack> stack(new DiskStack(std::move(options)));
  CATNAP_RETURN_IF_ERROR(stack->OpenChain(chain));
  {
    const base::MutexLock lock(&stack->freeze_mutex_);
    stack->StartMerging();
  }
  return stack;
}

absl::Status DiskStack::OpenChain(const LayerChain& chain) {
  const base::MutexLock freeze(&freeze_mutex_);
  std::shared_ptr<BlockIo> parent = options_.base;
  std::vector<FrozenLayer> frozen;
  std::optional<TopLayer> top;
  for (const ChainLayer& file : chain.layers) {
    CATNAP_ASSIGN_OR_RETURN(
        auto layer,
        OpenChainLayer(file, parent,
                       file.frozen ? CowLayerOptions() : TopOptions(),
                       options_.cache.get(), options_.loop));
    next_number_ = file.number + 1;
    if (!file.frozen) {
      top = TopLayer{file, std::move(layer), nullptr};
      break;  // Only the highest.
    }
    auto seat = std::make_shared<LayerSeat>(layer);
    parent = seat;
    frozen.push_back({file, std::move(layer), std::move(seat)});
  }
  // Only now: what could not be opened is left as it was.
  for (const std::string& path : chain.leftovers) {
    if (::unlink(path.c_str()) != 0 && errno != ENOENT) {
      return ErrnoError(errno, "remove {}, which a crash left", path);
    }
  }
  if (!top.has_value()) {
    const uint64_t below = parent == nullptr ? 0 : parent->capacity();
    const uint64_t capacity = std::max(below, options_.capacity);
    CATNAP_ASSIGN_OR_RETURN(
        top, MakeTop(next_number_++, parent, capacity, options_.durable));
  }
  const base::MutexLock lock(&mutex_);
  frozen_ = std::move(frozen);
  top_ = *std::move(top);
  return absl::OkStatus();
}

DiskStack::~DiskStack() { Close(); }

void DiskStack::Close() {
  const base::MutexLock freeze(&freeze_mutex_);
  {
    const base::MutexLock lock(&mutex_);
    stop_ = true;
    changed_.NotifyAll();
  }
  merger_.Join();
  // Nothing is in it, and the next Open() would not know it.
  if (spare_.has_value()) ::unlink(spare_->file.path.c_str());
  spare_.reset();
}

CowLayerOptions DiskStack::TopOptions() const {
  CowLayerOptions options;
  if (options_.on_parked) options.on_parked = options_.on_parked;
  options.first_retry = options_.first_retry;
  options.last_retry = options_.last_retry;
  return options;
}

absl::StatusOr<DiskStack::TopLayer> DiskStack::MakeTop(
    uint64_t number, std::shared_ptr<BlockIo> parent, uint64_t capacity,
    Durable durable) const {
  TopLayer top;
  top.file.path = LayerPath(options_.directory, number);
  top.file.number = number;
  // Under its name only when it is whole, so that a file under such a name that
  // cannot be read is a damaged one.
  CATNAP_ASSIGN_OR_RETURN(const auto file,
                          io::AtomicFile::Create(top.file.path));
  base::UniqueFd fd(::fcntl(file->fd(), F_DUPFD_CLOEXEC, 0));
  if (!fd.valid()) return ErrnoError(errno, "copy a descriptor");
  CATNAP_ASSIGN_OR_RETURN(
      top.layer, CowLayer::Create(
                     std::make_shared<LoopFile>(
                         std::make_shared<const base::UniqueFd>(std::move(fd)),
                         options_.loop),
                     capacity, std::move(parent), TopOptions()));
  CATNAP_RETURN_IF_ERROR(durable == Durable::kNow ? file->Commit()
                                                  : file->CommitLater());
  top.file.header = top.layer->header();
  return top;
}

std::shared_ptr<CowLayer> DiskStack::top() const {
  const base::MutexLock lock(&mutex_);
  return top_.layer;
}

uint64_t DiskStack::capacity() const { return top()->capacity(); }
DiskId DiskStack::id() const { return top()->id(); }
bool DiskStack::parked() const { return top()->parked(); }
void DiskStack::RetryParked() { top()->RetryParked(); }
void DiskStack::CancelParked() { top()->CancelParked(); }

// Requests.

std::shared_ptr<CowLayer> DiskStack::BeginCall() {
  const base::MutexLock lock(&mutex_);
  if (held_) return nullptr;
  ++calls_;
  return top_.layer;
}

void DiskStack::EndCall() {
  const base::MutexLock lock(&mutex_);
  --calls_;
  if (calls_ == 0 && held_) changed_.NotifyAll();
}

template <typename Call>
void DiskStack::Forward(Call&& call) {
  if (const auto top = BeginCall(); top != nullptr) {
    std::forward<Call>(call)(top.get());
    return EndCall();
  }
  {
    const base::MutexLock lock(&mutex_);
    if (held_) {
      waiting_.emplace_back([this, call = std::forward<Call>(call)]() mutable {
        Forward(std::move(call));
      });
      return;
    }
  }
  // The freeze has just ended.
  Forward(std::forward<Call>(call));
}

template <typename Call>
void DiskStack::ForwardBuffers(std::span<const iovec> buffers, Call&& call) {
  if (const auto top = BeginCall(); top != nullptr) {
    std::forward<Call>(call)(top.get(), buffers);
    return EndCall();
  }
  Forward([copy = std::vector<iovec>(buffers.begin(), buffers.end()),
           call = std::forward<Call>(call)](CowLayer* top) mutable {
    std::move(call)(top, copy);
  });
}

void DiskStack::Read(std::span<const iovec> buffers, uint64_t offset,
                     BlockCompletion done) {
  ForwardBuffers(buffers,
                 [offset, done = std::move(done)](
                     CowLayer* top, std::span<const iovec> own) mutable {
                   top->Read(own, offset, std::move(done));
                 });
}

void DiskStack::Write(std::span<const iovec> buffers, uint64_t offset,
                      BlockCompletion done) {
  ForwardBuffers(buffers,
                 [offset, done = std::move(done)](
                     CowLayer* top, std::span<const iovec> own) mutable {
                   top->Write(own, offset, std::move(done));
                 });
}

void DiskStack::Flush(BlockCompletion done) {
  Forward([done = std::move(done)](CowLayer* top) mutable {
    top->Flush(std::move(done));
  });
}

void DiskStack::Discard(uint64_t offset, uint64_t length,
                        BlockCompletion done) {
  Forward([offset, length, done = std::move(done)](CowLayer* top) mutable {
    top->Discard(offset, length, std::move(done));
  });
}

void DiskStack::WriteZeroes(uint64_t offset, uint64_t length,
                            BlockCompletion done) {
  Forward([offset, length, done = std::move(done)](CowLayer* top) mutable {
    top->WriteZeroes(offset, length, std::move(done));
  });
}

void DiskStack::Resize(uint64_t new_capacity, BlockCompletion done) {
  Forward([new_capacity, done = std::move(done)](CowLayer* top) mutable {
    top->Resize(new_capacity, std::move(done));
  });
}

void DiskStack::Drain(DrainCompletion done) {
  Forward([done = std::move(done)](CowLayer* top) mutable {
    top->Drain(std::move(done));
  });
}

// Freezing.

void DiskStack::HoldRequests() {
  const base::MutexLock lock(&mutex_);
  held_ = true;
  while (calls_ != 0) changed_.Wait(&mutex_);
}

void DiskStack::ReleaseRequests() {
  std::vector<absl::AnyInvocable<void() &&>> waiting;
  {
    const base::MutexLock lock(&mutex_);
    held_ = false;
    waiting.swap(waiting_);
  }
  for (auto& call : waiting) std::move(call)();
}

absl::Status DiskStack::EnsureSpare() {
  const auto layer = top();
  const uint64_t capacity = layer->capacity();
  // The disk may have grown since.
  if (spare_.has_value() && spare_->layer->capacity() == capacity) {
    return absl::OkStatus();
  }
  if (spare_.has_value()) ::unlink(spare_->file.path.c_str());
  spare_.reset();
  // The layer is frozen before anyone reads by way of the seat.
  auto seat = std::make_shared<LayerSeat>(layer);
  CATNAP_ASSIGN_OR_RETURN(spare_,
                          MakeTop(next_number_, seat, capacity, Durable::kNow));
  ++next_number_;
  const base::MutexLock lock(&mutex_);
  top_.seat = std::move(seat);
  return absl::OkStatus();
}

absl::Status DiskStack::Sync() {
  // A freeze makes another file the top; its own steps are durable.
  const base::MutexLock freeze(&freeze_mutex_);
  std::string path;
  {
    const base::MutexLock lock(&mutex_);
    path = top_.file.path;
  }
  CATNAP_ASSIGN_OR_RETURN(const base::UniqueFd file,
                          io::OpenFile(path, O_RDONLY | O_NOFOLLOW));
  CATNAP_RETURN_IF_ERROR(io::FsyncFile(file.get()));
  return io::FsyncDirectory(options_.directory);
}

absl::Status DiskStack::PrepareFreeze() {
  const base::MutexLock freeze(&freeze_mutex_);
  const auto layer = top();
  if (layer->parked()) {
    return absl::ResourceExhaustedError("the host's disk is full");
  }
  CATNAP_RETURN_IF_ERROR(EnsureSpare());
  return Await(
      [&](BlockCompletion done) { layer->FlushOrFail(std::move(done)); });
}

absl::Status DiskStack::Freeze() {
  const base::MutexLock freeze(&freeze_mutex_);
  CATNAP_RETURN_IF_ERROR(EnsureSpare());
  HoldRequests();
  const auto layer = top();
  absl::Status status;
  // A resize came between.
  if (spare_->layer->capacity() != layer->capacity()) status = EnsureSpare();
  if (status.ok()) {
    status =
        Await([&](BlockCompletion done) { layer->Freeze(std::move(done)); });
  }
  if (status.ok()) {
    const base::MutexLock lock(&mutex_);
    top_.file.frozen = true;
    frozen_.push_back({top_.file, top_.layer, top_.seat});
    top_ = *std::exchange(spare_, std::nullopt);
  }
  ReleaseRequests();
  if (status.ok()) StartMerging();
  return status;
}

std::vector<ChainLayer> DiskStack::frozen_layers() const {
  const base::MutexLock lock(&mutex_);
  std::vector<ChainLayer> layers;
  layers.reserve(frozen_.size());
  for (const FrozenLayer& layer : frozen_) layers.push_back(layer.file);
  return layers;
}

absl::StatusOr<std::vector<ChainLayer>> DiskStack::LinkInto(
    const std::string& directory, CopyMode mode, Durable durable) {
  const base::MutexLock files(&files_mutex_);
  std::vector<ChainLayer> layers = frozen_layers();
  CATNAP_RETURN_IF_ERROR(LinkChain(layers, directory, mode, durable));
  uint64_t number = 0;
  for (ChainLayer& layer : layers) {
    layer.number = number++;
    layer.path = LayerPath(directory, layer.number);
  }
  return layers;
}

uint64_t DiskStack::allocated_bytes() const {
  const base::MutexLock lock(&mutex_);
  uint64_t bytes = top_.layer->allocated_bytes();
  for (const FrozenLayer& layer : frozen_) {
    bytes += layer.layer->allocated_bytes();
  }
  return bytes;
}

// Merging.

bool DiskStack::PickLocked(size_t* lower) const {
  if (stop_ || options_.max_frozen == 0 ||
      frozen_.size() <= options_.max_frozen || frozen_.size() < 2) {
    return false;
  }
  uint64_t least = UINT64_MAX;
  for (size_t i = 0; i + 1 < frozen_.size(); ++i) {
    const uint64_t cost = frozen_[i].layer->allocated_bytes() +
                          frozen_[i + 1].layer->allocated_bytes();
    if (cost < least) {
      least = cost;
      *lower = i;
    }
  }
  return true;
}

void DiskStack::StartMerging() {
  {
    const base::MutexLock lock(&mutex_);
    size_t lower = 0;
    if (merging_ || !PickLocked(&lower)) return;
    merging_ = true;
  }
  merger_.Join();  // It has nothing left to do.
  auto started = base::Thread::Start("catnap-merge", [this] { Merge(); });
  if (started.ok()) {
    merger_ = *std::move(started);
    return;
  }
  // As with a full disk: a longer chain is slower, but right.
  const base::MutexLock lock(&mutex_);
  merging_ = false;
  changed_.NotifyAll();
}

void DiskStack::Merge() {
  while (true) {
    size_t lower = 0;
    bool more = false;
    {
      const base::MutexLock lock(&mutex_);
      more = merging_ = PickLocked(&lower);
      if (!more) changed_.NotifyAll();
    }
    if (!more) return;
    if (MergeTwo(lower).ok()) continue;
    const base::MutexLock lock(&mutex_);
    merging_ = false;
    changed_.NotifyAll();
    return;
  }
}

absl::Status DiskStack::MergeTwo(size_t lower) {
  // Only merges take layers away, and new ones come at the end: the two keep
  // their places.
  FrozenLayer low;
  FrozenLayer high;
  std::shared_ptr<BlockIo> below = options_.base;
  {
    const base::MutexLock lock(&mutex_);
    low = frozen_[lower];
    high = frozen_[lower + 1];
    if (lower > 0) below = frozen_[lower - 1].seat;
  }
  CATNAP_ASSIGN_OR_RETURN(const auto file,
                          io::AtomicFile::Create(high.file.path));
  auto began = std::chrono::steady_clock::now();
  CATNAP_ASSIGN_OR_RETURN(
      const auto merged,
      MergeLayers({low.layer, high.layer}, below, file.get(), options_.loop,
                  [&] { return Pace(&began); }));
  const base::MutexLock files(&files_mutex_);
  CATNAP_RETURN_IF_ERROR(file->Commit());
  {
    const base::MutexLock lock(&mutex_);
    FrozenLayer& place = frozen_[lower + 1];
    place.layer = merged;
    place.file.header = merged->header();
    if (place.seat != nullptr) place.seat->Replace(merged);
    frozen_.erase(frozen_.begin() + static_cast<ptrdiff_t>(lower));
  }
  // No layer of the chain names it any more.
  ::unlink(low.file.path.c_str());
  return absl::OkStatus();
}

bool DiskStack::Pace(std::chrono::steady_clock::time_point* began) {
  const auto now = std::chrono::steady_clock::now();
  const auto until = now + (now - *began);
  const base::MutexLock lock(&mutex_);
  while (!stop_ && std::chrono::steady_clock::now() < until) {
    changed_.WaitUntil(&mutex_, until);
  }
  *began = std::chrono::steady_clock::now();
  return !stop_;
}

void DiskStack::WaitForMerges() {
  const base::MutexLock lock(&mutex_);
  while (merging_ && !stop_) changed_.Wait(&mutex_);
}

}  // namespace catnap::disk
