#include "guest/agent/relay.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <string>

#include "guest/agent/files.h"

namespace catnap::guest {
namespace {

constexpr size_t kReadBytes = 32 << 10;
constexpr int kReadsInARow = 4;
constexpr int kAcceptsInARow = 16;
constexpr int kBacklog = 128;

sockaddr_in Loopback(uint32_t address, uint16_t port) {
  sockaddr_in name{};
  name.sin_family = AF_INET;
  name.sin_port = htons(port);
  name.sin_addr.s_addr = htonl(address);
  return name;
}

// Both directions between a stream and a socket, each with its own end.
class RelayTask final : public Task, private Loop::Watcher {
 public:
  // Owns `fd`. `answers`: the host waits for a result, since it opened.
  RelayTask(Server* server, int fd, bool answers)
      : server_(server), fd_(fd), answers_(answers) {}
  ~RelayTask() override {
    if (watched_ != 0) server_->loop()->Remove(fd_);
    close(fd_);
  }

  // The stream's number, which is known after the task; connecting goes on.
  void Start(uint32_t stream, bool connected) {
    stream_ = stream;
    connected_ = connected;
    Update();
  }

  void OnData(uint8_t /*channel*/, Bytes data, bool end) override {
    waiting_.append(data.begin(), data.end());
    peer_ended_ |= end;
    PumpIn();
    Update();
  }
  // The host has taken the connection: what it says may flow anyway.
  void OnMessage(agent::Fields /*fields*/) override {}
  void OnWritable() override {
    PumpOut();
    Update();
  }

 private:
  void OnEvents(int /*fd*/, uint32_t events) override {
    if (!connected_) {
      int error = 0;
      socklen_t size = sizeof(error);
      getsockopt(fd_, SOL_SOCKET, SO_ERROR, &error, &size);
      if (error != 0) {
        End(error);
        return;
      }
      connected_ = true;
      server_->SendMessage(stream_, {});
    }
    if ((events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) != 0) PumpIn();
    if ((events & (EPOLLIN | EPOLLERR | EPOLLHUP)) != 0) PumpOut();
    Update();
  }

  void PumpIn() {
    if (!connected_ || ended_) return;
    while (!waiting_.empty()) {
      const ssize_t sent = send(fd_, waiting_.data(), waiting_.size(),
                                MSG_DONTWAIT | MSG_NOSIGNAL);
      if (sent < 0 && errno == EINTR) continue;
      if (sent < 0 && errno == EAGAIN) return;
      if (sent < 0) {
        End(errno);
        return;
      }
      waiting_.erase(0, static_cast<size_t>(sent));
      server_->Consume(stream_, agent::kMainChannel, static_cast<size_t>(sent));
    }
    if (peer_ended_ && !shut_) {
      shut_ = true;
      shutdown(fd_, SHUT_WR);
    }
  }

  void PumpOut() {
    blocked_ = false;
    if (!connected_ || ended_) return;
    std::array<uint8_t, kReadBytes> buffer;  // Not cleared: it is read into.
    for (int i = 0; i < kReadsInARow && !own_ended_; ++i) {
      const size_t room = server_->WritableBytes(stream_, agent::kMainChannel);
      if (room == 0) {
        blocked_ = true;
        return;
      }
      const ssize_t got =
          recv(fd_, buffer.data(), std::min(room, buffer.size()), MSG_DONTWAIT);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0 && errno == EAGAIN) return;
      if (got < 0) {
        End(errno);
        return;
      }
      own_ended_ = got == 0;
      server_->Write(stream_, agent::kMainChannel,
                     {buffer.data(), static_cast<size_t>(got)}, own_ended_);
    }
  }

