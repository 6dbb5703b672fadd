#ifndef CATNAP_LIB_DISK_LAYER_SEAT_H_
#define CATNAP_LIB_DISK_LAYER_SEAT_H_

#include <memory>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "base/mutex.h"
#include "disk/block_io.h"

namespace catnap::disk {

// The place of a frozen layer below another: what lies there can be replaced by
// a disk with the same content while it is read. Requests that are in flight
// then end on the old one, which they keep alive.
class LayerSeat final : public BlockIo {
 public:
  explicit LayerSeat(std::shared_ptr<BlockIo> disk)
      : capacity_(disk->capacity()), id_(disk->id()), disk_(std::move(disk)) {}

  // REQUIRES: the same id, size and content.
  void Replace(std::shared_ptr<BlockIo> disk) {
    const base::MutexLock lock(&mutex_);
    disk_.swap(disk);
  }

  uint64_t capacity() const override { return capacity_; }
  // Nobody may write by way of the seat. Who makes one for a layer that is not
  // frozen yet lets nobody read before it is.
  bool read_only() const override { return true; }
  DiskId id() const override { return id_; }
  void Read(std::span<const iovec> buffers, uint64_t offset,
            BlockCompletion done) override {
    disk()->Read(buffers, offset, std::move(done));
  }
  // These are the disk's to refuse.
  void Write(std::span<const iovec> buffers, uint64_t offset,
             BlockCompletion done) override {
    disk()->Write(buffers, offset, std::move(done));
  }
  void Flush(BlockCompletion done) override { disk()->Flush(std::move(done)); }
  void Discard(uint64_t offset, uint64_t length,
               BlockCompletion done) override {
    disk()->Discard(offset, length, std::move(done));
  }
  void WriteZeroes(uint64_t offset, uint64_t length,
                   BlockCompletion done) override {
    disk()->WriteZeroes(offset, length, std::move(done));
  }
  void Resize(uint64_t new_capacity, BlockCompletion done) override {
    disk()->Resize(new_capacity, std::move(done));
  }
  void Drain(DrainCompletion done) override { disk()->Drain(std::move(done)); }

 private:
  std::shared_ptr<BlockIo> disk() const {
    const base::MutexLock lock(&mutex_);
    return disk_;
  }

  const uint64_t capacity_;
  const DiskId id_;
  mutable base::Mutex mutex_;
  std::shared_ptr<BlockIo> disk_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace catnap::disk

#endif  // CATNAP_LIB_DISK_LAYER_SEAT_H_
