#include "runtime/port_forward.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <optional>
#include <utility>

#include "base/mutex.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "runtime/relay_group.h"
#include "runtime/socket_relay.h"

namespace catnap::runtime {
namespace {

constexpr int kAcceptsInARow = 16;
// How long to leave the listener alone when the system has nothing left.
constexpr std::chrono::milliseconds kPause{100};

struct Address {
  sockaddr_storage name{};
  socklen_t size = 0;
};

absl::StatusOr<Address> ParseAddress(const std::string& host, uint16_t port) {
  addrinfo hints{};
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | AI_PASSIVE;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (host.empty() || ::getaddrinfo(host.c_str(), std::to_string(port).c_str(),
                                    &hints, &found) != 0) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "listen host is \"{}\", must be an IPv4 or IPv6 address such "
                 "as 127.0.0.1 or ::1",
                 host);
  }
  Address result;
  std::copy_n(reinterpret_cast<const char*>(found->ai_addr), found->ai_addrlen,
              reinterpret_cast<char*>(&result.name));
  result.size = found->ai_addrlen;
  ::freeaddrinfo(found);
  return result;
}

absl::Status BindError(int error, const std::string& host, uint16_t port) {
  switch (error) {
    case EADDRINUSE:
      return Error(absl::StatusCode::kUnavailable,
                   "cannot listen on {} port {}: somebody listens there "
                   "already; choose another port, or 0 for any that is free",
                   host, port);
    case EADDRNOTAVAIL:
      return Error(absl::StatusCode::kInvalidArgument,
                   "cannot listen on {}: no interface of this machine has this "
                   "address",
                   host);
    case EACCES:
      return Error(absl::StatusCode::kFailedPrecondition,
                   "cannot listen on {} port {}: low ports need "
                   "CAP_NET_BIND_SERVICE; choose one from 1024 on",
                   host, port);
    default:
      return ErrnoError(error, "listening on {} port {}", host, port);
  }
}

void SetFlag(int fd, int level, int option) {
  const int on = 1;
  ::setsockopt(fd, level, option, &on, sizeof(on));
}

// Answers for a connection that nobody answers for.
struct Waiting {
  explicit Waiting(std::shared_ptr<SocketRelay> relay_)
      : relay(std::move(relay_)) {}
  Waiting(Waiting&&) = default;
  Waiting& operator=(Waiting&&) = delete;
  ~Waiting() {
    if (relay != nullptr) {
      relay->End(absl::UnavailableError("there is no guest to connect to"));
    }
  }
  std::shared_ptr<SocketRelay> relay;
};

}  // namespace

