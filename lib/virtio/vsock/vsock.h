#ifndef CATNAP_LIB_VIRTIO_VSOCK_VSOCK_H_
#define CATNAP_LIB_VIRTIO_VSOCK_VSOCK_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "virtio/virtio_device.h"
#include "virtio/vsock/packet.h"

namespace catnap::virtio {

// Names a stream for as long as it exists; afterwards it names nothing.
struct VsockStreamId {
  uint32_t host_port = 0;
  uint32_t guest_port = 0;
  uint64_t generation = 0;

  friend bool operator==(const VsockStreamId&, const VsockStreamId&) = default;
};

// What a stream's user on the host hears of it. Calls for all streams of one
// device come one at a time, in the order of what happened, on whatever
// thread made it happen, with no lock held: they may call the device, must not
// block and must not destroy it.
class VsockHandler {
 public:
  virtual ~VsockHandler() = default;
  // The guest accepted our Connect(), or we accepted its request: Send() works
  // from now on.
  virtual void OnConnected() {}
  // The guest sent `bytes`, a copy that lives as long as the call. Say
  // Consumed() when they are out of the way, now or later.
  virtual void OnData(std::span<const uint8_t> bytes) = 0;
  // Send() took less than everything, and can go on.
  virtual void OnWritable() {}
  // The guest sends no more; we still may.
  virtual void OnPeerClosed() {}
  // The stream is gone; the last call. OK: the guest closed it. UNAVAILABLE:
  // it refused or reset the stream, the device was reset. Not called after
  // Close() or Abort() by us.
  virtual void OnClosed(const absl::Status& why) = 0;
};

struct VsockOptions {
  uint64_t guest_cid = 3;     // 3 to 2^32 - 2.
  size_t max_streams = 4096;  // A request beyond is refused.
  // What the guest may send on each stream before it is consumed.
  uint32_t buffer_bytes = 256 << 10;
};

// The socket device (virtio 1.2, 5.10), host side in process: stream sockets
// between guest processes and objects of this one. Guest sockets reach ports
// of CID 2 that somebody listens on; we reach ports that the guest listens on.
//
// Nothing is buffered on the way to the guest: Send() copies into buffers that
// the driver offered, as far as the guest's socket has room. On the way from
// the guest a stream holds at most buffer_bytes, and all streams together
// about a MiB that was received and not yet given to handlers; a guest that
// wants more waits.
//
// Thread safety: thread-safe. Nothing blocks. The device must outlive all
// calls.
class Vsock final : public VirtioDevice {
 public:
  // Decides about a guest's request: the handler of the new stream, or null to
  // refuse. Called as a VsockHandler.
  using Acceptor =
      std::function<std::shared_ptr<VsockHandler>(VsockStreamId id)>;

  Vsock(const VsockOptions& options, memory::GuestMemory* memory);

  // Requests to `port` go to `acceptor` from now on; null: are refused.
  void Listen(uint32_t port, Acceptor acceptor);

  // Asks the guest for a stream to its `port`. The handler hears OnConnected()
  // or OnClosed().
  // Errors: FAILED_PRECONDITION, no driver is there (yet); RESOURCE_EXHAUSTED,
  // there are max_streams.
  absl::StatusOr<VsockStreamId> Connect(uint32_t port,
                                        std::shared_ptr<VsockHandler> handler);

  // Sends as many of `bytes` as the guest has room for, and returns how many;
  // when that is not all, OnWritable() comes later.
  // Errors: UNAVAILABLE, the stream is gone or closed for sending.
  absl::StatusOr<size_t> Send(VsockStreamId id, std::span<const uint8_t> bytes);
  // `bytes` of what OnData() brought are out of the way.
  void Consumed(VsockStreamId id, size_t bytes);
  // The guest's socket reads to the end of what was sent, and then 0.
  void CloseSend(VsockStreamId id);
  // The same, and we take nothing more; the handler is let go. Returns while
  // the guest may still read what was sent.
  void Close(VsockStreamId id);
  // The guest's socket fails with ECONNRESET. The handler is let go.
  void Abort(VsockStreamId id);

  // All streams are gone, and the driver is told so (VIRTIO_VSOCK_EVENT_
  // TRANSPORT_RESET): after a restore from a copy.
  void ResetTransport();

  // Has a driver that gives new receive buffers only when half of them are
  // used, as Linux's does, give them now if it would within the next quarter:
  // before a guest is copied, each copy of which would write to as many pages
  // of its own (half a MiB). By packets that no driver heeds: resets of a
  // stream that nobody can have.
  void RenewReceiveBuffers();

  // After LoadState(): the streams that were there, which have no handler. Give
  // each one by Adopt() before Resume(); the others are reset then. The handler
  // goes on where the one before was, hears OnWritable() soon, and owes
  // Consumed() for what was given and not consumed when the device was saved.
  std::vector<VsockStreamId> LoadedStreams() const;
  absl::Status Adopt(VsockStreamId id, std::shared_ptr<VsockHandler> handler);

  // The handlers of all streams hear nothing more and are let go, and nothing
  // is accepted any more; the guest is told nothing. For a device that was
  // saved, and whose streams go on in another one.
  void LetGoOfStreams();

  size_t stream_count() const;

 private:
  // Named from the driver's side.
  static constexpr size_t kReceiveQueue = 0;
  static constexpr size_t kTransmitQueue = 1;
  static constexpr size_t kEventQueue = 2;

