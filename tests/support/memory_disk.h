#ifndef CATNAP_TESTS_SUPPORT_MEMORY_DISK_H_
#define CATNAP_TESTS_SUPPORT_MEMORY_DISK_H_

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "disk/block_io.h"

namespace catnap::test {

// A disk in memory that completes inside the calls or, while it holds, when it
// is told to. Whoever breaks the contract of BlockIo ends the process: the
// devices above check what the guest asks for.
//
// Thread-safe, but for what says otherwise.
class MemoryDisk final : public disk::BlockIo {
 public:
  explicit MemoryDisk(uint64_t capacity, bool read_only = false)
      : bytes_(capacity, '\0'), read_only_(read_only) {}

  // The content. While no request is in flight.
  std::string& bytes() { return bytes_; }

  // The same, at any time.
  std::string Content() const {
    const base::MutexLock lock(&mutex_);
    return bytes_;
  }

  // Requests wait for Release(), which runs them on its thread, the last one
  // first.
  void Hold() {
    const base::MutexLock lock(&mutex_);
    hold_ = true;
  }
  void Release() {
    std::deque<std::function<void()>> held;
    {
      const base::MutexLock lock(&mutex_);
      hold_ = false;
      held.swap(held_);
    }
    for (auto& run : held) run();
  }
  size_t held() const {
    const base::MutexLock lock(&mutex_);
    return held_.size();
  }
  // How requests end from now on, without effect unless OK.
  void EndWith(absl::Status status) {
    const base::MutexLock lock(&mutex_);
    end_ = std::move(status);
  }
  int flushes() const { return flushes_; }

  uint64_t capacity() const override {
    const base::MutexLock lock(&mutex_);
    return bytes_.size();
  }
  bool read_only() const override { return read_only_; }
  disk::DiskId id() const override { return {}; }

  void Read(std::span<const iovec> buffers, uint64_t offset,
            disk::BlockCompletion done) override {
    Check(offset, Length(buffers), disk::kMaxTransferBytes, false);
    const std::vector<iovec> copy(buffers.begin(), buffers.end());
    Run(
        [this, copy, offset] {
          uint64_t at = offset;
          for (const iovec& buffer : copy) {
            std::memcpy(buffer.iov_base, &bytes_[at], buffer.iov_len);
            at += buffer.iov_len;
          }
        },
        std::move(done));
  }
  void Write(std::span<const iovec> buffers, uint64_t offset,
             disk::BlockCompletion done) override {
    Check(offset, Length(buffers), disk::kMaxTransferBytes, true);
    const std::vector<iovec> copy(buffers.begin(), buffers.end());
    Run(
        [this, copy, offset] {
          uint64_t at = offset;
          for (const iovec& buffer : copy) {
            std::memcpy(&bytes_[at], buffer.iov_base, buffer.iov_len);
            at += buffer.iov_len;
          }
        },
        std::move(done));
  }
  void Flush(disk::BlockCompletion done) override {
    Run([this] { ++flushes_; }, std::move(done));
  }
  void Discard(uint64_t offset, uint64_t length,
               disk::BlockCompletion done) override {
    WriteZeroes(offset, length, std::move(done));
  }
  void WriteZeroes(uint64_t offset, uint64_t length,
                   disk::BlockCompletion done) override {
    Check(offset, length, disk::kMaxZeroBytes, true);
    Run([this, offset, length] { std::memset(&bytes_[offset], 0, length); },
        std::move(done));
  }
  void Resize(uint64_t new_capacity, disk::BlockCompletion done) override {
    Run([this, new_capacity] { bytes_.resize(new_capacity); }, std::move(done));
  }
  // No device drains its disk.
  void Drain(disk::DrainCompletion /*done*/) override { std::abort(); }

 private:
  static uint64_t Length(std::span<const iovec> buffers) {
    uint64_t length = 0;
    for (const iovec& buffer : buffers) length += buffer.iov_len;
    return length;
  }
  void Check(uint64_t offset, uint64_t length, uint64_t max_length,
             bool write) const {
    const uint64_t size = capacity();
    if (offset % disk::kSectorBytes != 0 || length % disk::kSectorBytes != 0 ||
        length > max_length || offset > size || length > size - offset ||
        (write && read_only_)) {
      std::abort();
    }
  }
  void Run(std::function<void()> effect, disk::BlockCompletion done) {
    // std::function wants what it holds to be copyable.
    auto shared = std::make_shared<disk::BlockCompletion>(std::move(done));
    const auto run = [this, effect = std::move(effect), shared] {
      absl::Status end;
      {
        const base::MutexLock lock(&mutex_);
        end = end_;
        if (end.ok()) effect();
      }
      std::move (*shared)(end);
    };
    {
      const base::MutexLock lock(&mutex_);
      if (hold_) {
        held_.push_front(run);
        return;
      }
    }
    run();
  }

  std::string bytes_;  // Changed with mutex_ held.
  const bool read_only_;
  std::atomic<int> flushes_{0};
  mutable base::Mutex mutex_;
  bool hold_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status end_ ABSL_GUARDED_BY(mutex_);
  std::deque<std::function<void()>> held_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace catnap::test

#endif  // CATNAP_TESTS_SUPPORT_MEMORY_DISK_H_
