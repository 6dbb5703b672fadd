#include "runtime/agent_connection.h"

#include <optional>
#include <span>
#include <utility>

#include "base/status.h"
#include "catnap/errors.h"

namespace catnap::runtime {

// What the acceptor and the connections have in common.
struct AgentConnection::Shared {
  Shared(std::shared_ptr<vmm::GuestSockets> sockets_, io::EventLoop* loop_,
         base::Clock* clock_, std::shared_ptr<agent::ServiceListener> services_)
      : loop(loop_),
        clock(clock_),
        services(std::move(services_)),
        sockets(std::move(sockets_)) {}

  // Null while the guest sleeps.
  std::shared_ptr<vmm::GuestSockets> Sockets() const {
    const base::MutexLock lock(&mutex);
    return sockets;
  }

  io::EventLoop* const loop;  // Not owned.
  base::Clock* const clock;   // Not owned.
  const std::shared_ptr<agent::ServiceListener> services;

  mutable base::Mutex mutex;
  base::CondVar changed;
  std::shared_ptr<vmm::GuestSockets> sockets ABSL_GUARDED_BY(mutex);
  bool closed ABSL_GUARDED_BY(mutex) = false;
  // The current connection, from when it is connected.
  std::shared_ptr<Link> link ABSL_GUARDED_BY(mutex);
};

// One connection. Owned by the socket's stream, by Shared while it is the
// current one, and by whoever holds its client: so the last one to let go may
// be a handler of this very client. Make() has the loop destroy it.
class AgentConnection::Link final : public vmm::GuestSocketHandler,
                                    public agent::ByteChannel,
                                    public std::enable_shared_from_this<Link> {
 public:
  static std::shared_ptr<Link> Make(const std::shared_ptr<Shared>& shared,
                                    vmm::GuestSocketId id) {
    io::EventLoop* const loop = shared->loop;
    return std::shared_ptr<Link>(new Link(shared, id), [loop](Link* link) {
      loop->Post([owned = std::unique_ptr<Link>(link)] {});
    });
  }

  ~Link() override {
    const base::MutexLock lock(&mutex_);
    if (timer_.has_value()) shared_->loop->Cancel(timer_->id);
  }

  // Null until the guest's socket is connected.
  agent::Client* client() {
    const base::MutexLock lock(&mutex_);
    return client_.get();
  }

  // The streams end with `why`.
  void End(const absl::Status& why) {
    const auto sockets = shared_->Sockets();
    if (sockets != nullptr) sockets->Abort(id());
    CloseClient(why);
  }

  // Its stream in the sockets of the restored guest; nobody sends meanwhile.
  void Adopt(vmm::GuestSockets* sockets) {
    const vmm::GuestSocketId before = id();
    absl::Status adopted = absl::UnavailableError(
        "the restored guest does not have the agent's connection");
    for (const vmm::GuestSocketId& loaded : sockets->LoadedStreams()) {
      if (loaded.host_port != before.host_port ||
          loaded.guest_port != before.guest_port) {
        continue;
      }
      {
        const base::MutexLock lock(&mutex_);
        id_ = loaded;
      }
      adopted = sockets->Adopt(loaded, shared_from_this());
    }
    if (!adopted.ok()) OnClosed(adopted);
  }

  // agent::ByteChannel.
  size_t Send(std::span<const uint8_t> bytes) override {
    const auto sockets = shared_->Sockets();
    if (sockets == nullptr) return 0;  // Attach() and Wake() go on.
    // A stream that is gone says so by OnClosed().
    return sockets->Send(id(), bytes).value_or(0);
  }

  // vmm::GuestSocketHandler.
  void OnConnected() override {
    agent::Client::Options options;
    options.services = shared_->services;
    options.on_deadline = [link = weak_from_this()] {
      if (const auto self = link.lock(); self != nullptr) self->Arm();
    };
    // It sends its hello by us at once.
    auto made = std::make_unique<agent::Client>(this, shared_->clock, options);
    {
      const base::MutexLock lock(&mutex_);
      client_ = std::move(made);
    }
    Arm();
    std::shared_ptr<Link> before = shared_from_this();
    {
      const base::MutexLock lock(&shared_->mutex);
      if (!shared_->closed) {
        before.swap(shared_->link);
        shared_->changed.NotifyAll();
      }
    }
    // The one that it takes the place of; itself, when nobody wants it.
    if (before != nullptr) {
      before->End(absl::UnavailableError(
          "the guest's agent has a newer connection, or none is wanted"));
    }
    if (shared_->services != nullptr) {
      shared_->services->OnClient(
          std::shared_ptr<agent::Client>(shared_from_this(), client()));
    }
  }
  void OnData(std::span<const uint8_t> bytes) override {
    client()->OnReceive(bytes);
    const auto sockets = shared_->Sockets();
    if (sockets != nullptr) sockets->Consumed(id(), bytes.size());
  }
  void OnWritable() override { client()->OnWritable(); }
  void OnPeerClosed() override {
    const auto sockets = shared_->Sockets();
    if (sockets != nullptr) sockets->Close(id());
    OnClosed(absl::OkStatus());
  }
  void OnClosed(const absl::Status& /*why*/) override {
    {
      const base::MutexLock lock(&shared_->mutex);
      if (shared_->link.get() == this) shared_->link.reset();
    }
    CloseClient(
        absl::UnavailableError("the guest's agent closed the connection"));
  }

 private:
  Link(std::shared_ptr<Shared> shared, vmm::GuestSocketId id)
      : shared_(std::move(shared)), id_(id) {}

  struct Timer {
    std::chrono::steady_clock::time_point when;
    io::OperationId id;
  };

  vmm::GuestSocketId id() {
    const base::MutexLock lock(&mutex_);
    return id_;
  }

  void CloseClient(const absl::Status& why) {
    if (agent::Client* const open = client(); open != nullptr) {
      open->Close(why);
    }
  }

  // Sees to it that the client hears of its next deadline.
  void Arm() {
    const auto when = client()->NextDeadline();
    if (!when.has_value()) return;
    const base::MutexLock lock(&mutex_);
    if (timer_.has_value()) {
      if (timer_->when <= *when) return;
      shared_->loop->Cancel(timer_->id);
    }
    timer_ = Timer{.when = *when, .id = {}};
    timer_->id = shared_->loop->StartTimer(
        *when, [link = weak_from_this(),
                due = *when](const absl::StatusOr<size_t>& result) {
          const auto self = link.lock();
          if (self != nullptr && result.ok()) self->OnTimer(due);
        });
  }

  void OnTimer(std::chrono::steady_clock::time_point due) {
    {
      const base::MutexLock lock(&mutex_);
      if (timer_.has_value() && timer_->when == due) timer_.reset();
    }
    client()->OnTime();
    Arm();
  }

  const std::shared_ptr<Shared> shared_;

  base::Mutex mutex_;
  vmm::GuestSocketId id_ ABSL_GUARDED_BY(mutex_);
  std::optional<Timer> timer_ ABSL_GUARDED_BY(mutex_);
  // Set once. Last: its end uses the rest.
  std::unique_ptr<agent::Client> client_ ABSL_GUARDED_BY(mutex_);
};

AgentConnection::AgentConnection(
    std::shared_ptr<vmm::GuestSockets> sockets, io::EventLoop* loop,
    base::Clock* clock, std::shared_ptr<agent::ServiceListener> services)
    : shared_(std::make_shared<Shared>(std::move(sockets), loop, clock,
                                       std::move(services))) {
  Listen(shared_->Sockets().get());
}

void AgentConnection::Listen(vmm::GuestSockets* sockets) {
  sockets->Listen(kAgentPort, [shared = shared_](vmm::GuestSocketId id) {
    return Link::Make(shared, id);
  });
}

void AgentConnection::Close() {
  std::shared_ptr<vmm::GuestSockets> sockets;
  std::shared_ptr<Link> link;
  {
    const base::MutexLock lock(&shared_->mutex);
    shared_->closed = true;
    sockets = shared_->sockets;
    link.swap(shared_->link);
    shared_->changed.NotifyAll();
  }
  if (sockets != nullptr) sockets->Listen(kAgentPort, nullptr);
  if (link != nullptr) {
    link->End(absl::CancelledError("the connection with the agent is closed"));
  }
}

void AgentConnection::Detach() {
  std::shared_ptr<vmm::GuestSockets> sockets;
  {
    const base::MutexLock lock(&shared_->mutex);
    sockets.swap(shared_->sockets);
  }
  // The device's end is not the end of the streams.
  if (sockets != nullptr) sockets->LetGoOfStreams();
  // May be the last to have the machine: goes with no lock held.
}

void AgentConnection::Attach(std::shared_ptr<vmm::GuestSockets> sockets) {
  std::shared_ptr<Link> link;
  {
    const base::MutexLock lock(&shared_->mutex);
    if (shared_->closed) return;
    link = shared_->link;
  }
  Listen(sockets.get());
  if (link != nullptr) link->Adopt(sockets.get());
  const base::MutexLock lock(&shared_->mutex);
  shared_->sockets = std::move(sockets);
}

void AgentConnection::Continue() {
  std::shared_ptr<Link> link;
  {
    const base::MutexLock lock(&shared_->mutex);
    link = shared_->link;
  }
  if (link != nullptr) link->OnWritable();
}

void AgentConnection::Break(const absl::Status& why) {
  std::shared_ptr<Link> link;
  {
    const base::MutexLock lock(&shared_->mutex);
    link.swap(shared_->link);
  }
  if (link != nullptr) link->End(why);
}

void AgentConnection::Wake() {
  const base::MutexLock lock(&shared_->mutex);
  shared_->changed.NotifyAll();
}

absl::StatusOr<std::shared_ptr<agent::Client>> AgentConnection::WaitForClient(
    std::chrono::steady_clock::time_point deadline,
    const std::function<bool()>& give_up) {
  const base::MutexLock lock(&shared_->mutex);
  while (shared_->link == nullptr) {
    if (shared_->closed || (give_up != nullptr && give_up())) {
      return absl::CancelledError("the wait for the guest's agent was ended");
    }
    if (!shared_->changed.WaitUntil(&shared_->mutex, deadline) &&
        shared_->link == nullptr) {
      return WithReason(
          absl::UnavailableError("the guest's agent has not connected in time; "
                                 "look at the guest's console"),
          ErrorReason::kAgentUnresponsive);
    }
  }
  // The client lives as long as its connection does.
  return std::shared_ptr<agent::Client>(shared_->link, shared_->link->client());
}

}  // namespace catnap::runtime
