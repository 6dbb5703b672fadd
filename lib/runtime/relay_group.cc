#include "runtime/relay_group.h"

#include <utility>
#include <vector>

#include "base/status.h"
#include "runtime/socket_relay.h"

namespace catnap::runtime {

RelayGroup::RelayGroup(io::EventLoop* loop, std::shared_ptr<Traffic> traffic,
                       size_t most)
    : loop_(loop), traffic_(std::move(traffic)), most_(most) {}

void RelayGroup::Close() {
  std::vector<std::shared_ptr<SocketRelay>> relays;
  {
    const base::MutexLock lock(&mutex_);
    closed_ = true;
    relays.assign(relays_.begin(), relays_.end());
  }
  for (const auto& relay : relays) {
    relay->End(absl::CancelledError("the connection with the guest was ended"));
  }
  const base::MutexLock lock(&mutex_);
  while (!relays_.empty()) empty_.Wait(&mutex_);
}

size_t RelayGroup::size() const {
  const base::MutexLock lock(&mutex_);
  return relays_.size();
}

absl::Status RelayGroup::Add(std::shared_ptr<SocketRelay> relay) {
  const base::MutexLock lock(&mutex_);
  if (closed_) {
    return absl::CancelledError("connections with the guest are over");
  }
  if (relays_.size() >= most_) {
    return Error(absl::StatusCode::kResourceExhausted,
                 "{} connections with the guest are open, at most {}; close "
                 "some first",
                 relays_.size(), most_);
  }
  relays_.insert(std::move(relay));
  return absl::OkStatus();
}

void RelayGroup::Remove(const std::shared_ptr<SocketRelay>& relay) {
  const base::MutexLock lock(&mutex_);
  relays_.erase(relay);
  // With the lock: a waiter may destroy this as soon as it has that.
  if (relays_.empty()) empty_.NotifyAll();
}

}  // namespace catnap::runtime
