#include "vmm/shell_pool.h"

#include <sys/resource.h>

#include <algorithm>
#include <utility>

#include "base/status.h"

namespace catnap::vmm {
namespace {

// Of one shell with all devices, and a little more.
constexpr uint64_t kShellDescriptors = 12;

uint64_t MostWaiting() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return UINT64_MAX;
  return limit.rlim_cur / 2 / kShellDescriptors;
}

}  // namespace

uint64_t ShellCostBytes(const ShellConfig& config) {
  constexpr uint64_t kVmBytes = 256 << 10;
  constexpr uint64_t kVcpuBytes = 128 << 10;
  // Ten bytes for each 4 KiB of guest memory, a little rounded up.
  constexpr uint64_t kReverseMapShare = 400;
  return kVmBytes + static_cast<uint64_t>(config.vcpus) * kVcpuBytes +
         config.memory_bytes / kReverseMapShare;
}

absl::StatusOr<std::unique_ptr<ShellPool>> ShellPool::Create(
    std::shared_ptr<const kvm::System> system, Options options) {
  if (options.max_waiting == 0) options.max_waiting = MostWaiting();
  // new: the constructor is private.
  std::unique_ptr<ShellPool> pool(new ShellPool(std::move(system), options));
  ShellPool* self = pool.get();
  {
    const base::MutexLock lock(&self->mutex_);
    self->interval_end_ = std::chrono::steady_clock::now() + options.interval;
  }
  CATNAP_ASSIGN_OR_RETURN(
      pool->worker_,
      base::Thread::Start("catnap-shells", [self] { self->Work(); }));
  return pool;
}

ShellPool::~ShellPool() {
  {
    const base::MutexLock lock(&mutex_);
    closing_ = true;
    work_.NotifyAll();
  }
  worker_.Join();
}

ShellPool::Kind& ShellPool::KindLocked(const ShellConfig& config) {
  for (Kind& kind : kinds_) {
    if (kind.config == config) return kind;
  }
  kinds_.push_back({});
  kinds_.back().config = config;
  return kinds_.back();
}

void ShellPool::AddLocked(Kind& kind, std::unique_ptr<Machine> shell) {
  kind.waiting.push_back(std::move(shell));
  ++waiting_;
  waiting_bytes_ += ShellCostBytes(kind.config);
}

std::unique_ptr<Machine> ShellPool::RemoveOneLocked(Kind& kind) {
  std::unique_ptr<Machine> shell = std::move(kind.waiting.front());
  kind.waiting.pop_front();
  --waiting_;
  waiting_bytes_ -= ShellCostBytes(kind.config);
  return shell;
}

uint64_t ShellPool::RoomLocked(const ShellConfig& config) const {
  const auto left = [](uint64_t limit, uint64_t used) {
    return limit - std::min(limit, used);
  };
  return std::min(
      left(options_.max_bytes, waiting_bytes_) / ShellCostBytes(config),
      left(options_.max_waiting, waiting_));
}

absl::StatusOr<std::unique_ptr<Machine>> ShellPool::Take(
    const ShellConfig& config) {
  CATNAP_RETURN_IF_ERROR(Validate(config));
  {
    const base::MutexLock lock(&mutex_);
    Kind& kind = KindLocked(config);
    ++kind.taken_now;
    last_take_ = std::chrono::steady_clock::now();
    if (!burst_begin_.has_value()) {
      burst_begin_ = last_take_;
      work_.NotifyAll();
    }
    if (!kind.waiting.empty()) {
      ++hits_;
      return RemoveOneLocked(kind);
    }
    ++misses_;
  }
  return Machine::CreateShell(system_, config);
}

absl::Status ShellPool::Prewarm(const ShellConfig& config, uint64_t count) {
  CATNAP_RETURN_IF_ERROR(Validate(config));
  const base::MutexLock lock(&mutex_);
  const uint64_t have = KindLocked(config).waiting.size();
  const uint64_t room = RoomLocked(config);
  if (count > have && count - have > room) {
    return Error(absl::StatusCode::kResourceExhausted,
                 "{} shells of {} bytes each were asked for, the pool's limits "
                 "of {} bytes and (by RLIMIT_NOFILE, if nobody said) {} shells "
                 "hold {} more",
                 count, ShellCostBytes(config), options_.max_bytes,
                 options_.max_waiting, room);
  }
  last_failure_ = absl::OkStatus();
  ++waiters_;
  while (last_failure_.ok() && !closing_) {
    // Looked up each time: the worker forgets kinds that nobody wants. Counts
    // as demand in each interval that passes meanwhile, or their ends would
    // take away what was made.
    Kind& kind = KindLocked(config);
    kind.taken_now = std::max(kind.taken_now, count);
    if (kind.waiting.size() >= count) break;
    work_.NotifyAll();
    idle_.Wait(&mutex_);
  }
  --waiters_;
  return last_failure_;
}

