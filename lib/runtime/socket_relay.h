#ifndef CATNAP_LIB_RUNTIME_SOCKET_RELAY_H_
#define CATNAP_LIB_RUNTIME_SOCKET_RELAY_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "agent/client.h"
#include "base/mutex.h"
#include "base/unique_fd.h"
#include "io/event_loop.h"
#include "runtime/relay_group.h"

namespace catnap::runtime {

// Joins a stream socket of this process and a connection inside the guest,
// which the agent carries as a stream. Bytes flow both ways; each way has an
// end of its own (a half-close on the socket, the end flag on the stream), and
// waits when its reader is slow: what is under way is at most the stream's
// credit towards the socket, and one read towards the guest.
//
// The relay ends when both ways have, when one side breaks off (the other one
// is then broken off as well: a TCP socket is reset, a local one is closed), or
// by End(). The group holds it until then; hold it only to end it.
//
// Thread-safe. Events come on the loop's thread, in order, with no lock held;
// they must not block.
class SocketRelay final : public agent::StreamHandler,
                          public std::enable_shared_from_this<SocketRelay> {
 public:
  struct Events {
    // The guest's end is connected. Only after Open(); null: nobody asks.
    absl::AnyInvocable<void() &&> on_connected{};
    // The last call; the socket is closed. OK: both ways ended in order, and
    // the socket took all bytes. Null: nobody asks.
    absl::AnyInvocable<void(const absl::Status&) &&> on_end{};
  };

  // Takes a connected, non-blocking stream socket. `group` must outlive the
  // relay, which it sees to. Nothing flows before Open() or Accept(), one of
  // which or End() has to follow.
  // Errors: as RelayGroup says; then no event comes.
  static absl::StatusOr<std::shared_ptr<SocketRelay>> Create(
      RelayGroup* group, base::UniqueFd socket, Events events);

  // Connects to `port` of the guest's loopback. Whether that worked is told by
  // the events. Bytes of the socket may be on their way before.
  void Open(const std::shared_ptr<agent::Client>& client, uint16_t port);
  // Takes part in a connection that the guest opened; for
  // agent::ServiceListener::OnConnect(), which returns this, or null when the
  // answer is false: the owner has ended it meanwhile.
  [[nodiscard]] bool Accept(std::shared_ptr<agent::Client> client,
                            uint32_t stream);
  // Breaks off; on_end gets `why`, unless the relay has ended meanwhile. Does
  // not block.
  void End(const absl::Status& why);

  // agent::StreamHandler; for the client.
  size_t OnData(uint8_t channel, std::span<const uint8_t> data,
                bool end) override;
  void OnMessage(agent::Fields fields) override;
  void OnWritable() override;
  void OnEnd(absl::StatusOr<agent::Encoded> result) override;

  // Only Create() can call it.
  class Key {
    friend class SocketRelay;
    Key() = default;
  };
  SocketRelay(Key key, RelayGroup* group, base::UniqueFd socket, Events events);

 private:
  enum class StreamState : uint8_t { kNone, kOpening, kOpen, kOver };

  void StartWatchLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // These run on the loop's thread.
  void OnReady(const absl::StatusOr<uint32_t>& events);
  void PumpToGuest();
  bool PumpToGuestOnce();
  void PumpToSocket();
  // Ends the relay when nothing is left to wait for.
  void Settle();
  // They are posted with the lock held and before the end: the loop is there
  // as long as the group, and the group as long as a relay that has not ended.
  void PostPumpToGuestLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void PostSettleLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  absl::StatusOr<size_t> SendLocked(std::span<const uint8_t> data)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ShutWhenDrainedLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status ErrorOfLocked(const agent::Encoded& result)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  RelayGroup* const group_;    // Not owned.
  io::EventLoop* const loop_;  // Not owned.
  const std::shared_ptr<Traffic> traffic_;

  // The loop's thread only.
  Events events_;
  std::string pending_;        // Read, and not yet taken by the stream.
  bool socket_ended_ = false;  // Nothing more to read.

  // No call of the client is made with it held: that may run handlers.
  base::Mutex mutex_;
  // Closed on the loop's thread only.
  base::UniqueFd socket_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<agent::Client> client_ ABSL_GUARDED_BY(mutex_);
  uint16_t port_ ABSL_GUARDED_BY(mutex_) = 0;  // Of Open().
  bool connected_ ABSL_GUARDED_BY(mutex_) = false;
  uint32_t stream_ ABSL_GUARDED_BY(mutex_) = 0;
  StreamState state_ ABSL_GUARDED_BY(mutex_) = StreamState::kNone;
  std::optional<io::OperationId> watch_ ABSL_GUARDED_BY(mutex_);
  bool watch_cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  bool pump_posted_ ABSL_GUARDED_BY(mutex_) = false;
  // From the guest, and not yet taken by the socket. Credit bounds it.
  std::string waiting_ ABSL_GUARDED_BY(mutex_);
  bool guest_ended_ ABSL_GUARDED_BY(mutex_) = false;  // Nothing follows that.
  bool shut_ ABSL_GUARDED_BY(mutex_) = false;         // And the socket knows.
  bool end_sent_ ABSL_GUARDED_BY(mutex_) = false;  // The guest knows of ours.
  // Why it breaks off.
  std::optional<absl::Status> broken_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace catnap::runtime

#endif  // CATNAP_LIB_RUNTIME_SOCKET_RELAY_H_
