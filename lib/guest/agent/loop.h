#ifndef CATNAP_LIB_GUEST_AGENT_LOOP_H_
#define CATNAP_LIB_GUEST_AGENT_LOOP_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <unordered_map>
#include <utility>

namespace catnap::guest {

// The agent's one thread: waits for descriptors and timers.
class Loop {
 public:
  using Time = std::chrono::steady_clock::time_point;
  using TimerId = std::pair<Time, uint64_t>;

  class Watcher {
   public:
    virtual ~Watcher() = default;
    // `events` is what epoll says. The watcher may end itself and others.
    virtual void OnEvents(int fd, uint32_t events) = 0;
  };

  Loop();
  ~Loop();
  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;

  // `events` as epoll's. The watcher must outlive its descriptors here.
  // False: not a descriptor that can be waited for.
  bool Add(int fd, uint32_t events, Watcher* watcher);
  void Change(int fd, uint32_t events);
  // Before the descriptor is closed. Events that wait are dropped.
  void Remove(int fd);

  TimerId AddTimer(Time time, std::function<void()> run);
  void RemoveTimer(const TimerId& timer);

  // Handles what is there, or waits for something.
  void RunOnce();

 private:
  struct Watch {
    Watcher* watcher;
    uint32_t generation;  // A descriptor's number comes again soon.
  };

  int epoll_;
  std::unordered_map<int, Watch> watches_;
  std::map<TimerId, std::function<void()>> timers_;
  uint64_t next_timer_ = 0;
  uint32_t next_generation_ = 0;
};

}  // namespace catnap::guest

#endif  // CATNAP_LIB_GUEST_AGENT_LOOP_H_