void ShellPool::Retire(std::unique_ptr<Machine> machine) {
  if (machine == nullptr) return;
  const base::MutexLock lock(&mutex_);
  retired_.push_back(std::move(machine));
  work_.NotifyAll();
}

void ShellPool::WaitIdle() {
  const base::MutexLock lock(&mutex_);
  ++waiters_;
  work_.NotifyAll();
  do {
    idle_.Wait(&mutex_);
  } while (busy_ || !retired_.empty());
  --waiters_;
}

ShellPool::Stats ShellPool::stats() const {
  const base::MutexLock lock(&mutex_);
  Stats stats{.hits = hits_,
              .misses = misses_,
              .waiting = 0,
              .waiting_bytes = waiting_bytes_,
              .last_failure = last_failure_};
  for (const Kind& kind : kinds_) stats.waiting += kind.waiting.size();
  return stats;
}

void ShellPool::EndIntervalLocked() {
  for (Kind& kind : kinds_) {
    kind.taken_last = std::exchange(kind.taken_now, 0);
    while (kind.waiting.size() > kind.wanted()) {
      retired_.push_back(RemoveOneLocked(kind));
    }
  }
  std::erase_if(kinds_, [](const Kind& kind) {
    return kind.wanted() == 0 && kind.waiting.empty();
  });
  // A failure may have passed; try again from now on.
  last_failure_ = absl::OkStatus();
}

bool ShellPool::FillOneLocked() {
  if (!last_failure_.ok()) return false;
  for (Kind& kind : kinds_) {
    if (kind.waiting.size() >= kind.wanted() || RoomLocked(kind.config) == 0) {
      continue;
    }
    mutex_.Unlock();
    auto shell = Machine::CreateShell(system_, kind.config);
    mutex_.Lock();
    if (shell.ok()) {
      AddLocked(kind, *std::move(shell));
    } else {
      last_failure_ = shell.status();
    }
    return true;
  }
  return false;
}

bool ShellPool::WorkOnceLocked() {
  if (FillOneLocked()) return true;
  if (!retired_.empty()) {
    std::vector<std::unique_ptr<Machine>> doomed = std::move(retired_);
    retired_.clear();
    mutex_.Unlock();
    doomed.clear();
    mutex_.Lock();
    return true;
  }
  return false;
}

std::optional<std::chrono::steady_clock::time_point>
ShellPool::RestsUntilLocked() const {
  if (!burst_begin_.has_value() || waiters_ != 0) return std::nullopt;
  const auto until = std::min(last_take_ + kRest, *burst_begin_ + kLongestRest);
  if (until <= std::chrono::steady_clock::now()) return std::nullopt;
  return until;
}

void ShellPool::Work() {
  mutex_.Lock();
  while (!closing_) {
    const auto now = std::chrono::steady_clock::now();
    if (now >= interval_end_) {
      EndIntervalLocked();
      interval_end_ = now + options_.interval;
    }
    if (const auto until = RestsUntilLocked(); until.has_value()) {
      work_.WaitUntil(&mutex_, std::min(*until, interval_end_));
      continue;
    }
    busy_ = true;
    busy_ = WorkOnceLocked();
    idle_.NotifyAll();
    if (busy_ || closing_) continue;
    burst_begin_.reset();
    work_.WaitUntil(&mutex_, interval_end_);
  }
  std::vector<std::unique_ptr<Machine>> doomed = std::move(retired_);
  for (Kind& kind : kinds_) {
    for (auto& shell : kind.waiting) doomed.push_back(std::move(shell));
    kind.waiting.clear();
  }
  busy_ = false;
  idle_.NotifyAll();
  mutex_.Unlock();
}

}  // namespace catnap::vmm
