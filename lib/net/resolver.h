#ifndef CATNAP_LIB_NET_RESOLVER_H_
#define CATNAP_LIB_NET_RESOLVER_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "io/event_loop.h"
#include "net/address.h"
#include "net/dns_message.h"
#include "net/loop_scope.h"

namespace catnap::net {

struct ResolverOptions {
  struct Server {
    IpAddress address;
    uint16_t port = kDnsPort;
  };
  // Empty: those of `config`, read again when it is older than a few seconds.
  std::vector<Server> servers{};
  std::string config = "/etc/resolv.conf";
  // For the answer of one server; then the next is asked. Each is asked twice.
  std::chrono::milliseconds patience{1500};
};

// The servers that a text such as /etc/resolv.conf names, at most 3.
std::vector<ResolverOptions::Server> ParseResolverConfig(
    const std::string& text);

// Asks the host's name servers by UDP, each question from a socket and with an
// id of its own, both chosen at random by this machine: a guest has no say in
// what an answer must look like. Answers are checked by ParseDnsAnswer().
//
// Thread safety: thread-safe. The destructor must not run on the loop's
// thread; no callback runs after it. Callers bound how many questions there
// are: each has a descriptor.
class Resolver {
 public:
  // Called on the loop's thread, once: the message as it came, and what it
  // says. Empty: no server gave an answer to the question.
  using Done =
      std::function<void(std::span<const uint8_t> message, const DnsAnswer&)>;

  // `loop` is borrowed and must outlive this.
  Resolver(ResolverOptions options, io::EventLoop* loop);
  ~Resolver();

  void Ask(const DnsQuery& query, Done done);

 private:
  // Touched on the loop's thread only.
  struct Question {
    DnsQuery query;
    Done done;
    size_t attempt = 0;
    uint16_t id = 0;
    std::vector<ResolverOptions::Server> servers;
    std::shared_ptr<base::UniqueFd> socket;
    LoopScope::Id watch = 0;
    LoopScope::Id timer = 0;
  };

  const std::vector<ResolverOptions::Server>& Servers();
  void Try(const std::shared_ptr<Question>& question);
  // Whether the question is on its way to the server.
  bool Send(Question& question, const ResolverOptions::Server& server);
  void OnReady(const std::shared_ptr<Question>& question);
  void EndAttempt(Question& question);

  const ResolverOptions options_;
  std::vector<ResolverOptions::Server> servers_;  // Loop's thread.
  std::optional<std::chrono::steady_clock::time_point> read_at_;
  LoopScope scope_;  // Last: its end comes before the rest goes.
};

}  // namespace catnap::net

#endif  // CATNAP_LIB_NET_RESOLVER_H_
