#include "guest/agent/server.h"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

namespace catnap::guest {

Server::Server(int fd, Loop* loop, Factory factory)
    : fd_(fd),
      loop_(loop),
      factory_(std::move(factory)),
      session_(agent::Session::Role::kGuest, this, {.name = "catnap-agent"}) {
  open_ = loop_->Add(fd_, EPOLLIN, this);
}

Server::~Server() {
  session_.Fail(agent::ResetCode::kClosed, "closed");
  loop_->Remove(fd_);
  close(fd_);
}

void Server::OnEvents(int /*fd*/, uint32_t events) {
  if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0) Receive();
  // EPOLLOUT: Flush() comes at the end of the round.
}

void Server::Receive() {
  const ssize_t got =
      recv(fd_, received_.data(), received_.size(), MSG_DONTWAIT);
  if (got > 0) {
    session_.Receive({received_.data(), static_cast<size_t>(got)});
  } else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
    open_ = false;
    session_.Fail(agent::ResetCode::kClosed, "the host is gone");
  }
}

void Server::Flush() {
  for (;;) {
    while (ok() && !session_.unsent().empty()) {
      const Bytes unsent = session_.unsent();
      const ssize_t sent =
          send(fd_, unsent.data(), unsent.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
      if (sent > 0) {
        session_.Sent(static_cast<size_t>(sent));
        continue;
      }
      if (sent < 0 && errno == EINTR) continue;
      if (sent < 0 && errno != EAGAIN) {
        open_ = false;
        session_.Fail(agent::ResetCode::kClosed, "the host is gone");
      }
      break;
    }
    dead_.clear();
    if (!ok() || blocked_.empty() ||
        session_.unsent().size() >= agent::kMaxUnsentData / 2) {
      break;
    }
    const std::set<uint32_t> blocked = std::exchange(blocked_, {});
    for (const uint32_t stream : blocked) {
      Task* const task = Find(stream);
      if (task != nullptr) task->OnWritable();
    }
    if (session_.unsent().empty()) break;  // They wait for credit.
  }
  const bool waits = ok() && !session_.unsent().empty();
  if (waits != waits_for_room_) {
    waits_for_room_ = waits;
    loop_->Change(fd_, waits ? EPOLLIN | EPOLLOUT : EPOLLIN);
  }
}

Task* Server::Find(uint32_t stream) {
  const auto at = tasks_.find(stream);
  return at == tasks_.end() ? nullptr : at->second.get();
}

void Server::Bury(uint32_t stream) {
  const auto at = tasks_.find(stream);
  if (at == tasks_.end()) return;
  dead_.push_back(std::move(at->second));
  tasks_.erase(at);
  blocked_.erase(stream);
}

size_t Server::Write(uint32_t stream, uint8_t channel, Bytes data, bool end) {
  const size_t taken = session_.Write(stream, channel, data, end);
  if (taken < data.size()) blocked_.insert(stream);
  return taken;
}

size_t Server::WritableBytes(uint32_t stream, uint8_t channel) {
  const size_t room = session_.WritableBytes(stream, channel);
  if (room == 0) blocked_.insert(stream);
  return room;
}

void Server::Finish(uint32_t stream, const agent::Encoded& fields) {
  session_.Close(stream, fields);
  Bury(stream);
}

void Server::Refuse(uint32_t stream, agent::ResetCode code,
                    std::string_view text) {
  session_.Reset(stream, code, text);
  Bury(stream);
}

std::optional<uint32_t> Server::Open(agent::Kind kind,
                                     const agent::Encoded& request,
                                     std::unique_ptr<Task> task) {
  const auto stream = session_.Open(static_cast<uint32_t>(kind), request);
  if (stream.has_value()) tasks_.emplace(*stream, std::move(task));
  return stream;
}

void Server::OnOpen(uint32_t stream, uint32_t kind, Bytes request) {
  std::unique_ptr<Task> task =
      factory_(this, stream, static_cast<agent::Kind>(kind), request);
  if (task == nullptr) {
    session_.Reset(stream, agent::ResetCode::kUnknown, "unknown kind");
  } else if (session_.IsOpen(stream)) {
    tasks_.emplace(stream, std::move(task));
  } else {
    dead_.push_back(std::move(task));  // It finished at once.
  }
}

void Server::OnData(uint32_t stream, uint8_t channel, Bytes data, bool end) {
  Task* const task = Find(stream);
  if (task != nullptr) task->OnData(channel, data, end);
}

void Server::OnMessage(uint32_t stream, Bytes fields) {
  Task* const task = Find(stream);
  if (task != nullptr) task->OnMessage(fields);
}

void Server::OnCredit(uint32_t stream, uint8_t /*channel*/) {
  blocked_.erase(stream);
  Task* const task = Find(stream);
  if (task != nullptr) task->OnWritable();
}

void Server::OnClose(uint32_t stream, Bytes /*fields*/) {
  Task* const task = Find(stream);
  if (task != nullptr) task->OnReset();
  Bury(stream);
}

void Server::OnReset(uint32_t stream, agent::ResetCode /*code*/,
                     std::string_view /*text*/) {
  Task* const task = Find(stream);
  if (task != nullptr) task->OnReset();
  Bury(stream);
}

}  // namespace catnap::guest
