#ifndef CATNAP_LIB_MEMORY_PAGER_H_
#define CATNAP_LIB_MEMORY_PAGER_H_

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "base/page_range.h"
#include "base/thread.h"
#include "base/unique_fd.h"
#include "memory/page_set.h"
#include "memory/page_waiter.h"
#include "memory/userfault.h"

namespace catnap::memory {

// Takes pages that were read: their place in RAM, and their bytes. Pages that
// are there already stay. Thread-safe.
using PutPages =
    absl::FunctionRef<absl::Status(base::PageRange, const uint8_t*)>;

// Where the pages of a memory file come from while a pager fills it. Whatever
// it puts was checked before. Thread-safe.
class PageSupply {
 public:
  virtual ~PageSupply() = default;
  // The pages that are in the file before it is filled.
  virtual std::vector<base::PageRange> There() const { return {}; }
  // Puts the page at `offset` unless it is there, and what comes with it at no
  // more cost. False: it has no such page. Blocks for a read at most.
  virtual absl::StatusOr<bool> Bring(uint64_t offset, PutPages put) = 0;
  // Puts some pages that nobody asked for yet, those that are wanted soon
  // first. False: all are there. Never two of these calls at once, and on one
  // thread, which has a low priority: takes no lock that the others take.
  // Errors: CANCELLED, soon after `stop`.
  virtual absl::StatusOr<bool> BringMore(PutPages put,
                                         const std::stop_token& stop) = 0;
  // Puts all pages as fast as can be. Blocks. Errors: CANCELLED, soon after
  // `stop`; DEADLINE_EXCEEDED.
  virtual absl::Status BringAll(
      PutPages put, const std::stop_token& stop,
      std::optional<std::chrono::steady_clock::time_point> deadline) = 0;
};

// Fills a memory file while guests run over it: whoever touches a page that is
// missing, in the guest, in the kernel or in this process, waits until the
// pager's thread has put it into the file. It comes there as a page of the
// file, by the alias, so that all guests share it and it is nobody's own. A
// page that came stays.
//
// A thread that others need, too, does not touch what is missing: it asks
// before (BringSoon()), and goes on with something else.
//
// When the file is full, userfaultfd and threads go. When the supply fails, no
// page is missing any more, but those that were hold zeros: whoever uses the
// memory must learn of the failure by its callback and end its guest; nobody
// waits for ever.
//
// Thread-safe. Takes no lock that is held across an access to guest memory,
// and accesses none.
class Pager {
 public:
  // Learns that the memory is lost, and why. Called once at most, on the
  // pager's thread, before anybody sees zeros: must not block, nor let go of
  // the memory.
  using OnLost = std::function<void(const absl::Status&)>;

  struct Options {
    // The file's alias, which nobody touches from now on until `on_full`.
    std::span<uint8_t> alias{};
    std::unique_ptr<PageSupply> supply{};
    // Called on the pager's thread when every page is there. May be null.
    std::function<void()> on_full{};
  };

  // Brings what is asked for, until StartFilling().
  // Errors: FAILED_PRECONDITION, userfaultfd is refused here;
  // RESOURCE_EXHAUSTED, threads or descriptors.
  static absl::StatusOr<std::unique_ptr<Pager>> Start(Options options);
  // Waits for a read that is under way. REQUIRES: nothing is attached.
  ~Pager();
  Pager(const Pager&) = delete;
  Pager& operator=(const Pager&) = delete;

  // A mapping whose faults are served, for as long as this lives. Goes before
  // the mapping does, but what is mapped over it may be another file by then.
  class Attachment {
   public:
    Attachment() = default;
    Attachment(Attachment&& other) noexcept
        : pager_(std::exchange(other.pager_, nullptr)),
          start_(other.start_),
          range_(other.range_) {}
    Attachment& operator=(Attachment&& other) noexcept;
    ~Attachment();

    // Null: the file was full already.
    Pager* pager() const { return pager_; }
    uintptr_t start() const { return start_; }
    // Of the file.
    base::PageRange range() const { return range_; }

   private:
    friend class Pager;
    Attachment(Pager* pager, uintptr_t start, base::PageRange range)
        : pager_(pager), start_(start), range_(range) {}

    Pager* pager_ = nullptr;  // Not owned.
    uintptr_t start_ = 0;
    base::PageRange range_;
  };

  // `start` is where `range` of the file is mapped, private; nobody touched it
  // so far. Nothing has to be done once the file is full.
  // Errors: why the memory was lost; RESOURCE_EXHAUSTED.
  absl::StatusOr<Attachment> Attach(const uint8_t* start, base::PageRange range,
                                    OnLost on_lost);