  // Waits for what can be used, and ends when both directions have.
  void Update() {
    if (ended_) return;
    if (own_ended_ && shut_) {
      End(0);
      return;
    }
    uint32_t wanted = 0;
    if (!connected_ || !waiting_.empty()) wanted |= EPOLLOUT;
    if (connected_ && !own_ended_ && !blocked_) wanted |= EPOLLIN;
    if (wanted == watched_) return;
    // Not 0 events: a hang-up would be told again and again.
    if (watched_ != 0 && wanted == 0) server_->loop()->Remove(fd_);
    if (watched_ == 0) server_->loop()->Add(fd_, wanted, this);
    if (watched_ != 0 && wanted != 0) server_->loop()->Change(fd_, wanted);
    watched_ = wanted;
  }

  void End(int error) {
    if (ended_) return;
    ended_ = true;
    if (answers_) {
      server_->Finish(stream_, Encode(error == 0 ? agent::FileResult{}
                                                 : FileError(error, "tcp")));
    } else {
      server_->Refuse(stream_, agent::ResetCode::kCancelled, "ended");
    }
  }

  Server* const server_;  // Not owned.
  const int fd_;
  const bool answers_;
  uint32_t stream_ = 0;
  uint32_t watched_ = 0;
  bool connected_ = false;
  bool peer_ended_ = false;  // The host sends no more.
  bool shut_ = false;        // And the socket knows.
  bool own_ended_ = false;   // The socket's peer sends no more.
  bool blocked_ = false;     // No credit.
  bool ended_ = false;
  std::string waiting_;
};

class ListenTask final : public Task, private Loop::Watcher {
 public:
  ListenTask(Server* server, int fd, uint16_t port)
      : server_(server), fd_(fd), port_(port) {
    server_->loop()->Add(fd_, EPOLLIN, this);
  }
  ~ListenTask() override {
    server_->loop()->Remove(fd_);
    close(fd_);
  }

 private:
  void OnEvents(int /*fd*/, uint32_t /*events*/) override {
    for (int i = 0; i < kAcceptsInARow; ++i) {
      const int fd = accept4(fd_, nullptr, nullptr, SOCK_CLOEXEC);
      if (fd < 0) return;
      auto task = std::make_unique<RelayTask>(server_, fd, false);
      RelayTask* const relay = task.get();
      const auto stream =
          server_->Open(agent::Kind::kService,
                        Encode(agent::PortRequest{port_}), std::move(task));
      if (stream.has_value()) relay->Start(*stream, true);
    }
  }

  Server* const server_;  // Not owned.
  const int fd_;
  const uint16_t port_;
};

void FinishWithError(Server* server, uint32_t stream) {
  server->Finish(stream, Encode(FileError(errno, "tcp")));
}

}  // namespace

std::unique_ptr<Task> MakeConnectTask(Server* server, uint32_t stream,
                                      Bytes request) {
  agent::PortRequest port;
  if (!Decode(request, &port)) {
    server->Refuse(stream, agent::ResetCode::kProtocol, "malformed request");
    return nullptr;
  }
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) {
    FinishWithError(server, stream);
    return nullptr;
  }
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  auto task = std::make_unique<RelayTask>(server, fd, true);
  const sockaddr_in name = Loopback(INADDR_LOOPBACK, port.port);
  if (connect(fd, reinterpret_cast<const sockaddr*>(&name), sizeof(name)) !=
          0 &&
      errno != EINPROGRESS) {
    FinishWithError(server, stream);
    return task;
  }
  task->Start(stream, false);
  return task;
}

std::unique_ptr<Task> MakeListenTask(Server* server, uint32_t stream,
                                     Bytes request) {
  agent::PortRequest port;
  if (!Decode(request, &port)) {
    server->Refuse(stream, agent::ResetCode::kProtocol, "malformed request");
    return nullptr;
  }
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  const int on = 1;
  const sockaddr_in name = Loopback(INADDR_LOOPBACK + 1, port.port);
  if (fd < 0 ||
      setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) != 0 ||
      bind(fd, reinterpret_cast<const sockaddr*>(&name), sizeof(name)) != 0 ||
      listen(fd, kBacklog) != 0) {
    FinishWithError(server, stream);
    if (fd >= 0) close(fd);
    return nullptr;
  }
  server->SendMessage(stream, {});
  return std::make_unique<ListenTask>(server, fd, port.port);
}

}  // namespace catnap::guest
