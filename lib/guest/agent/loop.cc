#include "guest/agent/loop.h"

#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <array>

namespace catnap::guest {
namespace {

uint64_t Key(int fd, uint32_t generation) {
  return (static_cast<uint64_t>(generation) << 32) | static_cast<uint32_t>(fd);
}

}  // namespace

Loop::Loop() : epoll_(epoll_create1(EPOLL_CLOEXEC)) {}
Loop::~Loop() { close(epoll_); }

bool Loop::Add(int fd, uint32_t events, Watcher* watcher) {
  const uint32_t generation = next_generation_++;
  epoll_event event{};
  event.events = events;
  event.data.u64 = Key(fd, generation);
  if (epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event) != 0) return false;
  watches_[fd] = {watcher, generation};
  return true;
}

void Loop::Change(int fd, uint32_t events) {
  const auto at = watches_.find(fd);
  if (at == watches_.end()) return;
  epoll_event event{};
  event.events = events;
  event.data.u64 = Key(fd, at->second.generation);
  epoll_ctl(epoll_, EPOLL_CTL_MOD, fd, &event);
}

void Loop::Remove(int fd) {
  if (watches_.erase(fd) == 0) return;
  epoll_ctl(epoll_, EPOLL_CTL_DEL, fd, nullptr);
}

Loop::TimerId Loop::AddTimer(Time time, std::function<void()> run) {
  const TimerId id{time, next_timer_++};
  timers_.emplace(id, std::move(run));
  return id;
}

void Loop::RemoveTimer(const TimerId& timer) { timers_.erase(timer); }

void Loop::RunOnce() {
  timespec wait{};
  if (!timers_.empty()) {
    const auto left = std::clamp<std::chrono::nanoseconds>(
        timers_.begin()->first.first - std::chrono::steady_clock::now(),
        std::chrono::nanoseconds(0), std::chrono::hours(1));
    wait.tv_sec = left.count() / 1'000'000'000;
    wait.tv_nsec = left.count() % 1'000'000'000;
  }
  std::array<epoll_event, 64> events{};
  // Milliseconds would be too coarse for what waits for programs to stop.
  const int count =
      epoll_pwait2(epoll_, events.data(), static_cast<int>(events.size()),
                   timers_.empty() ? nullptr : &wait, nullptr);
  for (int i = 0; i < count; ++i) {
    const epoll_event& event = events[static_cast<size_t>(i)];
    const int fd = static_cast<int>(event.data.u64 & UINT32_MAX);
    const auto at = watches_.find(fd);
    if (at == watches_.end() || at->second.generation != event.data.u64 >> 32) {
      continue;  // Removed by a watcher before it.
    }
    at->second.watcher->OnEvents(fd, event.events);
  }
  const auto now = std::chrono::steady_clock::now();
  while (!timers_.empty() && timers_.begin()->first.first <= now) {
    const auto run = std::move(timers_.begin()->second);
    timers_.erase(timers_.begin());
    run();
  }
}

}  // namespace catnap::guest
