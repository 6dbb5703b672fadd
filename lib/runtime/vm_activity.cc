#include "runtime/vm_activity.h"

#include <algorithm>
#include <utility>

namespace catnap::runtime {
namespace {

size_t IndexOf(UseKind kind) { return static_cast<size_t>(kind); }

bool Counts(const ActivitySources& sources, UseKind kind) {
  switch (kind) {
    case UseKind::kExec:
      return sources.exec;
    case UseKind::kFiles:
      return sources.files;
    case UseKind::kForwards:
      return sources.forwards;
    case UseKind::kServices:
      return sources.services;
    case UseKind::kHolds:
      return sources.holds;
    case UseKind::kOutbound:
      return sources.outbound;
    case UseKind::kGuestCpu:
      return sources.guest_cpu;
    case UseKind::kUncounted:
      break;
  }
  return false;
}

}  // namespace

VmActivity::VmActivity(std::shared_ptr<Traffic> forwards,
                       std::shared_ptr<Traffic> services)
    : forwards_(std::move(forwards)), services_(std::move(services)) {}

void VmActivity::Begin(UseKind kind) {
  const base::MutexLock lock(&mutex_);
  Uses& uses = uses_[IndexOf(kind)];
  ++uses.now;
  uses.last = std::chrono::steady_clock::now();
}

void VmActivity::End(UseKind kind) {
  const base::MutexLock lock(&mutex_);
  Uses& uses = uses_[IndexOf(kind)];
  --uses.now;
  uses.last = std::chrono::steady_clock::now();
}

void VmActivity::Note(UseKind kind) {
  const base::MutexLock lock(&mutex_);
  uses_[IndexOf(kind)].last = std::chrono::steady_clock::now();
}

std::optional<VmActivity::Time> VmActivity::IdleSince(
    const ActivitySources& sources, Time least) const {
  Time since = least;
  if (sources.forwards) since = std::max(since, forwards_->last_activity());
  if (sources.services) since = std::max(since, services_->last_activity());
  const base::MutexLock lock(&mutex_);
  for (size_t i = 0; i < kKinds; ++i) {
    if (!Counts(sources, static_cast<UseKind>(i))) continue;
    if (uses_[i].now > 0) return std::nullopt;
    since = std::max(since, uses_[i].last);
  }
  return since;
}

}  // namespace catnap::runtime
