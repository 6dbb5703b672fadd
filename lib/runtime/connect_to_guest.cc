#include "runtime/connect_to_guest.h"

#include <fcntl.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <optional>
#include <utility>

#include "base/mutex.h"
#include "base/status.h"
#include "runtime/socket_relay.h"

namespace catnap::runtime {
namespace {

// A connection until it is one. Shared by the relay's events and the timer.
class Attempt {
 public:
  Attempt(io::EventLoop* loop, base::UniqueFd socket, ConnectDone done)
      : loop_(loop), socket_(std::move(socket)), done_(std::move(done)) {}

  static void Begin(const std::shared_ptr<Attempt>& attempt,
                    const std::shared_ptr<SocketRelay>& relay, uint16_t port,
                    std::chrono::steady_clock::time_point deadline) {
    const base::MutexLock lock(&attempt->mutex_);
    if (attempt->over_) return;
    attempt->timer_ = attempt->loop_->StartTimer(
        deadline, [attempt, relay, port](const absl::StatusOr<size_t>& due) {
          // It may be due in the turn that cancels it.
          if (!due.ok() || attempt->over()) return;
          relay->End(Error(absl::StatusCode::kDeadlineExceeded,
                           "port {} of the guest was not connected in time",
                           port));
        });
  }

  // On the loop's thread, each at most once.
  void OnConnected() {
    StopTimer();
    std::move(done_)(std::move(socket_));
    done_ = nullptr;
  }
  void OnEnd(const absl::Status& why) {
    StopTimer();
    if (done_ == nullptr) return;  // It was one, and is no longer.
    socket_.Reset();
    std::move(done_)(why.ok() ? absl::UnavailableError(
                                    "the guest ended the connection at once")
                              : why);
    done_ = nullptr;
  }

 private:
  bool over() {
    const base::MutexLock lock(&mutex_);
    return over_;
  }
  void StopTimer() {
    const base::MutexLock lock(&mutex_);
    over_ = true;
    if (timer_.has_value()) loop_->Cancel(*timer_);
    timer_.reset();
  }

  io::EventLoop* const loop_;  // Not owned.
  base::UniqueFd socket_;
  ConnectDone done_;
  base::Mutex mutex_;
  bool over_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<io::OperationId> timer_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

absl::StatusOr<LocalSocketPair> CreateLocalSocketPair() {
  std::array<int, 2> pair{};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair.data()) != 0) {
    return ErrnoError(errno, "a socket pair for a connection with the guest");
  }
  LocalSocketPair result{base::UniqueFd(pair[0]), base::UniqueFd(pair[1])};
  if (::fcntl(pair[0], F_SETFL, O_NONBLOCK) != 0) {
    return ErrnoError(errno, "a socket pair for a connection with the guest");
  }
  return result;
}

void ConnectToGuest(RelayGroup* group,
                    const std::shared_ptr<agent::Client>& client, uint16_t port,
                    std::chrono::steady_clock::time_point deadline,
                    ConnectDone done) {
  io::EventLoop* const loop = group->loop();
  const auto fail = [loop, &done](absl::Status why) {
    loop->Post([done = std::move(done), why = std::move(why)]() mutable {
      std::move(done)(std::move(why));
    });
  };
  if (port == 0) {
    fail(absl::InvalidArgumentError("guest_port is 0, must be 1 to 65535"));
    return;
  }
  auto pair = CreateLocalSocketPair();
  if (!pair.ok()) {
    fail(pair.status());
    return;
  }
  const auto attempt =
      std::make_shared<Attempt>(loop, std::move(pair->theirs), std::move(done));
  const auto relay = SocketRelay::Create(
      group, std::move(pair->ours),
      {.on_connected = [attempt] { attempt->OnConnected(); },
       .on_end = [attempt](const absl::Status& why) { attempt->OnEnd(why); }});
  if (!relay.ok()) {
    loop->Post([attempt, why = relay.status()] { attempt->OnEnd(why); });
    return;
  }
  Attempt::Begin(attempt, *relay, port, deadline);
  (*relay)->Open(client, port);
}

}  // namespace catnap::runtime
