#include <fcntl.h>
#include <pthread.h>
#include <sys/resource.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <iterator>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "base/unique_fd.h"
#include "io/event_loop.h"
#include "io/file.h"
#include "support/temporary_directory.h"
#include "unit/io/loop_test_support.h"

namespace catnap::io {
namespace {

using absl::StatusCode;
using std::chrono::hours;
using std::chrono::steady_clock;

EventLoopOptions AnyBackend() {
  return {.backend = GENERATE(from_range(Backends()))};
}

std::set<int> OpenDescriptors() {
  std::set<int> found;
  for (const auto& entry :
       std::filesystem::directory_iterator("/proc/self/fd")) {
    found.insert(std::stoi(entry.path().filename()));
  }
  // Without the one that listed them.
  std::erase_if(found, [](int fd) { return ::fcntl(fd, F_GETFD) < 0; });
  return found;
}

TEST_CASE("A loop reports the backend that runs") {
  const auto options = AnyBackend();
  const auto loop = MakeLoop(options);
  CHECK(loop->backend() == options.backend);
  CHECK_THAT(loop->backend_text(),
             Catch::StartsWith(options.backend == LoopBackendKind::kPlain
                                   ? "plain"
                                   : "io_uring"));
}

TEST_CASE("kAuto takes io_uring where the kernel offers it", "[io_uring]") {
  const auto loop = MakeLoop({.backend = LoopBackendKind::kAuto});
  CHECK(loop->backend() == LoopBackendKind::kIoUring);
}

// Run by CTest under refuse_io_uring.
TEST_CASE("kAuto falls back where io_uring is refused, and says why",
          "[.refused]") {
  const auto loop = MakeLoop({.backend = LoopBackendKind::kAuto});
  CHECK(loop->backend() == LoopBackendKind::kPlain);
  CHECK_THAT(loop->backend_text(),
             Catch::Contains("Operation not permitted") &&
                 Catch::Contains("kernel.io_uring_disabled"));
  const auto insisting =
      EventLoop::Create({.backend = LoopBackendKind::kIoUring});
  CHECK(insisting.status().code() == StatusCode::kPermissionDenied);
}

TEST_CASE("Options out of range are refused by name and value") {
  const auto [options, name] = GENERATE(table<EventLoopOptions, const char*>({
      {{.queue_entries = 0}, "queue_entries is 0"},
      {{.queue_entries = 4097}, "queue_entries is 4097"},
      {{.plain_workers = 0}, "plain_workers is 0"},
      {{.plain_workers = 65}, "plain_workers is 65"},
  }));
  const auto loop = EventLoop::Create(options);
  CHECK(loop.status().code() == StatusCode::kInvalidArgument);
  CHECK_THAT(loop.status().ToString(), Catch::Contains(name));
}

TEST_CASE("A loop gives its descriptors back, and has no other than cloexec") {
  const auto options = AnyBackend();
  const auto before = OpenDescriptors();
  auto loop = MakeLoop(options);
  Settle(loop.get());
  std::set<int> opened = OpenDescriptors();
  std::erase_if(opened, [&before](int fd) { return before.contains(fd); });
  CHECK(opened.size() == 2);
  for (const int fd : opened) CHECK(::fcntl(fd, F_GETFD) == FD_CLOEXEC);
  loop.reset();
  CHECK(OpenDescriptors() == before);
}

TEST_CASE("A loop without descriptors is refused, naming the limit") {
  const LoopBackendKind backend =
      GENERATE(LoopBackendKind::kAuto, LoopBackendKind::kPlain);
  const size_t spare = GENERATE(0u, 1u);
  rlimit before{};
  getrlimit(RLIMIT_NOFILE, &before);
  rlimit lower = before;
  lower.rlim_cur = 64;  // Arbitrary; more than are open now.
  std::vector<base::UniqueFd> fillers;
  setrlimit(RLIMIT_NOFILE, &lower);
  while (true) {
    auto filler = base::CreateEventFd();
    if (!filler.ok()) break;
    fillers.push_back(*std::move(filler));
  }
  fillers.resize(fillers.size() - spare);
  const absl::Status refused = EventLoop::Create({.backend = backend}).status();
  setrlimit(RLIMIT_NOFILE, &before);
  CHECK(refused.code() == StatusCode::kResourceExhausted);
  CHECK_THAT(refused.ToString(), Catch::Contains("RLIMIT_NOFILE"));
}

TEST_CASE("Posted functions run in order on the one thread of the loop") {
  const auto loop = MakeLoop(AnyBackend());
  const Inbox<std::pair<int, std::thread::id>> ran;
  static constexpr int kPosts = 1000;
  for (int i = 0; i < kPosts; ++i) {
    loop->Post([ran, i] { ran.Put({i, std::this_thread::get_id()}); });
  }
  const auto seen = ran.WaitFor(kPosts);
  CHECK(seen.front().second != std::this_thread::get_id());
  for (int i = 0; i < kPosts; ++i) {
    const auto& [number, thread] = seen[static_cast<size_t>(i)];
    CHECK(number == i);
    CHECK(thread == seen.front().second);
  }
}

TEST_CASE("The loop's thread has its signals blocked") {
  const auto loop = MakeLoop(AnyBackend());
  const Inbox<sigset_t> masks;
  loop->Post([masks] {
    sigset_t mask{};
    pthread_sigmask(SIG_SETMASK, nullptr, &mask);
    masks.Put(mask);
  });
  const sigset_t mask = masks.WaitFor(1).front();
  CHECK(sigismember(&mask, SIGTERM) == 1);
  CHECK(sigismember(&mask, SIGRTMIN) == 1);
}

TEST_CASE("No wake-up is lost when a sleeping loop gets one post at a time") {
  const auto loop = MakeLoop(AnyBackend());
  for (int i = 0; i < 5000; ++i) Settle(loop.get());
  SUCCEED("every post was answered");
}

TEST_CASE("Posts from many threads at once all run, once") {
  const auto loop = MakeLoop(AnyBackend());
  static constexpr size_t kThreads = 8;
  static constexpr size_t kPosts = 3000;
  std::atomic<size_t> ran{0};
  std::vector<std::thread> threads;
  for (size_t i = 0; i < kThreads; ++i) {
    threads.emplace_back([&loop, &ran] {
      for (size_t j = 0; j < kPosts; ++j) loop->Post([&ran] { ++ran; });
    });
  }
  for (std::thread& thread : threads) thread.join();
  loop->Stop();
  CHECK(ran == kThreads * kPosts);
}

TEST_CASE("Threads may start and cancel at once") {
  const auto loop = MakeLoop(AnyBackend());
  static constexpr size_t kThreads = 4;
  static constexpr size_t kRounds = 1000;
  const Outcomes results;
  std::vector<std::thread> threads;
  for (size_t i = 0; i < kThreads; ++i) {
    threads.emplace_back([&loop, &results] {
      for (size_t j = 0; j < kRounds; ++j) {
        loop->Cancel(
            loop->StartTimer(steady_clock::now() + hours(1), Into(results)));
        loop->Cancel(loop->StartTimer(steady_clock::now(), Into(results)));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(results.WaitFor(2 * kThreads * kRounds).size() ==
        2 * kThreads * kRounds);
}

TEST_CASE("Destruction ends everything outstanding, once") {
  static constexpr size_t kEach = 300;
  static constexpr size_t kBytes = 4096;
  const test::TemporaryDirectory directory;
  auto options = AnyBackend();
  options.queue_entries = 4;
  const auto file = OpenFile(directory.File("file"), O_RDWR | O_CREAT);
  REQUIRE(file.ok());
  std::vector<base::UniqueFd> events;
  std::vector<uint8_t> buffers(kEach * kBytes);
  const Outcomes timers;
  const Outcomes writes;
  const Outcomes watches;
  std::atomic<size_t> posts{0};
  auto loop = MakeLoop(options);
  for (size_t i = 0; i < kEach; ++i) {
    auto event = base::CreateEventFd();
    REQUIRE(event.ok());
    events.push_back(*std::move(event));
    loop->WatchEventFd(events.back().get(), Into(watches));
    loop->StartTimer(steady_clock::now() + hours(1), Into(timers));
    loop->Write(file->get(), buffers.data() + i * kBytes, kBytes, i * kBytes,
                Into(writes));
    loop->Post([&posts] { ++posts; });
  }
  loop.reset();
  CHECK(posts == kEach);
  CHECK(writes.size() == kEach);
  const auto ended_timers = timers.WaitFor(kEach);
  CHECK(ended_timers.size() == kEach);
  CHECK(ended_timers.back().code == StatusCode::kCancelled);
  const auto ended_watches = watches.WaitFor(kEach);
  CHECK(ended_watches.size() == kEach);
  CHECK(ended_watches.back().code == StatusCode::kCancelled);
}

TEST_CASE("What callbacks start while the loop stops is cancelled too") {
  auto loop = MakeLoop(AnyBackend());
  const Outcomes second;
  loop->StartTimer(steady_clock::now() + hours(1), [&](const auto&) {
    loop->StartTimer(steady_clock::now(), Into(second));
  });
  loop->Stop();
  CHECK(second.WaitFor(1).front().code == StatusCode::kCancelled);
}

TEST_CASE("What is started after Stop() ends in the destructor") {
  auto loop = MakeLoop(AnyBackend());
  loop->Stop();
  loop->Stop();
  const Outcomes results;
  std::atomic<int> posts{0};
  loop->StartTimer(steady_clock::now(), Into(results));
  // Not through `loop`, which is empty while reset() destroys.
  loop->Post([&posts, again = loop.get()] {
    ++posts;
    again->Post([&posts] { ++posts; });
  });
  CHECK(results.size() == 0);
  loop.reset();
  CHECK(posts == 2);
  CHECK(results.WaitFor(1).front().code == StatusCode::kCancelled);
}

TEST_CASE("Loops that start and stop at once leave nothing") {
  const auto options = AnyBackend();
  const auto before = OpenDescriptors();
  for (int i = 0; i < 50; ++i) MakeLoop(options);
  CHECK(OpenDescriptors() == before);
}

}  // namespace
}  // namespace catnap::io
