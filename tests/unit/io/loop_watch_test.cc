#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <catch2/catch.hpp>
#include <memory>
#include <utility>
#include <vector>

#include "base/unique_fd.h"
#include "io/event_loop.h"
#include "unit/io/loop_test_support.h"

namespace catnap::io {
namespace {

using absl::StatusCode;

std::unique_ptr<EventLoop> AnyLoop(EventLoopOptions options = {}) {
  options.backend = GENERATE(from_range(Backends()));
  return MakeLoop(options);
}

base::UniqueFd MakeEventFd() {
  auto fd = base::CreateEventFd();
  REQUIRE(fd.ok());
  return *std::move(fd);
}

std::pair<base::UniqueFd, base::UniqueFd> MakeSockets() {
  std::array<int, 2> ends{};
  REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0,
                       ends.data()) == 0);
  return {base::UniqueFd(ends[0]), base::UniqueFd(ends[1])};
}

TEST_CASE("A watched eventfd calls back after every signal") {
  const base::UniqueFd event = MakeEventFd();
  const auto loop = AnyLoop();
  const Outcomes calls;
  loop->WatchEventFd(event.get(), Into(calls));
  for (size_t i = 1; i <= 1000; ++i) {
    base::SignalEventFd(event.get());
    CHECK(calls.WaitFor(i).size() == i);
  }
  CHECK_FALSE(base::DrainEventFd(event.get()));  // The loop took it back to 0.
}

TEST_CASE("A signal from before the watch is seen, many count as one") {
  const base::UniqueFd event = MakeEventFd();
  for (int i = 0; i < 5; ++i) base::SignalEventFd(event.get());
  const auto loop = AnyLoop();
  const Outcomes calls;
  loop->WatchEventFd(event.get(), Into(calls));
  const auto first = calls.WaitFor(1);
  REQUIRE(first.front().ok());
  CHECK((first.front().value & POLLIN) != 0);
  Settle(loop.get());
  CHECK(calls.size() == 1);
}

TEST_CASE("Hundreds of eventfds signalled at once all call back") {
  // More than the completion queue of this ring holds.
  static constexpr size_t kEvents = 300;
  std::vector<base::UniqueFd> events;
  for (size_t i = 0; i < kEvents; ++i) events.push_back(MakeEventFd());
  const auto loop = AnyLoop({.queue_entries = 2});
  const Inbox<size_t> calls;
  for (size_t i = 0; i < kEvents; ++i) {
    loop->WatchEventFd(events[i].get(),
                       [calls, i](const absl::StatusOr<uint32_t>& ready) {
                         if (ready.ok()) calls.Put(i);
                       });
  }
  for (size_t round = 1; round <= 20; ++round) {
    for (const auto& event : events) base::SignalEventFd(event.get());
    calls.WaitFor(round * kEvents);
  }
  std::vector<size_t> per_event(kEvents, 0);
  for (const size_t i : calls.WaitFor(20 * kEvents)) ++per_event[i];
  CHECK(per_event == std::vector<size_t>(kEvents, 20));
}

TEST_CASE("A cancelled watch calls back once more, with CANCELLED") {
  const base::UniqueFd event = MakeEventFd();
  const auto loop = AnyLoop();
  const Outcomes calls;
  const OperationId id = loop->WatchEventFd(event.get(), Into(calls));
  base::SignalEventFd(event.get());
  calls.WaitFor(1);
  loop->Cancel(id);
  loop->Cancel(id);
  CHECK(calls.WaitFor(2).back().code == StatusCode::kCancelled);
  base::SignalEventFd(event.get());
  Settle(loop.get());
  CHECK(calls.size() == 2);
  CHECK(base::DrainEventFd(event.get()));  // Nobody listens any more.
}