  // Whether nobody waits who touches these pages of the file. Neither blocks
  // nor takes a lock.
  bool Has(base::PageRange range) const {
    // acquire: what is not in the set is there all the same.
    return nothing_missing_.load(std::memory_order_acquire) ||
           !there_.FirstMissing(range).has_value();
  }
  // The same of all pages of the file: one atomic load.
  bool HasAll() const {
    return nothing_missing_.load(std::memory_order_acquire);
  }
  // As Has() of each; if it is false, has the pages brought, between those that
  // somebody stands still for, and tells `waiter`. When they cannot be read
  // nobody is told: the memory is lost. What `waiter` asked for before is
  // forgotten; so is this when `waiter` goes. Does not block.
  bool BringSoon(std::vector<base::PageRange> ranges,
                 const std::shared_ptr<PageWaiter>& waiter);

  // Brings pages for who is about to read the file itself. Blocks.
  // Errors: why the memory was lost.
  absl::Status BringIn(base::PageRange range);
  // Has all pages brought in the background. Idempotent.
  // Errors: RESOURCE_EXHAUSTED, a thread.
  absl::Status StartFilling();
  // Brings all pages on this thread.
  // Errors: why the memory was lost; RESOURCE_EXHAUSTED; CANCELLED,
  // DEADLINE_EXCEEDED.
  absl::Status WaitUntilFull(
      const std::stop_token& stop = {},
      std::optional<std::chrono::steady_clock::time_point> deadline = {});

  // OK, or why the memory was lost.
  absl::Status status() const;
  bool full() const;

 private:
  enum class State { kFilling, kFull, kLost };
  struct Mapped {
    base::PageRange range;
    OnLost on_lost;
  };
  struct Wish {
    std::vector<base::PageRange> ranges;  // None is empty.
    std::weak_ptr<PageWaiter> waiter;
  };

  Pager(Options options, Userfault userfault, base::UniqueFd wake_fd)
      : options_(std::move(options)),
        there_(options_.alias.size()),
        wake_fd_(std::move(wake_fd)),
        userfault_(std::move(userfault)) {}
  void Serve();  // The pager's thread.
  void Fill();   // The filler's.
  // All is there, or some of it cannot be: unless `status` says no more than
  // that somebody gave up.
  void TellFilled(absl::Status status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status ServeFaults();  // All that there are.
  absl::Status ServeFault(uintptr_t address);
  bool HasWish();
  // Brings one page that is wished for, with what comes with it, or tells who
  // waits: each in its turn.
  absl::Status ServeWish();
  // Forgets what is there already. Empty afterwards: all is.
  void ShortenWish(std::vector<base::PageRange>* ranges) const;
  // Zeros where there is no such page.
  absl::Status BringPage(uint64_t offset);
  absl::Status Put(base::PageRange range, const uint8_t* from);
  void Detach(uintptr_t start);
  absl::Status WaitLocked(
      const std::stop_token& stop,
      std::optional<std::chrono::steady_clock::time_point> deadline)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void BecomeFull();
  void BecomeLost(const absl::Status& why);

  const Options options_;
  PageSet there_;
  // Userfaultfd is gone, and all pages are there.
  std::atomic<bool> nothing_missing_{false};
  const base::UniqueFd wake_fd_;  // For the pager's thread to look around.
  std::stop_source stop_;

  mutable base::Mutex mutex_;
  base::CondVar changed_;
  State state_ ABSL_GUARDED_BY(mutex_) = State::kFilling;
  absl::Status lost_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  bool telling_ ABSL_GUARDED_BY(mutex_) = false;       // OnLost calls are made.
  bool bringing_all_ ABSL_GUARDED_BY(mutex_) = false;  // In WaitUntilFull().
  // That all is there, or that the memory is lost: for the pager's thread.
  std::optional<absl::Status> filled_ ABSL_GUARDED_BY(mutex_);
  int puts_ ABSL_GUARDED_BY(mutex_) = 0;  // Into the alias, under way.
  std::map<uintptr_t, Mapped> mapped_ ABSL_GUARDED_BY(mutex_);  // By address.
  // One of each waiter at most. Only while filling.
  std::deque<Wish> wishes_ ABSL_GUARDED_BY(mutex_);
  // None once nothing is missing any more. Only the pager's thread takes it
  // away, when no Put() uses it.
  std::optional<Userfault> userfault_;
  base::Thread filler_ ABSL_GUARDED_BY(mutex_);
  base::Thread thread_;  // Last: starts when all else is there.
};

}  // namespace catnap::memory

#endif  // CATNAP_LIB_MEMORY_PAGER_H_
