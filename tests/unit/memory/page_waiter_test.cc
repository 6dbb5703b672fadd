// Who asks a guest's memory for pages rather than to stand still for them.
#include "memory/page_waiter.h"

#include <atomic>
#include <chrono>
#include <future>
#include <thread>

#include "memory_test_support.h"
#include "support/held_pages.h"

namespace catnap::memory {
namespace {

using test::HeldPages;

constexpr uint64_t kPages = 64;
constexpr uint64_t kSize = kPages * kPage;

std::chrono::steady_clock::time_point Soon() {
  return std::chrono::steady_clock::now() + std::chrono::seconds(60);
}

bool IsRefused() {
  const absl::Status status = Userfault::Open().status();
  if (status.ok()) return false;
  WARN("nothing was looked at: " << status.ToString());
  return true;
}

std::vector<uint8_t> Numbered() {
  std::vector<uint8_t> bytes(kSize);
  for (uint64_t at = 0; at < kSize; ++at) {
    bytes[at] = static_cast<uint8_t>(at / kPage + 1);
  }
  return bytes;
}

// Counts how often it was told.
class Counter {
 public:
  Counter() {
    waiter->Set([this] {
      const base::MutexLock lock(&mutex_);
      ++told_;
      changed_.NotifyAll();
    });
  }
  ~Counter() {
    if (waiter != nullptr) waiter->Set(nullptr);
  }

  int told() {
    const base::MutexLock lock(&mutex_);
    return told_;
  }
  bool WaitFor(int told) {
    const auto deadline = Soon();
    const base::MutexLock lock(&mutex_);
    while (told_ < told) {
      if (!changed_.WaitUntil(&mutex_, deadline)) return false;
    }
    return true;
  }

  std::shared_ptr<PageWaiter> waiter = std::make_shared<PageWaiter>();

 private:
  base::Mutex mutex_;
  base::CondVar changed_;
  int told_ ABSL_GUARDED_BY(mutex_) = 0;
};

// A guest's memory over one file of held pages.
struct Lazy {
  Lazy()
      : file(Must(pages.NewFile(kSize))),
        memory(NewGuest(Must(HeldPages::ImageOf(file, kSize)))) {}
  ~Lazy() { pages.Release(); }

  iovec Part(uint64_t from, uint64_t length) const {
    return {.iov_base = memory->host_base() + from, .iov_len = length};
  }
  bool Ask(Counter& counter, uint64_t page, uint64_t count = 1) const {
    const iovec part = Part(page * kPage, count * kPage);
    return memory->BringSoon({&part, 1}, counter.waiter);
  }

