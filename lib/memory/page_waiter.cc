#include "memory/page_waiter.h"

#include <utility>

namespace catnap::memory {

void PageWaiter::Set(std::function<void()> on_there) {
  // What was set before is destroyed with the mutex free.
  const base::MutexLock lock(&mutex_);
  on_there_.swap(on_there);
}

void PageWaiter::Tell() {
  const base::MutexLock lock(&mutex_);
  if (on_there_) on_there_();
}

}  // namespace catnap::memory