  enum class State { kRequested, kAccepting, kConnected, kClosing };
  // What a stream is to tell the guest, in this order.
  enum Wish : uint32_t {
    kWishRequest = 1,
    kWishResponse = 2,
    kWishCreditUpdate = 4,
    kWishShutdown = 8,
  };
  // Shared by a stream and the events that wait, so that all let go at once.
  struct HandlerSlot {
    std::shared_ptr<VsockHandler> handler;
  };
  struct Stream {
    uint64_t generation = 0;
    State state = State::kRequested;
    std::shared_ptr<HandlerSlot> slot;
    uint32_t wishes = 0;
    bool queued = false;  // In ready_.
    bool wants_writable = false;
    uint32_t our_shutdown = 0;   // kVsockNo..., what we said.
    uint32_t peer_shutdown = 0;  // What the guest said.
    // All modulo 2^32.
    uint32_t sent = 0;
    uint32_t received = 0;
    uint32_t consumed = 0;
    uint32_t consumed_told = 0;
    uint32_t peer_buffer = 0;
    uint32_t peer_consumed = 0;
  };
  struct Key {
    uint32_t host_port = 0;
    uint32_t guest_port = 0;
    friend bool operator==(const Key&, const Key&) = default;
  };
  struct KeyHash {
    size_t operator()(const Key& key) const {
      return std::hash<uint64_t>()((uint64_t{key.host_port} << 32) |
                                   key.guest_port);
    }
  };
  // Something that a handler or an acceptor is to hear.
  struct Event {
    enum class Kind {
      kAccept,
      kConnected,
      kData,
      kWritable,
      kPeerClosed,
      kClosed
    };
    Kind kind{};
    VsockStreamId id;
    std::shared_ptr<HandlerSlot> slot{};
    std::vector<uint8_t> bytes{};
    absl::Status why{};
  };

  // VirtioDevice.
  std::vector<uint8_t> ConfigLocked() const override;
  bool WantsLocked(size_t index) override ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void HandleLocked(size_t index, const Chain& chain) override
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void DrainLocked() override ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ResetLocked() override ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ResumeLocked() override ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AfterServing() override;
  void SaveOwnLocked(state::StateEncoder& out) const override
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status LoadOwnLocked(state::StateDecoder in) override
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status LoadStreamLocked(state::StateDecoder in)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // Packets from the guest.
  void HandlePacketLocked(const Chain& chain)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void HandleRequestLocked(const VsockHeader& header)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // False: the guest broke the protocol, and the stream must go.
  bool HandleStreamPacketLocked(const Key& key, Stream& stream,
                                const VsockHeader& header, const Chain& chain)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool HandleDataLocked(const Key& key, Stream& stream,
                        const VsockHeader& header, const Chain& chain)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool HandleShutdownLocked(const Key& key, Stream& stream, uint32_t flags)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // Packets to the guest.
  void FillLocked(const Chain& chain) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The header of the next wish of a stream in ready_.
  VsockHeader NextWishLocked(const Key& key)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  VsockHeader HeaderLocked(const Key& key, Stream& stream,
                           VsockOperation operation)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void WishLocked(const Key& key, Stream& stream, uint32_t wish)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SendResetLocked(const Key& key) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // Streams.
  Stream* FindLocked(VsockStreamId id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Stream& AddLocked(const Key& key, State state,
                    std::shared_ptr<VsockHandler> handler)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Takes the stream away and tells its handler, if it still has one.
  void RemoveLocked(const Key& key, const absl::Status& why)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void RemoveAllLocked(const absl::Status& why)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void LimitClosingLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  static uint32_t CreditOf(const Stream& stream);
  // The stream's handler hears nothing more. The result is to be destroyed with
  // the mutex free: its destructor may call us.
  [[nodiscard]] std::shared_ptr<VsockHandler> LetGoLocked(Stream& stream)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void WakeWritersLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void PutEventLocked(Event event) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Tells handlers what waits, at most `limit` events; the rest later.
  void Deliver(size_t limit);
  void DeliverLocked(size_t limit) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  static void Tell(VsockHandler& handler, Event& event);
  void AcceptLocked(VsockStreamId id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  static VsockStreamId IdOf(const Key& key, const Stream& stream);

  const VsockOptions options_;
  std::unordered_map<uint32_t, std::shared_ptr<const Acceptor>> acceptors_
      ABSL_GUARDED_BY(mutex_);
  std::unordered_map<Key, Stream, KeyHash> streams_ ABSL_GUARDED_BY(mutex_);
  uint64_t next_generation_ ABSL_GUARDED_BY(mutex_) = 1;
  uint32_t next_port_ ABSL_GUARDED_BY(mutex_) = 1 << 30;
  // Streams that have wishes, each once.
  std::deque<Key> ready_ ABSL_GUARDED_BY(mutex_);
  // Resets for streams that do not exist (any more).
  std::deque<Key> resets_ ABSL_GUARDED_BY(mutex_);
  // Streams in kClosing, oldest first; may name some that have gone.
  std::deque<VsockStreamId> closing_ ABSL_GUARDED_BY(mutex_);
  bool transport_reset_ ABSL_GUARDED_BY(mutex_) = false;
  // Senders wait for buffers of the driver.
  bool starved_ ABSL_GUARDED_BY(mutex_) = false;

  // What Send() is sending, while it holds the mutex.
  struct Sending {
    Key key;
    std::span<const uint8_t> rest;
  };
  std::optional<Sending> sending_ ABSL_GUARDED_BY(mutex_);

  std::deque<Event> events_ ABSL_GUARDED_BY(mutex_);
  size_t event_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  bool delivering_ ABSL_GUARDED_BY(mutex_) = false;
  base::CondVar delivered_;
  // The guest waits until handlers have taken what they were sent.
  bool stalled_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace catnap::virtio

#endif  // CATNAP_LIB_VIRTIO_VSOCK_VSOCK_H_