// The listener, on the loop's thread. Posts and events hold it weakly.
class PortForward::Acceptor final
    : public std::enable_shared_from_this<Acceptor> {
 public:
  Acceptor(PortForwardOptions options, base::UniqueFd listener)
      : loop_(options.loop),
        guest_port_(options.guest_port),
        most_(options.max_connections),
        log_(std::move(options.log)),
        clients_(std::move(options.clients)),
        listener_(std::move(listener)),
        group_(options.loop, std::move(options.traffic), most_) {}

  void Start() {
    loop_->Post([self = shared_from_this()] {
      self->watch_ =
          self->loop_->Watch(self->listener_.get(), POLLIN,
                             [self](const absl::StatusOr<uint32_t>& events) {
                               if (events.ok()) {
                                 self->AcceptSome();
                               } else {
                                 self->OnWatchEnd(events.status());
                               }
                             });
    });
  }

  // Returns when nothing of this runs any more.
  void Close() {
    loop_->Post([self = shared_from_this()] {
      self->closing_ = true;
      if (self->timer_.has_value()) self->loop_->Cancel(*self->timer_);
      if (self->watch_.has_value()) {
        self->loop_->Cancel(*self->watch_);
      } else {
        self->Finish();
      }
    });
    {
      const base::MutexLock lock(&mutex_);
      while (!finished_) changed_.Wait(&mutex_);
    }
    group_.Close();
  }

  size_t size() const { return group_.size(); }

 private:
  void OnWatchEnd(const absl::Status& why) {
    watch_.reset();
    if (closing_) {
      Finish();
    } else {
      log_.LogIfError(why, "the forward to guest port {} accepts no more",
                      guest_port_);
    }
  }

  void Finish() {
    listener_.Reset();
    clients_ = nullptr;
    const base::MutexLock lock(&mutex_);
    finished_ = true;
    changed_.NotifyAll();
  }

  void AcceptSome() {
    if (timer_.has_value()) return;  // It comes back.
    for (int i = 0; i < kAcceptsInARow; ++i) {
      if (closing_) return;
      full_ = group_.size() >= most_;
      if (full_) return;
      base::UniqueFd socket(::accept4(listener_.get(), nullptr, nullptr,
                                      SOCK_CLOEXEC | SOCK_NONBLOCK));
      if (socket.valid()) {
        Begin(std::move(socket));
      } else if (errno == EAGAIN) {
        return;
      } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS ||
                 errno == ENOMEM) {
        Pause(ErrnoError(errno, "accept"));
        return;
      }
      // Other errors are those of one connection that did not come about.
    }
    PostAccept();
  }

  void PostAccept() {
    loop_->Post([weak = weak_from_this()] {
      if (const auto self = weak.lock(); self != nullptr) self->AcceptSome();
    });
  }

  // Without descriptors the listener stays ready: looking again at once would
  // only burn time.
  void Pause(const absl::Status& why) {
    log_.LogIfError(why, "the forward to guest port {} waits", guest_port_);
    timer_ = loop_->StartTimer(
        std::chrono::steady_clock::now() + kPause,
        [weak = weak_from_this()](const absl::StatusOr<size_t>& due) {
          const auto self = weak.lock();
          if (self == nullptr) return;
          self->timer_.reset();
          if (due.ok()) self->AcceptSome();
        });
  }

  void Begin(base::UniqueFd socket) {
    SetFlag(socket.get(), IPPROTO_TCP, TCP_NODELAY);
    SetFlag(socket.get(), SOL_SOCKET, SO_KEEPALIVE);
    auto relay = SocketRelay::Create(
        &group_, std::move(socket),
        {.on_end = [weak = weak_from_this()](const absl::Status& /*why*/) {
          const auto self = weak.lock();
          // Its place is free when this has returned.
          if (self != nullptr && self->full_) self->PostAccept();
        }});
    if (!relay.ok()) return;  // Closing: the socket is closed.
    clients_(
        [waiting = Waiting(*std::move(relay)), port = guest_port_](
            absl::StatusOr<std::shared_ptr<agent::Client>> client) mutable {
          const auto joined = std::exchange(waiting.relay, nullptr);
          if (client.ok()) {
            joined->Open(*std::move(client), port);
          } else {
            joined->End(client.status());
          }
        });
  }

  io::EventLoop* const loop_;  // Not owned.
  const uint16_t guest_port_;
  const size_t most_;
  const base::Logger log_;

  // The loop's thread only.
  ClientSource clients_;
  base::UniqueFd listener_;
  std::optional<io::OperationId> watch_;
  std::optional<io::OperationId> timer_;
  bool closing_ = false;
  bool full_ = false;

  base::Mutex mutex_;
  base::CondVar changed_;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;

  RelayGroup group_;  // Its events use the rest.
};

PortForward::PortForward(std::shared_ptr<Acceptor> acceptor, std::string host,
                         uint16_t port)
    : acceptor_(std::move(acceptor)), host_(std::move(host)), port_(port) {}

PortForward::~PortForward() { acceptor_->Close(); }

size_t PortForward::size() const { return acceptor_->size(); }

absl::StatusOr<std::unique_ptr<PortForward>> PortForward::Create(
    PortForwardOptions options) {
  if (options.guest_port == 0) {
    return absl::InvalidArgumentError("guest_port is 0, must be 1 to 65535");
  }
  if (options.max_connections == 0) {
    return absl::InvalidArgumentError("max_connections is 0, must be positive");
  }
  CATNAP_ASSIGN_OR_RETURN(Address address,
                          ParseAddress(options.host, options.port));
  base::UniqueFd listener(::socket(address.name.ss_family,
                                   SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK,
                                   IPPROTO_TCP));
  if (!listener.valid()) {
    return ErrnoError(errno, "a socket to listen on {}", options.host);
  }
  SetFlag(listener.get(), SOL_SOCKET, SO_REUSEADDR);
  // Not the system's default, so that "::" is the same everywhere.
  if (address.name.ss_family == AF_INET6) {
    SetFlag(listener.get(), IPPROTO_IPV6, IPV6_V6ONLY);
  }
  auto* const name = reinterpret_cast<sockaddr*>(&address.name);
  if (::bind(listener.get(), name, address.size) != 0 ||
      ::listen(listener.get(), SOMAXCONN) != 0) {
    return BindError(errno, options.host, options.port);
  }
  std::array<char, NI_MAXHOST> host{};
  socklen_t size = sizeof(address.name);
  if (::getsockname(listener.get(), name, &size) != 0 ||
      ::getnameinfo(name, size, host.data(), host.size(), nullptr, 0,
                    NI_NUMERICHOST) != 0) {
    return absl::UnavailableError(
        "the system does not tell the address that "
        "is listened on");
  }
  const uint16_t port =
      address.name.ss_family == AF_INET6
          ? reinterpret_cast<const sockaddr_in6*>(&address.name)->sin6_port
          : reinterpret_cast<const sockaddr_in*>(&address.name)->sin_port;
  auto acceptor =
      std::make_shared<Acceptor>(std::move(options), std::move(listener));
  acceptor->Start();
  return std::unique_ptr<PortForward>(
      new PortForward(std::move(acceptor), host.data(), ntohs(port)));
}

}  // namespace catnap::runtime
