#ifndef CATNAP_LIB_VIRTIO_BLOCK_BLOCK_H_
#define CATNAP_LIB_VIRTIO_BLOCK_BLOCK_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "base/token_bucket.h"
#include "disk/block_io.h"
#include "virtio/virtio_device.h"

namespace catnap::virtio {

struct BlockOptions {
  // What the guest sees as the disk's serial number: the first 20 bytes.
  std::string serial{};
  // What the guest gets in the long run, and at most a second's worth of it at
  // once; a request is started when any of it is left. 0: no limit.
  double bytes_per_second = 0;
  double operations_per_second = 0;
  // Ends requests that the disk holds back, with CANCELLED
  // (DiskStack::CancelParked()). Called with no lock held, maybe several times,
  // when the driver resets the device, or it is quiesced or destroyed: all
  // these wait for all requests. The guest sees no error because of Quiesce():
  // what that cancelled is held back until Resume().
  std::function<void()> cancel_parked{};
};

// A disk (virtio 1.2, 5.2) with one queue. Requests are started as they come
// and end in any order.
//
// Quiesce(), the driver's reset and the destructor wait for the completions of
// the disk: none of them on a thread that these need.
//
// Memory: for each of at most 256 requests in flight, under 200 bytes, 16 for
// each piece of its buffer (Chain::kMaxPieces), and what the disk needs.
class Block final : public VirtioDevice {
 public:
  Block(std::shared_ptr<disk::BlockIo> disk, BlockOptions options,
        memory::GuestMemory* memory);
  ~Block() override;

  // The disk was resized: tells the driver.
  void CapacityChanged();
  // Grows the disk and tells the driver. Ends as disk::BlockIo::Resize() does.
  void Resize(uint64_t new_capacity, disk::BlockCompletion done);

  // After Quiesce(): whether there are requests that the disk had parked, for
  // want of room on the host. Resume() starts them anew. SaveState() knows
  // nothing of them: who saves now loses them.
  bool holds_requests() const override;

 private:
  // A request between HandleLocked() and its completion.
  struct Request;
  // The status byte (5.2.6).
  enum class Result : uint8_t { kOk = 0, kIoError = 1, kUnsupported = 2 };

  std::vector<uint8_t> ConfigLocked() const override
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool WantsLocked(size_t index) override ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void HandleLocked(size_t index, const Chain& chain) override
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void DrainLocked() override ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ResetLocked() override ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ResumeLocked() override ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AfterServing() override;
  void SaveOwnLocked(state::StateEncoder& /*out*/) const override {}
  absl::Status LoadOwnLocked(state::StateDecoder /*in*/) override {
    return absl::OkStatus();
  }

  // Whether the disk has such a range, which is not empty.
  bool IsRangeLocked(uint64_t sector, uint64_t length,
                     uint64_t max_length) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Each answers a buffer at once, or makes it a request and answers kOk.
  Result TransferLocked(const Chain& chain, bool write, uint64_t sector,
                        std::shared_ptr<Request>* request)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Result ZeroLocked(const Chain& chain, bool discard,
                    std::shared_ptr<Request>* request)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void WaitForDiskLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // One of those in flight has ended.
  void EndOneLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  void Start(const std::shared_ptr<Request>& request);
  void Complete(const std::shared_ptr<Request>& request,
                const absl::Status& status);

  const std::shared_ptr<disk::BlockIo> disk_;
  const BlockOptions options_;
  uint64_t capacity_ ABSL_GUARDED_BY(mutex_);  // As the driver was told.
  // Of what the guest gets, where that is limited.
  std::optional<base::TokenBucket> bytes_ ABSL_GUARDED_BY(mutex_);
  std::optional<base::TokenBucket> operations_ ABSL_GUARDED_BY(mutex_);
  // Taken from the queue, and to be started when the mutex is free: the disk
  // may complete a request inside the call that starts it.
  std::vector<std::shared_ptr<Request>> to_start_ ABSL_GUARDED_BY(mutex_);
  size_t in_flight_ ABSL_GUARDED_BY(mutex_) = 0;  // With those in to_start_.
  bool quiescing_ ABSL_GUARDED_BY(mutex_) = false;
  // Cancelled by that, to be started again.
  std::vector<std::shared_ptr<Request>> held_back_ ABSL_GUARDED_BY(mutex_);
  bool stalled_ ABSL_GUARDED_BY(mutex_) = false;  // By too many in flight.
  base::CondVar idle_;                            // in_flight_ became 0.
};

}  // namespace catnap::virtio

#endif  // CATNAP_LIB_VIRTIO_BLOCK_BLOCK_H_
