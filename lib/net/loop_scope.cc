#include "net/loop_scope.h"

#include <utility>

namespace catnap::net {

bool LoopScope::IsLive(Id id) {
  const base::MutexLock lock(&mutex_);
  const auto found = operations_.find(id);
  return found != operations_.end() && found->second.live;
}

void LoopScope::End(Id id) {
  const base::MutexLock lock(&mutex_);
  operations_.erase(id);
  ended_.NotifyAll();
}

void LoopScope::Post(absl::AnyInvocable<void() &&> function) {
  const base::MutexLock lock(&mutex_);
  if (closed_) return;
  const Id id = next_++;
  operations_[id] = {};
  loop_->Post([this, id, function = std::move(function)]() mutable {
    if (IsLive(id)) std::move(function)();
    End(id);
  });
}

LoopScope::Id LoopScope::StartTimer(std::chrono::steady_clock::time_point when,
                                    absl::AnyInvocable<void() &&> on_time) {
  // Held while the operation starts, so that its end finds the entry. The loop
  // calls back on its own thread, never from inside.
  const base::MutexLock lock(&mutex_);
  if (closed_) return 0;
  const Id id = next_++;
  operations_[id].id =
      loop_->StartTimer(when, [this, id, on_time = std::move(on_time)](
                                  const absl::StatusOr<size_t>& end) mutable {
        if (end.ok() && IsLive(id)) std::move(on_time)();
        End(id);
      });
  return id;
}

LoopScope::Id LoopScope::Watch(std::shared_ptr<base::UniqueFd> fd,
                               uint32_t events,
                               std::function<void()> on_ready) {
  const base::MutexLock lock(&mutex_);
  if (closed_) return 0;
  const Id id = next_++;
  const int number = fd->get();
  operations_[id].id = loop_->Watch(
      number, events,
      [this, id, fd = std::move(fd),
       on_ready = std::move(on_ready)](const absl::StatusOr<uint32_t>& ready) {
        if (!ready.ok()) {
          End(id);  // The last call.
        } else if (IsLive(id)) {
          on_ready();
        }
      });
  return id;
}

void LoopScope::Cancel(Id id) {
  const base::MutexLock lock(&mutex_);
  const auto found = operations_.find(id);
  if (found == operations_.end()) return;
  found->second.live = false;
  loop_->Cancel(found->second.id);
}

void LoopScope::Close() {
  const base::MutexLock lock(&mutex_);
  closed_ = true;
  for (auto& [id, operation] : operations_) {
    operation.live = false;
    loop_->Cancel(operation.id);
  }
  while (!operations_.empty()) ended_.Wait(&mutex_);
}

}  // namespace catnap::net
