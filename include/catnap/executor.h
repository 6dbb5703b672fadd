#ifndef CATNAP_EXECUTOR_H_
#define CATNAP_EXECUTOR_H_

#include "absl/functional/any_invocable.h"
#include "catnap/export.h"

namespace catnap {

// Runs the library's callbacks. Bring your own to have them on your threads.
//
// Thread safety: Post() is called from any library thread, also while another
// Post() runs. Implementations must not run `task` inside Post(), must not
// drop it, and must not throw.
class CATNAP_EXPORT Executor {
 public:
  virtual ~Executor() = default;
  // Takes `task` and runs it later, once. Must not block for long.
  virtual void Post(absl::AnyInvocable<void() &&> task) = 0;
};

}  // namespace catnap

#endif  // CATNAP_EXECUTOR_H_
