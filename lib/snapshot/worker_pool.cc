#include "snapshot/worker_pool.h"

#include <sched.h>

#include <algorithm>
#include <utility>

#include "base/status.h"

namespace catnap::snapshot {
namespace {

constexpr size_t kMaxThreads = 64;
// What a thread without work keeps of a compressor: those of low levels.
constexpr size_t kKeptBytes = size_t{4} << 20;

size_t UsableProcessors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (::sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return std::clamp<size_t>(static_cast<size_t>(CPU_COUNT(&set)), 1,
                            kMaxThreads);
}

}  // namespace

absl::StatusOr<codec::ZstdCompressor*> WorkerTools::Compressor(int level) {
  if (!compressor_.has_value() || level_ != level) {
    compressor_.reset();
    CATNAP_ASSIGN_OR_RETURN(compressor_, codec::ZstdCompressor::Create(level));
    level_ = level;
  }
  return &*compressor_;
}

absl::StatusOr<codec::ZstdDecompressor*> WorkerTools::Decompressor() {
  if (!decompressor_.has_value()) {
    CATNAP_ASSIGN_OR_RETURN(decompressor_, codec::ZstdDecompressor::Create());
  }
  return &*decompressor_;
}

bool WorkerTools::holds_much() const {
  return compressor_.has_value() && compressor_->memory_bytes() > kKeptBytes;
}

absl::StatusOr<std::unique_ptr<WorkerPool>> WorkerPool::Create(size_t threads) {
  if (threads > kMaxThreads) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "threads is {}, must be at most {}", threads, kMaxThreads);
  }
  if (threads == 0) threads = UsableProcessors();
  std::unique_ptr<WorkerPool> pool(new WorkerPool);
  pool->threads_.reserve(threads);
  for (size_t i = 0; i < threads; ++i) {
    auto thread =
        base::Thread::Start("catnap-zstd", [raw = pool.get()] { raw->Run(); });
    if (!thread.ok()) {
      if (pool->threads_.empty()) return thread.status();
      break;
    }
    pool->threads_.push_back(std::move(*thread));
  }
  return pool;
}

WorkerPool::~WorkerPool() {
  {
    base::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  work_.NotifyAll();
  threads_.clear();
}

void WorkerPool::Run() {
  WorkerTools tools;
  mutex_.Lock();
  while (true) {
    while (turns_.empty() && !stopping_) {
      if (tools.holds_much()) {
        mutex_.Unlock();
        tools.DropMuch();
        mutex_.Lock();
      } else {
        work_.Wait(&mutex_);
      }
    }
    if (turns_.empty()) break;
    Client* const client = turns_.front();
    turns_.pop_front();
    Job job = std::move(client->jobs_.front());
    client->jobs_.pop_front();
    client->queued_ = !client->jobs_.empty();
    if (client->queued_) turns_.push_back(client);
    ++client->running_;
    mutex_.Unlock();
    std::move(job)(tools);
    job = nullptr;  // What it holds goes before the client may.
    mutex_.Lock();
    if (--client->running_ == 0) idle_.NotifyAll();
  }
  mutex_.Unlock();
}

WorkerPool::Client::Client(WorkerPool* pool) : pool_(pool) {}

WorkerPool::Client::~Client() {
  std::deque<Job> dropped;  // Destroyed without the lock.
  {
    base::MutexLock lock(&pool_->mutex_);
    dropped.swap(jobs_);
    if (queued_) std::erase(pool_->turns_, this);
    queued_ = false;
    while (running_ > 0) pool_->idle_.Wait(&pool_->mutex_);
  }
}

void WorkerPool::Client::Submit(Job job) {
  {
    base::MutexLock lock(&pool_->mutex_);
    jobs_.push_back(std::move(job));
    if (!queued_) {
      queued_ = true;
      pool_->turns_.push_back(this);
    }
  }
  pool_->work_.NotifyOne();
}

}  // namespace catnap::snapshot