TEST_CASE("A watch may cancel itself and start another from its callback") {
  const base::UniqueFd event = MakeEventFd();
  const auto loop = AnyLoop();
  const Outcomes second;
  const Inbox<StatusCode> first;
  OperationId id;  // Written before the signal below, read after it.
  id = loop->WatchEventFd(event.get(),
                          [&](const absl::StatusOr<uint32_t>& ready) {
                            first.Put(ready.status().code());
                            if (!ready.ok()) return;
                            loop->Cancel(id);
                            loop->WatchEventFd(event.get(), Into(second));
                          });
  base::SignalEventFd(event.get());
  CHECK(first.WaitFor(2) ==
        std::vector<StatusCode>{StatusCode::kOk, StatusCode::kCancelled});
  Settle(loop.get());
  base::SignalEventFd(event.get());
  CHECK(second.WaitFor(1).front().ok());
}

TEST_CASE("A descriptor can be watched again after its watch has ended") {
  const base::UniqueFd event = MakeEventFd();
  const auto loop = AnyLoop();
  for (int i = 0; i < 100; ++i) {
    const Outcomes calls;
    const OperationId id = loop->WatchEventFd(event.get(), Into(calls));
    base::SignalEventFd(event.get());
    calls.WaitFor(1);
    loop->Cancel(id);
    CHECK(calls.WaitFor(2).size() == 2);
  }
}

TEST_CASE("A socket is watched for both directions by two watches") {
  auto [ours, theirs] = MakeSockets();
  const auto loop = AnyLoop();
  const Outcomes readable;
  const Outcomes writable;
  loop->Watch(ours.get(), POLLOUT, Into(writable));
  loop->Watch(ours.get(), POLLIN, Into(readable));
  const auto out = writable.WaitFor(1);
  REQUIRE(out.front().ok());
  CHECK((out.front().value & POLLOUT) != 0);
  Settle(loop.get());
  CHECK(readable.size() == 0);
  REQUIRE(::write(theirs.get(), "x", 1) == 1);
  const auto in = readable.WaitFor(1);
  REQUIRE(in.front().ok());
  CHECK((in.front().value & POLLIN) != 0);
}

TEST_CASE("Data that comes while the callback reads is reported again") {
  auto [ours, theirs] = MakeSockets();
  const auto loop = AnyLoop();
  const Inbox<char> bytes;
  loop->Watch(ours.get(), POLLIN,
              [bytes, fd = ours.get()](const absl::StatusOr<uint32_t>& ready) {
                if (!ready.ok()) return;
                char byte = 0;
                while (::read(fd, &byte, 1) == 1) bytes.Put(byte);
              });
  static constexpr size_t kBytes = 5000;
  for (size_t i = 0; i < kBytes; ++i) {
    while (::write(theirs.get(), "x", 1) != 1) {
    }
  }
  CHECK(bytes.WaitFor(kBytes).size() == kBytes);
}

TEST_CASE("The end of a peer is reported as POLLHUP") {
  auto [ours, theirs] = MakeSockets();
  const auto loop = AnyLoop();
  const Outcomes calls;
  loop->Watch(ours.get(), POLLIN, Into(calls));
  theirs.Reset();
  const auto ended = calls.WaitFor(1);
  REQUIRE(ended.front().ok());
  CHECK((ended.front().value & POLLHUP) != 0);
}

TEST_CASE("What cannot be watched is refused, once") {
  const base::UniqueFd file(::open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
  const base::UniqueFd directory(::open("/", O_RDONLY | O_CLOEXEC));
  const base::UniqueFd blocking(::eventfd(0, EFD_CLOEXEC));
  const auto loop = AnyLoop();
  const Outcomes calls;
  loop->Watch(file.get(), POLLIN, Into(calls));
  loop->Watch(directory.get(), POLLIN, Into(calls));
  loop->WatchEventFd(blocking.get(), Into(calls));
  for (const auto& refused : calls.WaitFor(3)) {
    CHECK(refused.code == StatusCode::kInvalidArgument);
  }
  loop->Watch(-1, POLLIN, Into(calls));
  CHECK_THAT(calls.WaitFor(4).back().text, Catch::Contains("descriptor -1"));
  loop->Stop();
  CHECK(calls.size() == 4);
}

}  // namespace
}  // namespace catnap::io
