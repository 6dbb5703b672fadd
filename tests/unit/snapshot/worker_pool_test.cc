#include "snapshot/worker_pool.h"

#include <atomic>
#include <catch2/catch.hpp>
#include <string>

#include "unit/snapshot/snapshot_guest.h"

namespace catnap::snapshot {
namespace {

using test::MakePool;

// Opens once; jobs wait for it.
class Gate {
 public:
  void Open() {
    base::MutexLock lock(&mutex_);
    open_ = true;
    changed_.NotifyAll();
  }
  void Wait() {
    base::MutexLock lock(&mutex_);
    while (!open_) changed_.Wait(&mutex_);
  }

 private:
  base::Mutex mutex_;
  base::CondVar changed_;
  bool open_ ABSL_GUARDED_BY(mutex_) = false;
};

TEST_CASE("Users of a pool take turns") {
  const auto pool = MakePool(1);
  Gate begun;
  Gate gate;
  Gate all_ran;
  std::string order;  // Of one thread only.
  WorkerPool::Client a(pool.get());
  WorkerPool::Client b(pool.get());
  a.Submit([&](WorkerTools&) {
    begun.Open();
    gate.Wait();
  });
  begun.Wait();
  for (int i = 0; i < 3; ++i) {
    a.Submit([&](WorkerTools&) { order += 'a'; });
  }
  b.Submit([&](WorkerTools&) { order += 'b'; });
  b.Submit([&](WorkerTools&) { order += 'b'; });
  a.Submit([&](WorkerTools&) { all_ran.Open(); });
  gate.Open();
  all_ran.Wait();
  CHECK(order == "ababa");
}

TEST_CASE("A user that goes takes its jobs along and waits for those begun") {
  const auto pool = MakePool(1);
  Gate begun;
  Gate gate;
  std::atomic<int> ran = 0;
  auto client = std::make_unique<WorkerPool::Client>(pool.get());
  client->Submit([&](WorkerTools&) {
    begun.Open();
    gate.Wait();
    ++ran;
  });
  client->Submit([&](WorkerTools&) { ++ran; });
  begun.Wait();
  auto opener = base::Thread::Start("opener", [&] { gate.Open(); });
  REQUIRE(opener.ok());
  client.reset();
  CHECK(ran >= 1);
  opener->Join();
}

TEST_CASE("A pool has as many threads as asked for, or as processors") {
  CHECK(MakePool(3)->threads() == 3);
  CHECK(MakePool(0)->threads() >= 1);
  CHECK(WorkerPool::Create(65).status().code() ==
        absl::StatusCode::kInvalidArgument);
}

TEST_CASE("Tools of a worker stay from job to job") {
  WorkerTools tools;
  const auto one = tools.Compressor(1);
  REQUIRE(one.ok());
  CHECK(tools.Compressor(1).value() == *one);
  CHECK(tools.Compressor(100).status().code() ==
        absl::StatusCode::kInvalidArgument);
  CHECK(tools.Compressor(3).ok());
  CHECK(tools.Decompressor().ok());
  CHECK(tools.Scratch(100).size() == 100);
}

TEST_CASE("Tools let go of what only high levels need") {
  WorkerTools tools;
  std::vector<uint8_t> content(size_t{1} << 20);
  std::vector<uint8_t> into(codec::ZstdCompressor::Bound(content.size()));
  for (const int level : {1, 10}) {
    const auto compressor = tools.Compressor(level);
    REQUIRE(compressor.ok());
    REQUIRE((*compressor)->Compress(content, into).ok());
    CHECK(tools.holds_much() == (level == 10));
  }
  tools.DropMuch();
  CHECK_FALSE(tools.holds_much());
  CHECK(tools.Compressor(10).ok());
}

}  // namespace
}  // namespace catnap::snapshot
