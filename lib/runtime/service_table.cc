#include "runtime/service_table.h"

#include <map>
#include <optional>
#include <set>
#include <utility>

#include "agent/messages.h"
#include "base/mutex.h"
#include "base/serial_queue.h"
#include "base/status.h"
#include "runtime/connect_to_guest.h"
#include "runtime/relay_group.h"
#include "runtime/socket_relay.h"

namespace catnap::runtime {
namespace {

// Connections that wait for the executor, and so descriptors: a guest that
// opens and closes fast may not collect them here.
constexpr size_t kMaxWaiting = 128;

struct Service {
  ServiceTable::OnConnection on_connection;
};

// Of a stream by which the guest listens on a port.
class ListenHandler final : public agent::StreamHandler {
 public:
  ListenHandler(uint16_t port, base::Logger log)
      : port_(port), log_(std::move(log)) {}

  size_t OnData(uint8_t /*channel*/, std::span<const uint8_t> data,
                bool /*end*/) override {
    return data.size();
  }
  void OnEnd(absl::StatusOr<agent::Encoded> result) override {
    // An error is the end of the connection, or of the service.
    agent::FileResult answer;
    if (!result.ok() || !Decode(*result, &answer)) return;
    log_.Warning(
        "the guest cannot offer the host's service on port {}: {}; does a "
        "program in the guest listen on this port, on all addresses?",
        port_, ErrnoText(answer.error));
  }

 private:
  const uint16_t port_;
  const base::Logger log_;
};

}  // namespace

class ServiceTable::Core final : public agent::ServiceListener,
                                 public std::enable_shared_from_this<Core> {
 public:
  explicit Core(ServiceTableOptions options)
      : loop_(options.loop),
        log_(std::move(options.log)),
        // The client bounds the streams that the guest has open.
        group_(options.loop, std::move(options.traffic), SIZE_MAX),
        queue_(std::move(options.executor)) {}

  absl::Status Set(uint16_t port, OnConnection on_connection) {
    if (port == 0) {
      return absl::InvalidArgumentError("port is 0, must be 1 to 65535");
    }
    auto service = std::make_shared<Service>();
    service->on_connection = std::move(on_connection);
    const base::MutexLock lock(&mutex_);
    if (services_.size() >= kMaxServices && !services_.contains(port)) {
      return Error(absl::StatusCode::kResourceExhausted,
                   "the guest has {} services, which is the most; remove one",
                   services_.size());
    }
    services_[port].swap(service);
    PostListenLocked();
    return absl::OkStatus();
  }

  void Remove(uint16_t port) {
    std::shared_ptr<Service> removed;  // The user's; goes without the lock.
    const base::MutexLock lock(&mutex_);
    const auto at = services_.find(port);
    if (at == services_.end()) return;
    removed = std::move(at->second);
    services_.erase(at);
    PostListenLocked();
  }

  // Returns when nothing of this runs any more.
  void Close() {
    std::map<uint16_t, std::shared_ptr<Service>> services;
    {
      const base::MutexLock lock(&mutex_);
      services.swap(services_);
      PostListenLocked();
      closed_ = true;
      while (listen_posted_) listened_.Wait(&mutex_);
    }
    queue_.Cancel();
    group_.Close();
  }

  size_t size() const { return group_.size(); }

  // agent::ServiceListener.
  void OnClient(const std::shared_ptr<agent::Client>& client) override {
    const base::MutexLock lock(&mutex_);
    client_ = client;
    PostListenLocked();
  }
  std::shared_ptr<agent::StreamHandler> OnConnect(agent::Client* client,
                                                  uint32_t stream,
                                                  uint16_t port) override;

 private:
  void Deliver(uint16_t port, const std::shared_ptr<Service>& service,
               base::UniqueFd socket);

  // All streams are opened and cancelled on the loop's thread, so that an old
  // listener of a port is gone before a new one comes.
  void PostListenLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (closed_ || listen_posted_) return;
    listen_posted_ = true;
    loop_->Post([self = shared_from_this()] { self->Listen(); });
  }
  void Listen();

  io::EventLoop* const loop_;  // Not owned.
  const base::Logger log_;

