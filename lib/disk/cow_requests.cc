#include <algorithm>
#include <utility>

#include "base/checked.h"
#include "base/status.h"
#include "disk/cow_layer.h"

// How a CowLayer serves a request. A read is one step: from the file, from the
// parent, zeroes. A write reads what its first and last block lack (one step),
// writes data to clusters that may be new (another) and only then names them
// in the map, so that no commit can name data that is not there.

namespace catnap::disk {
namespace {

constexpr uint64_t kBlocks = kBlocksPerCluster;

uint64_t ClusterOf(uint64_t block) { return block / kBlocks; }

uint16_t BitOf(uint64_t block) {
  return static_cast<uint16_t>(1U << (block % kBlocks));
}

uint64_t PlaceOf(const MapEntry& entry, uint64_t offset) {
  return entry.cluster * kClusterBytes + offset % kClusterBytes;
}

LayerPart MakePart(LayerPart::Kind kind, uint64_t offset, Buffers buffers) {
  const uint64_t length = TotalBytes(buffers);
  return {kind, offset, length, std::move(buffers)};
}

}  // namespace

void CowLayer::Start(std::shared_ptr<LayerRequest> request) {
  absl::Status status;
  bool run = false;
  {
    const base::MutexLock lock(&mutex_);
    request->number = in_flight_.Begin();
    status = CheckLocked(*request);
    if (status.ok() && request->length != 0) {
      run = request->running = MayRunLocked(*request);
      if (!run) ++waiting_;
      requests_.push_back(request);
    }
  }
  if (!status.ok() || request->length == 0) {
    file_->Post([self = shared_from_this(), request = std::move(request),
                 status = std::move(status)]() mutable {
      self->Finish(request, std::move(status));
    });
  } else if (run) {
    Run(request);
  }
}

absl::Status CowLayer::CheckLocked(const LayerRequest& request) const {
  if (request.writes() && (committed_.frozen || freezing_)) {
    return absl::FailedPreconditionError("the disk is read-only: it is frozen");
  }
  return CheckRange(request.offset, request.length,
                    request.kind == LayerRequest::Kind::kZero
                        ? kMaxZeroBytes
                        : kMaxTransferBytes,
                    capacity_);
}

bool CowLayer::MayRunLocked(const LayerRequest& request) const {
  for (const auto& earlier : requests_) {
    if (earlier.get() == &request) break;
    if (request.ConflictsWith(*earlier)) return false;
  }
  return true;
}

void CowLayer::Run(const std::shared_ptr<LayerRequest>& request) {
  request->status = absl::OkStatus();
  if (request->kind == LayerRequest::Kind::kRead) return RunRead(request);
  request->transfers.clear();
  const uint64_t end = request->offset + request->length;
  if (request->kind == LayerRequest::Kind::kWrite) {
    LayerTransfer& transfer = request->transfers.emplace_back();
    transfer.offset = request->offset;
    transfer.buffers = request->buffers;
    return ReadParentEdges(request);
  }
  const auto add_zeroes = [&](uint64_t from, uint64_t to) {
    LayerTransfer& transfer = request->transfers.emplace_back();
    transfer.offset = from;
    transfer.buffers = ZeroBuffers(to - from);
  };
  const uint64_t first =
      (request->offset + kBlockBytes - 1) / kBlockBytes * kBlockBytes;
  uint64_t last = end / kBlockBytes * kBlockBytes;
  // The disk's last block need not be whole.
  if (end == capacity())
    last = (end + kBlockBytes - 1) / kBlockBytes * kBlockBytes;
  if (first >= last) {
    add_zeroes(request->offset, end);
  } else {
    if (request->offset < first) add_zeroes(request->offset, first);
    if (last < end) add_zeroes(last, end);
    request->zero_first = first / kBlockBytes;
    request->zero_end = last / kBlockBytes;
  }
  ReadParentEdges(request);
}

void CowLayer::RunRead(const std::shared_ptr<LayerRequest>& request) {
  std::vector<LayerPart> parts;
  {
    const base::MutexLock lock(&mutex_);
    const LayerMap& map = MapLocked();
    const uint64_t end = request->offset + request->length;
    uint64_t at = request->offset;
    while (at < end) {
      // As far as one place has it.
      const MapEntry start = map.Get(at / kClusterBytes);
      const uint64_t block = at / kBlockBytes;
      const bool data = (start.data_bits & BitOf(block)) != 0;
      const bool zero = (start.zero_bits & BitOf(block)) != 0;
      const uint64_t place = PlaceOf(start, at);
      uint64_t next = (block + 1) * kBlockBytes;
      while (next < end) {
        const MapEntry entry = map.Get(next / kClusterBytes);
        const uint16_t bit = BitOf(next / kBlockBytes);
        if (((entry.data_bits & bit) != 0) != data ||
            ((entry.zero_bits & bit) != 0) != zero ||
            (data && PlaceOf(entry, next) != place + (next - at))) {
          break;
        }
        next += kBlockBytes;
      }
      next = std::min(next, end);
      Buffers buffers =
          Slice(request->buffers, at - request->offset, next - at);
      if (data) {
        parts.push_back(
            MakePart(LayerPart::Kind::kReadFile, place, std::move(buffers)));
      } else if (zero) {
        FillZero(buffers);
      } else {
        AddParentLocked(std::move(buffers), at, &parts);
      }
      at = next;
    }
  }
  Issue(request, std::move(parts), LayerStep::kFinish);
}

void CowLayer::AddParentLocked(Buffers buffers, uint64_t offset,
                               std::vector<LayerPart>* parts) const {
  const uint64_t length = TotalBytes(buffers);
  const uint64_t below = offset >= header_.parent_bytes
                             ? 0
                             : std::min(length, header_.parent_bytes - offset);
  FillZero(Slice(buffers, below, length - below));
  if (below == 0) return;
  parts->push_back(
      MakePart(LayerPart::Kind::kReadParent, offset, Slice(buffers, 0, below)));
}

void CowLayer::ReadParentEdges(const std::shared_ptr<LayerRequest>& request) {
  std::vector<LayerPart> parts;
  {
    const base::MutexLock lock(&mutex_);
    for (LayerTransfer& transfer : request->transfers) {
      PlanWriteLocked(&transfer, &parts);
    }
  }
  Issue(request, std::move(parts), LayerStep::kWriteData);
}

// Widens the transfer to whole blocks where the layer has no data yet, and
// fills the edges or adds what reads them.
void CowLayer::PlanWriteLocked(LayerTransfer* transfer,
                               std::vector<LayerPart>* parts) {
  const uint64_t end = transfer->offset + TotalBytes(transfer->buffers);
  const auto holds =
      [&](uint64_t offset) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        const MapEntry entry = map_->Get(offset / kClusterBytes);
        return (entry.data_bits & BitOf(offset / kBlockBytes)) != 0;
      };
  transfer->wide_offset = transfer->offset;
  transfer->wide_end = end;
  if (!holds(transfer->offset)) {
    transfer->wide_offset =
        base::AlignDown<uint64_t>(transfer->offset, kBlockBytes);
  }
  if (!holds(end - 1)) {
    transfer->wide_end =
        base::AlignDown<uint64_t>(end - 1, kBlockBytes) + kBlockBytes;
  }
  const uint64_t head = transfer->offset - transfer->wide_offset;
  const uint64_t tail = transfer->wide_end - end;
  transfer->edges.assign(head + tail, 0);
  const auto fill = [&](uint64_t at, uint64_t offset,
                        uint64_t length) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    // The map ends with the disk, as the tail may.
    if (length == 0) return;
    const MapEntry entry = map_->Get(offset / kClusterBytes);
    if ((entry.zero_bits & BitOf(offset / kBlockBytes)) != 0) return;
    AddParentLocked({{&transfer->edges[at], length}}, offset, parts);
  };
  fill(0, transfer->wide_offset, head);
  fill(head, end, tail);
  transfer->wide_buffers.clear();
  if (head != 0) transfer->wide_buffers.push_back({&transfer->edges[0], head});
  transfer->wide_buffers.insert(transfer->wide_buffers.end(),
                                transfer->buffers.begin(),
                                transfer->buffers.end());
  if (tail != 0) {
    transfer->wide_buffers.push_back({&transfer->edges[head], tail});
  }
}

