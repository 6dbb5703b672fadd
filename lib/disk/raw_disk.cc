#include "disk/raw_disk.h"

#include <algorithm>
#include <utility>

#include "base/checked.h"
#include "base/status.h"
#include "disk/buffers.h"

namespace catnap::disk {
namespace {

// Zeroes that one write brings where holes cannot be punched.
constexpr uint64_t kZeroPieceBytes = uint64_t{4} << 20;

}  // namespace

absl::StatusOr<std::shared_ptr<RawDisk>> RawDisk::Create(
    std::shared_ptr<FileIo> file, const RawDiskOptions& options) {
  CATNAP_ASSIGN_OR_RETURN(const uint64_t size, file->Size());
  if (!base::IsAligned<uint64_t>(size, kSectorBytes)) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "the disk image has {} bytes, must be a multiple of {}", size,
                 kSectorBytes);
  }
  return std::shared_ptr<RawDisk>(new RawDisk(std::move(file), options, size));
}

uint64_t RawDisk::capacity() const {
  const base::MutexLock lock(&mutex_);
  return capacity_;
}

BlockCompletion RawDisk::Begin(BlockCompletion done) {
  const base::MutexLock lock(&mutex_);
  return [self = shared_from_this(), number = in_flight_.Begin(),
          done = std::move(done)](absl::Status status) mutable {
    std::move(done)(std::move(status));
    std::vector<DrainCompletion> drained;
    {
      const base::MutexLock end_lock(&self->mutex_);
      drained = self->in_flight_.End(number);
    }
    for (DrainCompletion& call : drained) std::move(call)();
  };
}

void RawDisk::Fail(absl::Status status, BlockCompletion done) {
  file_->Post([status = std::move(status), done = std::move(done)]() mutable {
    std::move(done)(std::move(status));
  });
}

absl::Status RawDisk::CheckWrite(uint64_t offset, uint64_t length,
                                 uint64_t max_length) const {
  if (options_.read_only) {
    return absl::FailedPreconditionError("the disk is read-only");
  }
  return CheckRange(offset, length, max_length, capacity());
}

void RawDisk::Read(std::span<const iovec> buffers, uint64_t offset,
                   BlockCompletion done) {
  done = Begin(std::move(done));
  const uint64_t length = TotalBytes(buffers);
  if (absl::Status status =
          CheckRange(offset, length, kMaxTransferBytes, capacity());
      !status.ok()) {
    return Fail(std::move(status), std::move(done));
  }
  file_->Read(buffers, offset,
              [copy = Buffers(buffers.begin(), buffers.end()), length,
               done = std::move(done)](absl::StatusOr<size_t> read) mutable {
                if (read.ok() && *read < length) {
                  FillZero(Slice(copy, *read, length - *read));
                }
                std::move(done)(read.status());
              });
}

void RawDisk::Write(std::span<const iovec> buffers, uint64_t offset,
                    BlockCompletion done) {
  done = Begin(std::move(done));
  if (absl::Status status =
          CheckWrite(offset, TotalBytes(buffers), kMaxTransferBytes);
      !status.ok()) {
    return Fail(std::move(status), std::move(done));
  }
  file_->Write(
      buffers, offset,
      [done = std::move(done)](const absl::StatusOr<size_t>& n) mutable {
        std::move(done)(n.status());
      });
}

void RawDisk::Flush(BlockCompletion done) {
  done = Begin(std::move(done));
  if (options_.read_only) return Fail(absl::OkStatus(), std::move(done));
  file_->Datasync(
      [done = std::move(done)](const absl::StatusOr<size_t>& n) mutable {
        std::move(done)(n.status());
      });
}

void RawDisk::Discard(uint64_t offset, uint64_t length, BlockCompletion done) {
  WriteZeroes(offset, length, std::move(done));
}

void RawDisk::WriteZeroes(uint64_t offset, uint64_t length,
                          BlockCompletion done) {
  done = Begin(std::move(done));
  if (absl::Status status = CheckWrite(offset, length, kMaxZeroBytes);
      !status.ok() || length == 0) {
    return Fail(std::move(status), std::move(done));
  }
  file_->PunchHole(
      offset, length,
      [self = shared_from_this(), offset, length,
       done = std::move(done)](const absl::StatusOr<size_t>& n) mutable {
        if (!absl::IsUnimplemented(n.status())) {
          return std::move(done)(n.status());
        }
        self->WriteZeroPieces(offset, offset + length, std::move(done));
      });
}

void RawDisk::WriteZeroPieces(uint64_t at, uint64_t end, BlockCompletion done) {
  const uint64_t length = std::min(end - at, kZeroPieceBytes);
  const Buffers zeroes = ZeroBuffers(length);
  file_->Write(
      zeroes, at,
      [self = shared_from_this(), at = at + length, end,
       done = std::move(done)](const absl::StatusOr<size_t>& n) mutable {
        if (!n.ok() || at == end) return std::move(done)(n.status());
        self->WriteZeroPieces(at, end, std::move(done));
      });
}

void RawDisk::Resize(uint64_t new_capacity, BlockCompletion done) {
  done = Begin(std::move(done));
  const uint64_t old = capacity();
  if (absl::Status status = CheckWrite(0, 0, 0); !status.ok()) {
    return Fail(std::move(status), std::move(done));
  }
  if (new_capacity < old ||
      !base::IsAligned<uint64_t>(new_capacity, kSectorBytes)) {
    return Fail(Error(absl::StatusCode::kInvalidArgument,
                      "the new size is {} bytes, must be a multiple of {} and "
                      "at least {}",
                      new_capacity, kSectorBytes, old),
                std::move(done));
  }
  if (absl::Status status = file_->SetSize(new_capacity); !status.ok()) {
    return Fail(std::move(status), std::move(done));
  }
  file_->Datasync(
      [self = shared_from_this(), new_capacity,
       done = std::move(done)](const absl::StatusOr<size_t>& n) mutable {
        if (n.ok()) {
          const base::MutexLock lock(&self->mutex_);
          self->capacity_ = std::max(self->capacity_, new_capacity);
        }
        std::move(done)(n.status());
      });
}

void RawDisk::Drain(DrainCompletion done) {
  // By way of the loop, so that this too is never called inside the call.
  file_->Post([self = shared_from_this(), done = std::move(done)]() mutable {
    std::vector<DrainCompletion> drained;
    {
      const base::MutexLock lock(&self->mutex_);
      drained = self->in_flight_.Wait(std::move(done));
    }
    for (DrainCompletion& call : drained) std::move(call)();
  });
}

}  // namespace catnap::disk
