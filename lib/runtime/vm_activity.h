#ifndef CATNAP_LIB_RUNTIME_VM_ACTIVITY_H_
#define CATNAP_LIB_RUNTIME_VM_ACTIVITY_H_

#include <array>
#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "base/mutex.h"
#include "catnap/run_options.h"
#include "runtime/traffic.h"

namespace catnap::runtime {

// What a MicroVM is used for, as ActivitySources has it.
enum class UseKind : uint8_t {
  kExec,
  kFiles,
  kForwards,
  kServices,
  kHolds,
  kOutbound,
  kGuestCpu,
  kUncounted,  // Wakes it, and does not keep it awake.
};

// When one MicroVM was used last, and for what. Thread-safe; takes no lock but
// its own.
class VmActivity {
 public:
  using Time = std::chrono::steady_clock::time_point;

  VmActivity(std::shared_ptr<Traffic> forwards,
             std::shared_ptr<Traffic> services);

  // A use that lasts until its End().
  void Begin(UseKind kind);
  void End(UseKind kind);
  // One that was over as it came.
  void Note(UseKind kind);

  // Since when none of `sources` used it; not before `least`. None: it is in
  // use.
  std::optional<Time> IdleSince(const ActivitySources& sources,
                                Time least) const;

  const std::shared_ptr<Traffic>& forwards() const { return forwards_; }
  const std::shared_ptr<Traffic>& services() const { return services_; }

 private:
  static constexpr size_t kKinds = static_cast<size_t>(UseKind::kUncounted) + 1;
  struct Uses {
    size_t now = 0;
    Time last{};
  };

  const std::shared_ptr<Traffic> forwards_;
  const std::shared_ptr<Traffic> services_;
  mutable base::Mutex mutex_;
  std::array<Uses, kKinds> uses_ ABSL_GUARDED_BY(mutex_){};
};

}  // namespace catnap::runtime

#endif  // CATNAP_LIB_RUNTIME_VM_ACTIVITY_H_
