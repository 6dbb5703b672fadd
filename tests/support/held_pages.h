#ifndef CATNAP_TESTS_SUPPORT_HELD_PAGES_H_
#define CATNAP_TESTS_SUPPORT_HELD_PAGES_H_

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <stop_token>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "base/page_range.h"
#include "memory/memory_file.h"
#include "memory/memory_image.h"
#include "memory/pager.h"

namespace catnap::test {

// A guest's memory whose pages come one by one as they are touched, from bytes
// that are known; a store that stalls, or is broken, for some of them. Who
// waits for all gets all of them at once. Whoever destroys the memory lets
// those come before that are held.
//
// Thread-safe.
class HeldPages {
 public:
  // Whole pages; `bytes` may be shorter, the rest is zeros.
  explicit HeldPages(std::vector<uint8_t> bytes)
      : state_(std::make_shared<State>(std::move(bytes))) {}

  // The page with this offset comes only after Release().
  void Hold(uint64_t offset) {
    const base::MutexLock lock(&state_->mutex);
    state_->held.insert(PageOf(offset));
  }
  // All that are held come, or cannot be read.
  void Release(absl::Status why_not = absl::OkStatus()) {
    const base::MutexLock lock(&state_->mutex);
    state_->why_not = std::move(why_not);
    state_->released = true;
    state_->changed.NotifyAll();
  }
  // Until the store is asked for a page that is held. False: by `deadline`
  // nobody had asked.
  bool WaitUntilAsked(std::chrono::steady_clock::time_point deadline) {
    const base::MutexLock lock(&state_->mutex);
    while (!state_->asked) {
      if (!state_->changed.WaitUntil(&state_->mutex, deadline)) break;
    }
    return state_->asked;
  }
  // Until a file that is filled from here is lost. False: it is not.
  static bool WaitUntilLost(const memory::MemoryFile& file,
                            std::chrono::steady_clock::time_point deadline) {
    while (file.pager()->status().ok()) {
      if (std::chrono::steady_clock::now() > deadline) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return true;
  }
  // Pages that came so far.
  uint64_t brought() const {
    const base::MutexLock lock(&state_->mutex);
    return state_->brought;
  }

  // A file of `size` bytes that is filled from here. Errors: as
  // MemoryFile::FillOnDemand().
  absl::StatusOr<std::shared_ptr<memory::MemoryFile>> NewFile(uint64_t size) {
    auto file = memory::MemoryFile::Create("held", size);
    if (!file.ok()) return file.status();
    const absl::Status status = (*file)->FillOnDemand(
        std::make_unique<Supply>(state_, size), /*fills=*/false);
    if (!status.ok()) return status;
    return std::shared_ptr<memory::MemoryFile>(*std::move(file));
  }
  static absl::StatusOr<std::shared_ptr<const memory::MemoryImage>> ImageOf(
      const std::shared_ptr<memory::MemoryFile>& file, uint64_t size) {
    return memory::MemoryImage::Create(
        size, {file}, {{.offset = 0, .length = size, .file = 0}});
  }

 private:
  struct State {
    explicit State(std::vector<uint8_t> content) : bytes(std::move(content)) {}

    const std::vector<uint8_t> bytes;
    base::Mutex mutex;
    base::CondVar changed;
    std::set<uint64_t> held ABSL_GUARDED_BY(mutex);
    bool asked ABSL_GUARDED_BY(mutex) = false;
    bool released ABSL_GUARDED_BY(mutex) = false;
    absl::Status why_not ABSL_GUARDED_BY(mutex);
    uint64_t brought ABSL_GUARDED_BY(mutex) = 0;
  };

  class Supply final : public memory::PageSupply {
   public:
    Supply(std::shared_ptr<State> state, uint64_t size)
        : state_(std::move(state)), size_(size) {}

    absl::StatusOr<bool> Bring(uint64_t offset, memory::PutPages put) override {
      {
        const base::MutexLock lock(&state_->mutex);
        if (state_->held.contains(offset)) {
          state_->asked = true;
          state_->changed.NotifyAll();
          while (!state_->released) state_->changed.Wait(&state_->mutex);
          if (!state_->why_not.ok()) return state_->why_not;
        }
        ++state_->brought;
      }
      const absl::Status status = PutPage(offset, put);
      if (!status.ok()) return status;
      return true;
    }
    // Nobody asks for these.
    absl::StatusOr<bool> BringMore(memory::PutPages /*put*/,
                                   const std::stop_token& /*stop*/) override {
      return absl::CancelledError("one page at a time");
    }
    absl::Status BringAll(
        memory::PutPages put, const std::stop_token& /*stop*/,
        std::optional<std::chrono::steady_clock::time_point> /*deadline*/)
        override {
      for (uint64_t at = 0; at < size_; at += base::kPageBytes) {
        absl::Status status = PutPage(at, put);
        if (!status.ok()) return status;
      }
      return absl::OkStatus();
    }

   private:
    absl::Status PutPage(uint64_t offset, memory::PutPages put) const {
      const std::vector<uint8_t>& bytes = state_->bytes;
      std::vector<uint8_t> page(base::kPageBytes);
      if (offset < bytes.size()) {
        std::copy_n(bytes.begin() + static_cast<std::ptrdiff_t>(offset),
                    std::min(page.size(), bytes.size() - offset), page.begin());
      }
      return put({.offset = offset, .length = page.size()}, page.data());
    }

    const std::shared_ptr<State> state_;
    const uint64_t size_;
  };

  static uint64_t PageOf(uint64_t offset) {
    return offset & ~(base::kPageBytes - 1);
  }

  const std::shared_ptr<State> state_;
};

}  // namespace catnap::test

#endif  // CATNAP_TESTS_SUPPORT_HELD_PAGES_H_
