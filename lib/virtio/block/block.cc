#include "virtio/block/block.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <utility>

#include "base/byte_order.h"

namespace catnap::virtio {
namespace {

// Feature bits (virtio 1.2, 5.2.3).
constexpr uint64_t kFeatureSegMax = uint64_t{1} << 2;
constexpr uint64_t kFeatureReadOnly = uint64_t{1} << 5;
constexpr uint64_t kFeatureBlockSize = uint64_t{1} << 6;
constexpr uint64_t kFeatureFlush = uint64_t{1} << 9;
constexpr uint64_t kFeatureTopology = uint64_t{1} << 10;
constexpr uint64_t kFeatureDiscard = uint64_t{1} << 13;
constexpr uint64_t kFeatureWriteZeroes = uint64_t{1} << 14;

constexpr uint16_t kQueueSize = 256;
// With a descriptor for the header and one for the status: 128 pieces.
constexpr uint32_t kMaxSegments = 126;

// struct virtio_blk_config (5.2.4) up to write_zeroes_may_unmap.
constexpr size_t kConfigBytes = 60;
constexpr size_t kCapacityAt = 0;
constexpr size_t kSegMaxAt = 12;
constexpr size_t kBlockSizeAt = 20;
constexpr size_t kPhysicalBlockAt = 24;  // log2 of logical blocks.
constexpr size_t kOptIoSizeAt = 28;
constexpr size_t kMaxDiscardSectorsAt = 36;
constexpr size_t kMaxDiscardSegAt = 40;
constexpr size_t kDiscardAlignmentAt = 44;
constexpr size_t kMaxWriteZeroesSectorsAt = 48;
constexpr size_t kMaxWriteZeroesSegAt = 52;
constexpr size_t kWriteZeroesMayUnmapAt = 56;

// The disk layers keep blocks of 4 KiB: what is not whole costs a copy.
constexpr uint8_t kPhysicalBlockExponent = 3;
constexpr uint32_t kBlockSectors = 1 << kPhysicalBlockExponent;
// Less than the disk can take at once, so that no request takes too long.
constexpr uint64_t kMaxZeroBytes = uint64_t{1} << 30;
static_assert(kMaxZeroBytes <= disk::kMaxZeroBytes);

// struct virtio_blk_req (5.2.6): le32 type, le32 reserved, le64 sector.
constexpr size_t kHeaderBytes = 16;
enum class RequestType : uint32_t {
  kIn = 0,
  kOut = 1,
  kFlush = 4,
  kGetId = 8,
  kDiscard = 11,
  kWriteZeroes = 13,
};
constexpr size_t kSerialBytes = 20;

// struct virtio_blk_discard_write_zeroes: le64 sector, le32 num_sectors, le32
// flags.
constexpr size_t kRangeBytes = 16;
constexpr uint32_t kUnmapFlag = 1;

// How long a guest waits that has used up its rate.
constexpr auto kRetry = std::chrono::milliseconds(10);
// Requests may be parked after parked ones were cancelled.
constexpr auto kCancelAgain = std::chrono::milliseconds(20);

uint64_t FeaturesOf(const disk::BlockIo& disk) {
  const uint64_t features =
      kFeatureSegMax | kFeatureBlockSize | kFeatureFlush | kFeatureTopology;
  return features | (disk.read_only() ? kFeatureReadOnly
                                      : kFeatureDiscard | kFeatureWriteZeroes);
}

std::optional<base::TokenBucket> Limit(double per_second) {
  if (per_second <= 0) return std::nullopt;
  return base::TokenBucket(per_second, std::max(per_second, 1.0));
}

}  // namespace

struct Block::Request {
  uint16_t head = 0;
  RequestType type{};
  uint8_t* status = nullptr;  // In guest memory.
  uint32_t written = 1;       // If all goes well, with the status.
  bool flush_after = false;
  uint64_t offset = 0;
  uint64_t length = 0;
  std::vector<iovec> buffers;
};

Block::Block(std::shared_ptr<disk::BlockIo> disk, BlockOptions options,
             memory::GuestMemory* memory)
    : VirtioDevice({.id = DeviceId::kBlock,
                    .features = FeaturesOf(*disk),
                    .queue_sizes = {kQueueSize}},
                   memory),
      disk_(std::move(disk)),
      options_(std::move(options)),
      capacity_(disk_->capacity()),
      bytes_(Limit(options_.bytes_per_second)),
      operations_(Limit(options_.operations_per_second)) {}

Block::~Block() {
  const base::MutexLock lock(&mutex_);
  WaitForDiskLocked();
}

void Block::CapacityChanged() {
  const base::MutexLock lock(&mutex_);
  capacity_ = disk_->capacity();
  ChangeConfigLocked();
}

void Block::Resize(uint64_t new_capacity, disk::BlockCompletion done) {
  {
    const base::MutexLock lock(&mutex_);
    ++in_flight_;  // The device stays until the disk has grown.
  }
  disk_->Resize(new_capacity,
                [this, done = std::move(done)](absl::Status status) mutable {
                  {
                    const base::MutexLock lock(&mutex_);
                    if (status.ok()) {
                      capacity_ = disk_->capacity();
                      ChangeConfigLocked();
                    }
                    EndOneLocked();
                  }
                  std::move(done)(std::move(status));
                });
}

bool Block::holds_requests() const {
  const base::MutexLock lock(&mutex_);
  return !held_back_.empty();
}

std::vector<uint8_t> Block::ConfigLocked() const {
  constexpr auto kMaxZeroSectors =
      static_cast<uint32_t>(kMaxZeroBytes / disk::kSectorBytes);
  std::vector<uint8_t> config(kConfigBytes, 0);
  base::StoreLe<uint64_t>(&config[kCapacityAt], capacity_ / disk::kSectorBytes);
  base::StoreLe<uint32_t>(&config[kSegMaxAt], kMaxSegments);
  base::StoreLe<uint32_t>(&config[kBlockSizeAt], disk::kSectorBytes);
  config[kPhysicalBlockAt] = kPhysicalBlockExponent;
  base::StoreLe<uint32_t>(&config[kOptIoSizeAt], kBlockSectors);
  if (disk_->read_only()) return config;
  base::StoreLe<uint32_t>(&config[kMaxDiscardSectorsAt], kMaxZeroSectors);
  base::StoreLe<uint32_t>(&config[kMaxDiscardSegAt], 1);
  base::StoreLe<uint32_t>(&config[kDiscardAlignmentAt], kBlockSectors);
  base::StoreLe<uint32_t>(&config[kMaxWriteZeroesSectorsAt], kMaxZeroSectors);
  base::StoreLe<uint32_t>(&config[kMaxWriteZeroesSegAt], 1);
  config[kWriteZeroesMayUnmapAt] = 1;
  return config;
}

bool Block::WantsLocked(size_t /*index*/) {
  // Only a driver that makes a buffer available again before it came back gets
  // further than the queue is long.
  if (in_flight_ >= kQueueSize) {
    stalled_ = true;
    return false;
  }
  if (!bytes_.has_value() && !operations_.has_value()) return true;
  const auto now = std::chrono::steady_clock::now();
  if ((!bytes_.has_value() || bytes_->Has(1, now)) &&
      (!operations_.has_value() || operations_->Has(1, now))) {
    return true;
  }
  KickAtLocked(now + kRetry);
  return false;
}

void Block::HandleLocked(size_t index, const Chain& chain) {
  if (operations_.has_value()) operations_->Take(1);
  if (chain.writable_bytes() == 0) {
    // There is no place to say what is wrong.
    PushLocked(index, chain.head(), 0);
    return;
  }
  const iovec& last = chain.writable().back();
  uint8_t* const status =
      static_cast<uint8_t*>(last.iov_base) + (last.iov_len - 1);
  std::array<uint8_t, kHeaderBytes> header;
  Result result = Result::kIoError;
  uint32_t written = 1;
  std::shared_ptr<Request> request;
  if (chain.CopyOut(0, header) == header.size()) {
    const auto type =
        static_cast<RequestType>(base::LoadLe<uint32_t>(header.data()));
    const auto sector = base::LoadLe<uint64_t>(&header[8]);
    switch (type) {
      case RequestType::kIn:
      case RequestType::kOut:
        result =
            TransferLocked(chain, type == RequestType::kOut, sector, &request);
        break;
      case RequestType::kFlush:
        request = std::make_shared<Request>();
        break;
      case RequestType::kGetId: {
        std::array<uint8_t, kSerialBytes> serial{};
        std::memcpy(serial.data(), options_.serial.data(),
                    std::min(options_.serial.size(), serial.size()));
        if (chain.writable_bytes() <= serial.size()) break;
        written += static_cast<uint32_t>(chain.CopyIn(0, serial));
        result = Result::kOk;
        break;
      }
      case RequestType::kDiscard:
      case RequestType::kWriteZeroes:
        result = ZeroLocked(chain, type == RequestType::kDiscard, &request);
        break;
      default:
        result = Result::kUnsupported;
        break;
    }
    if (request != nullptr) {
      request->head = chain.head();
      request->type = type;
      request->status = status;
      to_start_.push_back(std::move(request));
      ++in_flight_;
      return;
    }
  }
  *status = static_cast<uint8_t>(result);
  PushLocked(index, chain.head(), written);
}

bool Block::IsRangeLocked(uint64_t sector, uint64_t length,
                          uint64_t max_length) const {
  const uint64_t sectors = capacity_ / disk::kSectorBytes;
  return length > 0 && length <= max_length &&
         length % disk::kSectorBytes == 0 && sector <= sectors &&
         length / disk::kSectorBytes <= sectors - sector;
}

Block::Result Block::TransferLocked(const Chain& chain, bool write,
                                    uint64_t sector,
                                    std::shared_ptr<Request>* request) {
  const uint64_t length = write ? chain.readable_bytes() - kHeaderBytes
                                : uint64_t{chain.writable_bytes()} - 1;
  if (write && disk_->read_only()) return Result::kIoError;
  if (!IsRangeLocked(sector, length, disk::kMaxTransferBytes)) {
    return Result::kIoError;
  }
  // What is not there yet is owed: no single request is too large.
  if (bytes_.has_value()) bytes_->Take(static_cast<double>(length));
  *request = std::make_shared<Request>();
  (*request)->offset = sector * disk::kSectorBytes;
  if (write) {
    AppendPart(chain.readable(), kHeaderBytes, length, &(*request)->buffers);
    // A driver that cannot flush expects that nothing needs it (5.2.6.2).
    (*request)->flush_after = (features_locked() & kFeatureFlush) == 0;
  } else {
    AppendPart(chain.writable(), 0, length, &(*request)->buffers);
    (*request)->written += static_cast<uint32_t>(length);
  }
  return Result::kOk;
}

Block::Result Block::ZeroLocked(const Chain& chain, bool discard,
                                std::shared_ptr<Request>* request) {
  const uint64_t feature = discard ? kFeatureDiscard : kFeatureWriteZeroes;
  if ((features_locked() & feature) == 0) return Result::kUnsupported;
  std::array<uint8_t, kRangeBytes> range;
  if (chain.readable_bytes() != kHeaderBytes + range.size() ||
      chain.CopyOut(kHeaderBytes, range) != range.size()) {
    return Result::kIoError;
  }
  const auto sector = base::LoadLe<uint64_t>(range.data());
  const uint64_t length =
      base::LoadLe<uint32_t>(&range[8]) * uint64_t{disk::kSectorBytes};
  const auto flags = base::LoadLe<uint32_t>(&range[12]);
  if ((flags & ~(discard ? 0 : kUnmapFlag)) != 0) return Result::kUnsupported;
  if (!IsRangeLocked(sector, length, kMaxZeroBytes)) return Result::kIoError;
  // The disk unmaps what it can in any case, which the flag only allows, and
  // the range reads as zeroes afterwards.
  *request = std::make_shared<Request>();
  (*request)->offset = sector * disk::kSectorBytes;
  (*request)->length = length;
  (*request)->flush_after = (features_locked() & kFeatureFlush) == 0;
  return Result::kOk;
}

void Block::AfterServing() {
  std::vector<std::shared_ptr<Request>> requests;
  {
    const base::MutexLock lock(&mutex_);
    requests.swap(to_start_);
  }
  for (const auto& request : requests) Start(request);
}

void Block::Start(const std::shared_ptr<Request>& request) {
  // The completion may come, on another thread, before the call has looked at
  // all of the buffers: `request` is held here and there.
  auto done = [this, request](const absl::Status& status) {
    if (!status.ok() || !request->flush_after) {
      Complete(request, status);
      return;
    }
    disk_->Flush(
        [this, request](const absl::Status& end) { Complete(request, end); });
  };
  switch (request->type) {
    case RequestType::kIn:
      disk_->Read(request->buffers, request->offset, std::move(done));
      break;
    case RequestType::kOut:
      disk_->Write(request->buffers, request->offset, std::move(done));
      break;
    case RequestType::kDiscard:
      disk_->Discard(request->offset, request->length, std::move(done));
      break;
    case RequestType::kWriteZeroes:
      disk_->WriteZeroes(request->offset, request->length, std::move(done));
      break;
    case RequestType::kFlush:
    case RequestType::kGetId:  // Never a request.
      disk_->Flush(std::move(done));
      break;
  }
}

void Block::Complete(const std::shared_ptr<Request>& request,
                     const absl::Status& status) {
  const base::MutexLock lock(&mutex_);
  if (quiescing_ && absl::IsCancelled(status)) {
    held_back_.push_back(request);
  } else {
    *request->status =
        static_cast<uint8_t>(status.ok() ? Result::kOk : Result::kIoError);
    PushLocked(0, request->head, status.ok() ? request->written : 1);
    InterruptLocked(0);
  }
  EndOneLocked();
}

void Block::EndOneLocked() {
  --in_flight_;
  if (stalled_) {
    stalled_ = false;
    KickAtLocked(std::chrono::steady_clock::now());
  }
  // With the mutex held: the device may be destroyed once it is free.
  if (in_flight_ == 0) idle_.NotifyAll();
}

void Block::DrainLocked() {
  quiescing_ = active_locked();
  WaitForDiskLocked();
  quiescing_ = false;
}

void Block::ResetLocked() { held_back_.clear(); }

void Block::ResumeLocked() {
  in_flight_ += held_back_.size();
  to_start_.insert(to_start_.end(), held_back_.begin(), held_back_.end());
  held_back_.clear();
}

void Block::WaitForDiskLocked() {
  while (in_flight_ > 0) {
    if (options_.cancel_parked) {
      mutex_.Unlock();
      options_.cancel_parked();
      mutex_.Lock();
      if (in_flight_ == 0) break;
      idle_.WaitUntil(&mutex_, std::chrono::steady_clock::now() + kCancelAgain);
    } else {
      idle_.Wait(&mutex_);
    }
  }
}

}  // namespace catnap::virtio
