#ifndef CATNAP_LIB_MEMORY_PAGE_WAITER_H_
#define CATNAP_LIB_MEMORY_PAGE_WAITER_H_

#include <functional>

#include "absl/base/thread_annotations.h"
#include "base/mutex.h"

namespace catnap::memory {

// Somebody who goes on with something else until pages are there, where who
// touches one stands still for it. Asks for one thing at a time.
//
// Thread-safe.
class PageWaiter {
 public:
  PageWaiter() = default;
  PageWaiter(const PageWaiter&) = delete;
  PageWaiter& operator=(const PageWaiter&) = delete;

  // What Tell() calls from now on; null: nothing. What it called before has
  // returned when this does. So it must not be called from there.
  void Set(std::function<void()> on_there);

  // What was asked for is there. Called on a pager's thread: what it calls must
  // not block, nor touch guest memory, nor take a lock that somebody holds who
  // touches guest memory, nor call the pager.
  void Tell();

 private:
  base::Mutex mutex_;
  std::function<void()> on_there_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace catnap::memory

#endif  // CATNAP_LIB_MEMORY_PAGE_WAITER_H_