  mutable base::Mutex mutex_;
  base::CondVar listened_;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  bool listen_posted_ ABSL_GUARDED_BY(mutex_) = false;
  std::map<uint16_t, std::shared_ptr<Service>> services_
      ABSL_GUARDED_BY(mutex_);
  std::weak_ptr<agent::Client> client_ ABSL_GUARDED_BY(mutex_);
  size_t waiting_ ABSL_GUARDED_BY(mutex_) = 0;

  // The loop's thread only: the streams by which `listening_client_` listens.
  std::map<uint16_t, uint32_t> listening_;
  std::weak_ptr<agent::Client> listening_client_;

  RelayGroup group_;
  base::SerialQueue queue_;
};

void ServiceTable::Core::Listen() {
  std::set<uint16_t> ports;
  std::shared_ptr<agent::Client> client;
  bool last = false;
  {
    const base::MutexLock lock(&mutex_);
    last = closed_;
    // What changes from now on is for the next turn.
    if (!last) listen_posted_ = false;
    client = client_.lock();
    for (const auto& [port, service] : services_) ports.insert(port);
  }
  if (client != listening_client_.lock()) listening_.clear();
  listening_client_ = client;
  if (client != nullptr) {
    for (auto at = listening_.begin(); at != listening_.end();) {
      if (ports.contains(at->first)) {
        ++at;
        continue;
      }
      client->Cancel(at->second);
      at = listening_.erase(at);
    }
    for (const uint16_t port : ports) {
      if (listening_.contains(port)) continue;
      const auto stream =
          client->Open(agent::Kind::kListen, Encode(agent::PortRequest{port}),
                       std::make_shared<ListenHandler>(port, log_));
      if (stream.ok()) listening_.emplace(port, *stream);
    }
    client.reset();
  }
  if (!last) return;
  const base::MutexLock lock(&mutex_);
  listen_posted_ = false;
  listened_.NotifyAll();
}

std::shared_ptr<agent::StreamHandler> ServiceTable::Core::OnConnect(
    agent::Client* client, uint32_t stream, uint16_t port) {
  std::shared_ptr<Service> service;
  std::shared_ptr<agent::Client> carrier;
  {
    const base::MutexLock lock(&mutex_);
    const auto at = services_.find(port);
    if (closed_ || at == services_.end() || waiting_ >= kMaxWaiting) {
      return nullptr;
    }
    carrier = client_.lock();
    if (carrier.get() != client) return nullptr;  // A newer one is there.
    service = at->second;
    ++waiting_;
  }
  const auto give_up = [this] {
    const base::MutexLock lock(&mutex_);
    --waiting_;
    return nullptr;
  };
  auto pair = CreateLocalSocketPair();
  if (!pair.ok()) {
    log_.LogIfError(pair.status(), "a connection of the guest to port {}",
                    port);
    return give_up();
  }
  auto relay = SocketRelay::Create(&group_, std::move(pair->ours), {});
  if (!relay.ok()) return give_up();
  if (!(*relay)->Accept(std::move(carrier), stream)) return give_up();
  queue_.Post([self = weak_from_this(), port, service = std::move(service),
               socket = std::move(pair->theirs)]() mutable {
    if (const auto core = self.lock(); core != nullptr) {
      core->Deliver(port, service, std::move(socket));
    }
  });
  return *std::move(relay);
}

void ServiceTable::Core::Deliver(uint16_t port,
                                 const std::shared_ptr<Service>& service,
                                 base::UniqueFd socket) {
  {
    const base::MutexLock lock(&mutex_);
    --waiting_;
    const auto at = services_.find(port);
    // Not the one that was removed while this waited.
    if (at == services_.end() || at->second != service) return;
  }
  service->on_connection(std::move(socket));
}

ServiceTable::ServiceTable(ServiceTableOptions options)
    : core_(std::make_shared<Core>(std::move(options))) {}

ServiceTable::~ServiceTable() { core_->Close(); }

std::shared_ptr<agent::ServiceListener> ServiceTable::listener() const {
  return core_;
}

absl::Status ServiceTable::Set(uint16_t port, OnConnection on_connection) {
  return core_->Set(port, std::move(on_connection));
}

void ServiceTable::Remove(uint16_t port) { core_->Remove(port); }

size_t ServiceTable::size() const { return core_->size(); }

}  // namespace catnap::runtime