void CowLayer::WriteData(const std::shared_ptr<LayerRequest>& request) {
  std::vector<LayerPart> parts;
  absl::Status status;
  {
    const base::MutexLock lock(&mutex_);
    if (!map_->Reserve(
            request->offset / kClusterBytes,
            (request->offset + request->length - 1) / kClusterBytes)) {
      status = absl::ResourceExhaustedError("no memory for the disk's map");
    }
    for (const LayerTransfer& transfer : request->transfers) {
      if (status.ok()) status = PlanDataLocked(transfer, &parts);
    }
  }
  if (!status.ok()) return Park(request, status);
  Issue(request, std::move(parts), LayerStep::kApplyToMap);
}

absl::Status CowLayer::PlanDataLocked(const LayerTransfer& transfer,
                                      std::vector<LayerPart>* parts) {
  uint64_t at = transfer.wide_offset;
  // A run of neighbours in the file is one operation.
  uint64_t run_at = at;
  uint64_t run_place = 0;
  const auto end_run = [&](uint64_t run_end) {
    if (run_end == run_at) return;
    parts->push_back(
        MakePart(LayerPart::Kind::kWriteFile, run_place,
                 Slice(transfer.wide_buffers, run_at - transfer.wide_offset,
                       run_end - run_at)));
  };
  while (at < transfer.wide_end) {
    const uint64_t cluster = at / kClusterBytes;
    MapEntry entry = map_->Get(cluster);
    if (entry.cluster == 0) {
      const auto fresh = space_->AllocateCluster();
      if (!fresh.has_value()) {
        return absl::ResourceExhaustedError(
            "the layer file is as large as its format allows");
      }
      entry.cluster = *fresh;
      map_->Set(cluster, entry);
    }
    const uint64_t place = PlaceOf(entry, at);
    if (at == run_at) {
      run_place = place;
    } else if (place != run_place + (at - run_at)) {
      end_run(at);
      run_at = at;
      run_place = place;
    }
    at = std::min((cluster + 1) * kClusterBytes, transfer.wide_end);
  }
  end_run(at);
  return absl::OkStatus();
}

