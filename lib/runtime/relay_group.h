#ifndef CATNAP_LIB_RUNTIME_RELAY_GROUP_H_
#define CATNAP_LIB_RUNTIME_RELAY_GROUP_H_

#include <cstddef>
#include <memory>
#include <unordered_set>

#include "absl/status/status.h"
#include "base/mutex.h"
#include "io/event_loop.h"
#include "runtime/traffic.h"

namespace catnap::runtime {

class SocketRelay;

// Relays with one owner: it bounds their number and ends them. Thread-safe.
class RelayGroup {
 public:
  // At most `most` relays at once, on `loop`, which must outlive this.
  RelayGroup(io::EventLoop* loop, std::shared_ptr<Traffic> traffic,
             size_t most);
  RelayGroup(const RelayGroup&) = delete;
  RelayGroup& operator=(const RelayGroup&) = delete;
  ~RelayGroup() { Close(); }

  // Ends all relays with CANCELLED and waits until each has closed its socket,
  // told its owner and let go of the guest's client. Later ones are refused.
  // Idempotent. REQUIRES: not on the loop's thread while there are relays, no
  // lock held that their events take.
  void Close() ABSL_LOCKS_EXCLUDED(mutex_);

  size_t size() const ABSL_LOCKS_EXCLUDED(mutex_);
  io::EventLoop* loop() const { return loop_; }
  const std::shared_ptr<Traffic>& traffic() const { return traffic_; }

 private:
  friend class SocketRelay;
  // Errors: CANCELLED, closed; RESOURCE_EXHAUSTED, full.
  absl::Status Add(std::shared_ptr<SocketRelay> relay)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // The relay's last act, on the loop's thread.
  void Remove(const std::shared_ptr<SocketRelay>& relay)
      ABSL_LOCKS_EXCLUDED(mutex_);

  io::EventLoop* const loop_;  // Not owned.
  const std::shared_ptr<Traffic> traffic_;
  const size_t most_;

  mutable base::Mutex mutex_;
  base::CondVar empty_;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  std::unordered_set<std::shared_ptr<SocketRelay>> relays_
      ABSL_GUARDED_BY(mutex_);
};

}  // namespace catnap::runtime

#endif  // CATNAP_LIB_RUNTIME_RELAY_GROUP_H_
