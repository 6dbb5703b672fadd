#ifndef CATNAP_LIB_NET_LINK_H_
#define CATNAP_LIB_NET_LINK_H_

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/log.h"
#include "base/mutex.h"
#include "base/unique_fd.h"
#include "io/event_loop.h"
#include "net/gate.h"
#include "net/helper_process.h"
#include "net/loop_scope.h"
#include "net/resolver.h"
#include "net/wire_port.h"

namespace catnap::net {

struct LinkOptions {
  MacAddress guest_mac = kDefaultGuestMac;
  uint16_t mtu = 1500;  // 1280 to kMaxMtu.
  base::Logger log{};
  // A tap device that takes the place of the helper: an L2 network with a
  // gateway at the link's gateway address. None when not valid.
  base::UniqueFd tap{};
  // The helper program; tests bring their own.
  std::string helper = "passt";
  std::vector<std::string> helper_arguments{};  // Empty: passt's.
  ResolverOptions resolver{};
};

struct LinkStats {
  GateStats gate;
  uint64_t helper_starts = 0;
  uint64_t helper_deaths = 0;
  pid_t helper_pid = -1;  // -1: none runs.
  // OK, or why frames that may leave do not: what hinders the helper, or what
  // became of the tap.
  absl::Status outside{};
};

// A guest's network: the gate, and behind it the helper process or the tap.
//
// The helper is started for the first frame that may leave, started again
// (with growing pauses) when it ends, and killed when nothing may leave any
// more and with the link. While one that had worked is missing, the link is
// down. When none can be started, the link stays up, and what cannot leave is
// refused.
//
// Memory: 128 KiB for frames from the helper, at most 512 KiB for those to it,
// 256 frames and at most a MiB for the guest, and what Gate says; in the
// kernel, up to 8 MiB of frames that the guest is yet to take. Descriptors:
// three with a helper (one with a tap), and one for each name that is being
// asked for.
//
// Thread safety: thread-safe. Nothing but the destructor blocks; it must not
// run on the loop's thread. Locks: SetListener()'s, then the listener's own,
// then ours, which is never held while the listener is called.
class Link final : private GateOutput {
 public:
  // `loop` is borrowed and must outlive the link.
  // Errors: INVALID_ARGUMENT, the MTU or the tap.
  static absl::StatusOr<std::shared_ptr<Link>> Create(LinkOptions options,
                                                      io::EventLoop* loop);
  ~Link() override;
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;

  const MacAddress& guest_mac() const { return options_.guest_mac; }
  uint16_t mtu() const { return options_.mtu; }

  // Holds from the next frame on. Nothing may leave before the first call.
  void SetPolicy(std::shared_ptr<const Policy> policy);
  LinkStats stats() const;

  // The guest's device. `listener` is called on the loop's thread when frames
  // for the guest came or is_up() changed, from anywhere but the calls below.
  // Setting null waits for a call that runs.
  void SetListener(std::function<void()> listener);
  bool is_up() const;
  // The guest sent it.
  void FromGuest(std::span<const uint8_t> frame);
  // The next frame for the guest. False: there is none.
  bool HasFrame() const;
  bool TakeFrame(std::vector<uint8_t>* frame);

 private:
  using TimePoint = std::chrono::steady_clock::time_point;

  Link(LinkOptions options, bool has_tap, io::EventLoop* loop);

  // GateOutput.
  void ToGuest(std::span<const uint8_t> frame) override
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Refusal ToOutside(std::span<const uint8_t> frame) override
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Ask(uint64_t token, const DnsQuery& query) override
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  bool GuestHasRoomLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void OnReady();
  void Notify();
  // The helper. Starting takes a millisecond: on the loop's thread.
  void StartHelper();
  void UsePortLocked(std::unique_ptr<WirePort> port)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void BreakLocked(const absl::Status& why)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void DropHelperLocked(bool died, const absl::Status& why)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void LosePendingLocked(Refusal why) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Nothing is started for a while.
  void PauseLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void EndDropped();

  const LinkOptions options_;
  const bool has_tap_;

  base::Mutex listener_mutex_ ABSL_ACQUIRED_BEFORE(mutex_);
  std::function<void()> listener_ ABSL_GUARDED_BY(listener_mutex_);

  mutable base::Mutex mutex_;
  Gate gate_ ABSL_GUARDED_BY(mutex_);
  std::deque<std::vector<uint8_t>> to_guest_ ABSL_GUARDED_BY(mutex_);
  size_t to_guest_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  // What waits for the helper that is being started.
  std::deque<std::vector<uint8_t>> to_helper_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<HelperProcess> helper_ ABSL_GUARDED_BY(mutex_);
  // To be ended on the loop's thread, and whether that was not our will.
  struct Dropped {
    std::unique_ptr<HelperProcess> helper;
    bool died = false;
    absl::Status why{};
  };
  std::vector<Dropped> dropped_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<WirePort> port_ ABSL_GUARDED_BY(mutex_);
  LoopScope::Id watch_ ABSL_GUARDED_BY(mutex_) = 0;
  bool starting_ ABSL_GUARDED_BY(mutex_) = false;
  bool worked_ ABSL_GUARDED_BY(mutex_) = false;  // A frame came from it.
  bool up_ ABSL_GUARDED_BY(mutex_) = true;
  bool paused_ ABSL_GUARDED_BY(mutex_) = false;  // The guest's queue is full.
  TimePoint not_before_ ABSL_GUARDED_BY(mutex_){};
  std::chrono::milliseconds pause_ ABSL_GUARDED_BY(mutex_);
  TimePoint started_at_ ABSL_GUARDED_BY(mutex_){};
  uint64_t helper_starts_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t helper_deaths_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status outside_ ABSL_GUARDED_BY(mutex_);

  Resolver resolver_;
  // After all that its operations touch; ends first, but for the resolver's.
  LoopScope scope_;
};

}  // namespace catnap::net

#endif  // CATNAP_LIB_NET_LINK_H_