void CowLayer::ApplyToMap(const std::shared_ptr<LayerRequest>& request) {
  std::vector<LayerPart> holes;
  {
    const base::MutexLock lock(&mutex_);
    for (const LayerTransfer& transfer : request->transfers) {
      const uint64_t last = (transfer.wide_end - 1) / kBlockBytes;
      for (uint64_t block = transfer.wide_offset / kBlockBytes; block <= last;
           ++block) {
        MapEntry entry = map_->Get(ClusterOf(block));
        if ((entry.data_bits & BitOf(block)) != 0) continue;
        entry.data_bits |= BitOf(block);
        entry.zero_bits &= static_cast<uint16_t>(~BitOf(block));
        map_->Set(ClusterOf(block), entry);
      }
    }
    if (request->zero_first != request->zero_end) {
      ZeroBlocksLocked(*request, &holes);
    }
  }
  Issue(request, std::move(holes), LayerStep::kFinish);
}

// Names blocks as zero. Clusters that hold nothing any more are freed; space of
// other blocks is given back at once: whatever a crash leaves in the map, they
// read as before or as zeroes.
void CowLayer::ZeroBlocksLocked(const LayerRequest& request,
                                std::vector<LayerPart>* holes) {
  uint64_t block = request.zero_first;
  while (block < request.zero_end) {
    const uint64_t cluster = ClusterOf(block);
    const uint64_t end = std::min(request.zero_end, (cluster + 1) * kBlocks);
    MapEntry entry = map_->Get(cluster);
    const MapEntry before = entry;
    const auto bits =
        static_cast<uint16_t>((1U << (end - cluster * kBlocks)) -
                              (1U << (block - cluster * kBlocks)));
    const bool had_data = (entry.data_bits & bits) != 0;
    entry.data_bits &= static_cast<uint16_t>(~bits);
    entry.zero_bits |= bits;
    if (entry.data_bits == 0 && entry.cluster != 0 &&
        !OtherWriterInLocked(request, cluster)) {
      space_->FreeCluster(entry.cluster);
      entry.cluster = 0;
    } else if (had_data) {
      holes->push_back({LayerPart::Kind::kPunch,
                        PlaceOf(entry, block * kBlockBytes),
                        (end - block) * kBlockBytes,
                        {}});
    }
    if (entry != before) map_->Set(cluster, entry);
    block = end;
  }
}