  HeldPages pages{Numbered()};
  std::shared_ptr<MemoryFile> file;
  std::unique_ptr<GuestMemory> memory;
};

TEST_CASE("Pages that were asked for come, no others, and stay") {
  if (IsRefused()) return;
  const Lazy lazy;
  CHECK(lazy.memory->may_miss_pages());
  Counter counter;
  // The last byte of page 3, all of 4, the first of 5; and one far away.
  const iovec parts[] = {lazy.Part(4 * kPage - 1, kPage + 2), lazy.Part(7, 0),
                         lazy.Part(40 * kPage + 9, 1)};
  CHECK_FALSE(lazy.memory->BringSoon(parts, counter.waiter));
  REQUIRE(counter.WaitFor(1));
  CHECK(lazy.memory->BringSoon(parts, counter.waiter));
  CHECK(lazy.pages.brought() == 4);
  for (const uint64_t page : {3UL, 4UL, 5UL, 40UL}) {
    CHECK(At(*lazy.memory, page) == page + 1);
  }
  CHECK(lazy.pages.brought() == 4);
  CHECK(counter.told() == 1);
  // What was touched is there as well, also when it became the guest's own.
  Put(*lazy.memory, 50, 7);
  CHECK(lazy.Ask(counter, 50));
  CHECK_FALSE(lazy.Ask(counter, 49, 2));
}

TEST_CASE("Who asks anew, or goes, is not told of what was asked before") {
  if (IsRefused()) return;
  Lazy lazy;
  lazy.pages.Hold(10 * kPage);
  Counter one;
  Counter gone;
  Counter last;
  CHECK_FALSE(lazy.Ask(one, 10));
  REQUIRE(lazy.pages.WaitUntilAsked(Soon()));
  // None of these waits, though the store stands still.
  CHECK_FALSE(lazy.Ask(one, 11));
  CHECK_FALSE(lazy.Ask(one, 12));
  CHECK_FALSE(lazy.Ask(gone, 13));
  gone.waiter.reset();
  CHECK_FALSE(lazy.Ask(last, 14));
  lazy.pages.Release();
  REQUIRE(last.WaitFor(1));
  REQUIRE(one.WaitFor(1));
  CHECK(lazy.Ask(one, 12));
  CHECK(lazy.Ask(last, 10));
  CHECK_FALSE(lazy.Ask(last, 11));
  REQUIRE(last.WaitFor(2));
  CHECK(one.told() == 1);
  CHECK(gone.told() == 0);
}

TEST_CASE("Who asks for much does not hold up who asks for little") {
  if (IsRefused()) return;
  Lazy lazy;
  lazy.pages.Hold(0);
  Counter all;
  Counter one;
  CHECK_FALSE(lazy.Ask(all, 0, kPages));
  REQUIRE(lazy.pages.WaitUntilAsked(Soon()));
  CHECK_FALSE(lazy.Ask(one, kPages - 1));
  uint64_t brought = 0;
  one.waiter->Set(nullptr);
  std::promise<void> told;
  one.waiter->Set([&] {
    brought = lazy.pages.brought();
    told.set_value();
  });
  lazy.pages.Release();
  REQUIRE(told.get_future().wait_until(Soon()) == std::future_status::ready);
  CHECK(brought < 5);
  REQUIRE(all.WaitFor(1));
  CHECK(lazy.pages.brought() == kPages);
}

TEST_CASE("Who waits is told when memory is full by another way") {
  if (IsRefused()) return;
  Lazy lazy;
  lazy.pages.Hold(0);
  Counter first;
  Counter second;
  CHECK_FALSE(lazy.Ask(first, 0));
  REQUIRE(lazy.pages.WaitUntilAsked(Soon()));
  CHECK_FALSE(lazy.Ask(second, 5, 2));
  auto full = std::async(std::launch::async, [&lazy] {
    return lazy.file->pager()->WaitUntilFull();
  });
  // The pager's thread stands, but what it was to bring is there.
  const auto deadline = Soon();
  bool there = false;
  while (!there && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    there = lazy.Ask(second, 5, 2);
  }
  CHECK(there);
  CHECK(second.told() == 0);
  lazy.pages.Release();
  CHECK(first.WaitFor(1));
  CHECK(second.WaitFor(1));
  Must(full.get());
  CHECK(lazy.Ask(first, 0, kPages));
  CHECK_FALSE(lazy.memory->may_miss_pages());
}

TEST_CASE("Pages that cannot be read are never there") {
  if (IsRefused()) return;
  Lazy lazy;
  lazy.pages.Hold(10 * kPage);
  Counter counter;
  Counter other;
  CHECK(At(*lazy.memory, 3) == 4);
  CHECK_FALSE(lazy.Ask(counter, 10));
  CHECK_FALSE(lazy.Ask(other, 11));
  REQUIRE(lazy.pages.WaitUntilAsked(Soon()));
  lazy.pages.Release(absl::DataLossError("bad"));
  REQUIRE(HeldPages::WaitUntilLost(*lazy.file, Soon()));
  CHECK_FALSE(lazy.Ask(counter, 10));
  CHECK_FALSE(lazy.Ask(other, 11));
  CHECK(lazy.Ask(counter, 3));
  CHECK(counter.told() == 0);
  CHECK(other.told() == 0);
}

TEST_CASE("Pages of several files are asked of each") {
  if (IsRefused()) return;
  HeldPages below(Numbered());
  HeldPages above(std::vector<uint8_t>(kSize, 99));
  const auto lower = Must(below.NewFile(kSize));
  const auto upper = Must(above.NewFile(kSize));
  const auto memory = NewGuest(Must(MemoryImage::Create(
      kSize, {lower, upper},
      {{.offset = 0, .length = 8 * kPage, .file = 0},
       {.offset = 8 * kPage, .length = 8 * kPage, .file = 1},
       {.offset = 16 * kPage, .length = kSize - 16 * kPage, .file = 0}})));
  Counter counter;
  // Two pages of each of the three.
  const iovec parts[] = {
      {.iov_base = memory->host_base() + 6 * kPage, .iov_len = 4 * kPage},
      {.iov_base = memory->host_base() + 14 * kPage, .iov_len = 4 * kPage}};
  int asked = 0;
  while (!memory->BringSoon(parts, counter.waiter)) {
    REQUIRE(counter.WaitFor(++asked));
  }
  CHECK(asked == 2);
  CHECK(below.brought() == 4);
  CHECK(above.brought() == 4);
  CHECK(At(*memory, 7) == 8);
  CHECK(At(*memory, 8) == 99);
  CHECK(At(*memory, 16) == 17);
  // One of them is full: the other may still miss some.
  Must(lower->pager()->WaitUntilFull());
  CHECK(memory->BringSoon(parts, counter.waiter));
  CHECK(memory->may_miss_pages());
  Must(upper->pager()->WaitUntilFull());
  CHECK(memory->BringSoon(parts, counter.waiter));
  CHECK_FALSE(memory->may_miss_pages());
}

TEST_CASE("Memory that is all there is never asked for") {
  const auto memory = NewGuest(kSize);
  Must(memory->MapAnonymous());
  CHECK_FALSE(memory->may_miss_pages());
  const iovec part{.iov_base = memory->host_base(), .iov_len = kSize};
  CHECK(memory->BringSoon({&part, 1}, std::make_shared<PageWaiter>()));
}

TEST_CASE("Nobody is told any more when a waiter was set to nothing") {
  auto waiter = std::make_shared<PageWaiter>();
  waiter->Tell();
  std::promise<void> inside;
  std::promise<void> go_on;
  std::atomic<bool> ended{false};
  waiter->Set([&] {
    inside.set_value();
    go_on.get_future().wait();
    ended = true;
  });
  std::thread teller([waiter] { waiter->Tell(); });
  inside.get_future().wait();
  std::thread setter([&] {
    waiter->Set(nullptr);
    CHECK(ended);
  });
  go_on.set_value();
  setter.join();
  teller.join();
  waiter->Tell();
}

}  // namespace
}  // namespace catnap::memory
