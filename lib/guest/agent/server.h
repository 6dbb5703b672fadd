#ifndef CATNAP_LIB_GUEST_AGENT_SERVER_H_
#define CATNAP_LIB_GUEST_AGENT_SERVER_H_

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string_view>
#include <unordered_map>

#include "agent/messages.h"
#include "agent/session.h"
#include "guest/agent/loop.h"

namespace catnap::guest {

using Bytes = std::span<const uint8_t>;

// What serves one stream. It ends by Server::Finish() or Server::Refuse(),
// which destroy it when the current call has returned, or by OnReset().
class Task {
 public:
  virtual ~Task() = default;
  virtual void OnData(uint8_t /*channel*/, Bytes /*data*/, bool /*end*/) {}
  virtual void OnMessage(agent::Fields /*fields*/) {}
  // Room may be there again, after Server::Write() took less than all.
  virtual void OnWritable() {}
  // The host wants it no longer, or the connection is gone. The task is
  // destroyed afterwards.
  virtual void OnReset() {}
};

// One connection with the host, over a stream socket.
class Server final : private agent::Session::Handler, private Loop::Watcher {
 public:
  // Makes the task of a new stream; null: it was answered, or is unknown.
  using Factory = std::function<std::unique_ptr<Task>(
      Server* server, uint32_t stream, agent::Kind kind, Bytes request)>;

  // Owns `fd`. `loop` must outlive the server.
  Server(int fd, Loop* loop, Factory factory);
  ~Server() override;

  // Sends what there is. Once in each round of the loop, so that a process's
  // output and its exit share a packet.
  void Flush();
  // False: the connection has ended.
  bool ok() const { return open_ && session_.ok(); }

  size_t Write(uint32_t stream, uint8_t channel, Bytes data, bool end);
  size_t WritableBytes(uint32_t stream, uint8_t channel);
  void Consume(uint32_t stream, uint8_t channel, size_t bytes) {
    session_.Consume(stream, channel, bytes);
  }
  void SendMessage(uint32_t stream, const agent::Encoded& fields) {
    session_.SendMessage(stream, fields);
  }
  void Finish(uint32_t stream, const agent::Encoded& fields);
  void Refuse(uint32_t stream, agent::ResetCode code, std::string_view text);
  // Opens a stream to the host. None: too many.
  std::optional<uint32_t> Open(agent::Kind kind, const agent::Encoded& request,
                               std::unique_ptr<Task> task);
  Loop* loop() const { return loop_; }

 private:
  void OnEvents(int fd, uint32_t events) override;
  void Receive();
  void Bury(uint32_t stream);
  Task* Find(uint32_t stream);

  void OnHello(const agent::Hello& /*hello*/) override {}
  void OnPong(Bytes /*body*/) override {}
  void OnOpen(uint32_t stream, uint32_t kind, Bytes request) override;
  void OnData(uint32_t stream, uint8_t channel, Bytes data, bool end) override;
  void OnMessage(uint32_t stream, Bytes fields) override;
  void OnCredit(uint32_t stream, uint8_t channel) override;
  void OnClose(uint32_t stream, Bytes fields) override;
  void OnReset(uint32_t stream, agent::ResetCode code,
               std::string_view text) override;

  const int fd_;
  Loop* const loop_;  // Not owned.
  const Factory factory_;
  agent::Session session_;
  std::unordered_map<uint32_t, std::unique_ptr<Task>> tasks_;
  // Ended tasks, whose code may still be on the stack.
  std::vector<std::unique_ptr<Task>> dead_;
  std::set<uint32_t> blocked_;
  bool open_ = true;
  bool waits_for_room_ = false;
  // Not cleared: it is read into, and every page of it that is touched would be
  // one more that a fork of the machine has for itself.
  std::array<uint8_t, 128 << 10> received_;
};

}  // namespace catnap::guest

#endif  // CATNAP_LIB_GUEST_AGENT_SERVER_H_