// Whether another request may be writing to the cluster, whose blocks the map
// does not name yet.
bool CowLayer::OtherWriterInLocked(const LayerRequest& request,
                                   uint64_t cluster) const {
  const uint64_t first = cluster * kBlocks;
  return std::any_of(
      requests_.begin(), requests_.end(), [&](const auto& other) {
        return other.get() != &request && other->running && other->writes() &&
               other->first_block() < first + kBlocks &&
               other->last_block() >= first;
      });
}

void CowLayer::Issue(const std::shared_ptr<LayerRequest>& request,
                     std::vector<LayerPart> parts, LayerStep next) {
  request->next = next;
  // One more for this function, so that the step cannot end inside it.
  request->parts_left = parts.size() + 1;
  const bool inside_call =
      parts.empty() && next == LayerStep::kFinish && request->transfers.empty();
  for (LayerPart& part : parts) IssueOne(request, std::move(part));
  if (!inside_call) return EndPart(request, absl::OkStatus());
  // Nothing had to be waited for since the caller's call.
  file_->Post([self = shared_from_this(), request] {
    self->EndPart(request, absl::OkStatus());
  });
}

void CowLayer::IssueOne(const std::shared_ptr<LayerRequest>& request,
                        LayerPart part) {
  const auto end = [self = shared_from_this(), request,
                    length = part.length](absl::StatusOr<size_t> done) {
    absl::Status status = done.status();
    if (done.ok() && *done < length) {
      status = Error(absl::StatusCode::kDataLoss,
                     "the layer's file ended {} bytes into a cluster's {}",
                     *done, length);
    }
    self->EndPart(request, std::move(status));
  };
  switch (part.kind) {
    case LayerPart::Kind::kReadFile:
      return file_->Read(part.buffers, part.offset, end);
    case LayerPart::Kind::kWriteFile:
      return file_->Write(part.buffers, part.offset, end);
    case LayerPart::Kind::kReadParent:
      return parent_->Read(
          part.buffers, part.offset,
          [self = shared_from_this(), request](absl::Status status) {
            self->EndPart(request, std::move(status));
          });
    case LayerPart::Kind::kPunch:
      // Space that does not come back is no reason to fail.
      return file_->PunchHole(
          part.offset, part.length,
          [self = shared_from_this(), request](const absl::StatusOr<size_t>&) {
            self->EndPart(request, absl::OkStatus());
          });
  }
}

void CowLayer::EndPart(const std::shared_ptr<LayerRequest>& request,
                       absl::Status status) {
  {
    const base::MutexLock lock(&mutex_);
    // An error that is no full disk is the one to report.
    if (request->status.ok() ||
        (absl::IsResourceExhausted(request->status) && !status.ok())) {
      request->status = std::move(status);
    }
    --request->parts_left;
    if (request->parts_left != 0) return;
  }
  EndStep(request);
}

void CowLayer::EndStep(const std::shared_ptr<LayerRequest>& request) {
  if (!request->status.ok()) {
    if (absl::IsResourceExhausted(request->status)) {
      return Park(request, request->status);
    }
    return Finish(request, request->status);
  }
  switch (request->next) {
    case LayerStep::kWriteData:
      return WriteData(request);
    case LayerStep::kApplyToMap:
      return ApplyToMap(request);
    case LayerStep::kFinish:
      return Finish(request, absl::OkStatus());
  }
}

void CowLayer::Finish(const std::shared_ptr<LayerRequest>& request,
                      absl::Status status) {
  std::vector<std::shared_ptr<LayerRequest>> may_run;
  {
    const base::MutexLock lock(&mutex_);
    requests_.remove(request);
    if (request->unable) --unable_;
    for (auto it = requests_.begin(); waiting_ > 0 && it != requests_.end();
         ++it) {
      if ((*it)->running || !MayRunLocked(**it)) continue;
      (*it)->running = true;
      --waiting_;
      may_run.push_back(*it);
    }
  }
  // Before others run, so that completions come in the order of the requests.
  std::move(request->done)(std::move(status));
  for (const auto& next : may_run) Run(next);
  std::vector<DrainCompletion> drained;
  {
    const base::MutexLock lock(&mutex_);
    drained = in_flight_.End(request->number);
  }
  CallAll(std::move(drained));
  ReportParking();
}

}  // namespace catnap::disk
