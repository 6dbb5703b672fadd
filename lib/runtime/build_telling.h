#ifndef CATNAP_LIB_RUNTIME_BUILD_TELLING_H_
#define CATNAP_LIB_RUNTIME_BUILD_TELLING_H_

#include <memory>
#include <string>
#include <utility>

#include "base/serial_queue.h"
#include "catnap/image.h"
#include "catnap/log.h"
#include "runtime/completion.h"

namespace catnap::runtime {

// A build's observer, on the executor; not called any more once this is gone.
// Thread-safe.
class BuildTelling {
 public:
  // `observer` null: nobody.
  BuildTelling(BuildObserver* observer,
               const std::shared_ptr<Executor>& executor)
      : observer_(observer), queue_(executor) {}

  bool listens() const { return observer_ != nullptr; }
  void Phase(BuildPhase phase, std::string detail) {
    if (observer_ == nullptr) return;
    queue_.Post([observer = observer_, phase, detail = std::move(detail)] {
      observer->OnPhase(phase, detail);
    });
  }
  void Line(std::string text) {
    if (observer_ == nullptr) return;
    queue_.Post([observer = observer_, text = std::move(text)] {
      observer->OnLog(text);
    });
  }
  void Progress(double fraction) {
    if (observer_ == nullptr) return;
    queue_.Post(
        [observer = observer_, fraction] { observer->OnProgress(fraction); });
  }
  // Blocks until the observer has heard all.
  void Finish() {
    if (observer_ == nullptr) return;
    const Completion<bool> told;
    queue_.Post([told] { told.Set(true); });
    told.Wait();
  }

 private:
  BuildObserver* const observer_;  // Not owned.
  base::SerialQueue queue_;
};

}  // namespace catnap::runtime

#endif  // CATNAP_LIB_RUNTIME_BUILD_TELLING_H_
