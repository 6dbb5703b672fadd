#include "net/resolver.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <sstream>
#include <utility>

#include "base/random.h"

namespace catnap::net {
namespace {

constexpr size_t kMaxServers = 3;  // As the C library.
constexpr size_t kRounds = 2;
constexpr size_t kMaxConfigBytes = 64 << 10;
constexpr auto kConfigAge = std::chrono::seconds(5);
// Answers to something else that one wake-up looks at.
constexpr int kMaxDatagrams = 16;

std::string ReadConfig(const std::string& path) {
  std::string text;
  const base::UniqueFd fd(
      ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd.valid()) return text;
  std::array<char, 4096> part;
  while (text.size() < kMaxConfigBytes) {
    const ssize_t got = ::read(fd.get(), part.data(), part.size());
    if (got <= 0) break;
    text.append(part.data(), static_cast<size_t>(got));
  }
  return text;
}

struct SocketName {
  sockaddr_storage storage{};
  socklen_t size = 0;
};

SocketName NameOf(const ResolverOptions::Server& server) {
  SocketName name;
  if (server.address.v6) {
    sockaddr_in6 v6{};
    v6.sin6_family = AF_INET6;
    v6.sin6_port = htons(server.port);
    std::memcpy(&v6.sin6_addr, server.address.bytes.data(), 16);
    std::memcpy(&name.storage, &v6, sizeof(v6));
    name.size = sizeof(v6);
  } else {
    sockaddr_in v4{};
    v4.sin_family = AF_INET;
    v4.sin_port = htons(server.port);
    std::memcpy(&v4.sin_addr, server.address.bytes.data(), 4);
    std::memcpy(&name.storage, &v4, sizeof(v4));
    name.size = sizeof(v4);
  }
  return name;
}

}  // namespace

std::vector<ResolverOptions::Server> ParseResolverConfig(
    const std::string& text) {
  std::vector<ResolverOptions::Server> servers;
  std::istringstream lines(text);
  std::string line;
  while (servers.size() < kMaxServers && std::getline(lines, line)) {
    std::istringstream words(line);
    std::string keyword;
    std::string address;
    if (!(words >> keyword >> address) || keyword != "nameserver") continue;
    if (const auto parsed = ParseIp(address); parsed.has_value()) {
      servers.push_back({.address = *parsed});
    }
  }
  // What the C library does without any.
  if (servers.empty()) {
    servers.push_back({.address = IpAddress::V4(127, 0, 0, 1)});
  }
  return servers;
}

Resolver::Resolver(ResolverOptions options, io::EventLoop* loop)
    : options_(std::move(options)), scope_(loop) {}

Resolver::~Resolver() { scope_.Close(); }

const std::vector<ResolverOptions::Server>& Resolver::Servers() {
  if (!options_.servers.empty()) return options_.servers;
  const auto now = std::chrono::steady_clock::now();
  if (!read_at_.has_value() || now - *read_at_ >= kConfigAge) {
    servers_ = ParseResolverConfig(ReadConfig(options_.config));
    read_at_ = now;
  }
  return servers_;
}

void Resolver::Ask(const DnsQuery& query, Done done) {
  auto question = std::make_shared<Question>();
  question->query = query;
  question->done = std::move(done);
  scope_.Post([this, question] {
    question->servers = Servers();
    Try(question);
  });
}

void Resolver::Try(const std::shared_ptr<Question>& question) {
  EndAttempt(*question);
  while (question->attempt < question->servers.size() * kRounds) {
    const auto& server =
        question->servers[question->attempt++ % question->servers.size()];
    if (!Send(*question, server)) continue;
    question->watch = scope_.Watch(question->socket, POLLIN,
                                   [this, question] { OnReady(question); });
    question->timer =
        scope_.StartTimer(std::chrono::steady_clock::now() + options_.patience,
                          [this, question] { Try(question); });
    return;
  }
  question->done({}, {});
}

void Resolver::EndAttempt(Question& question) {
  scope_.Cancel(std::exchange(question.watch, 0));
  scope_.Cancel(std::exchange(question.timer, 0));
  question.socket.reset();
}

bool Resolver::Send(Question& question, const ResolverOptions::Server& server) {
  const auto random = base::RandomBytes<2>();
  if (!random.ok()) return false;
  question.id = static_cast<uint16_t>((*random)[0] << 8 | (*random)[1]);
  const SocketName name = NameOf(server);
  base::UniqueFd fd(::socket(name.storage.ss_family,
                             SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  // Connected: the kernel takes nothing from others, and chooses the port.
  if (!fd.valid() ||
      ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&name.storage),
                name.size) != 0) {
    return false;
  }
  const std::vector<uint8_t> message =
      BuildDnsQuery(question.query, question.id);
  if (::send(fd.get(), message.data(), message.size(), MSG_NOSIGNAL) !=
      static_cast<ssize_t>(message.size())) {
    return false;
  }
  question.socket = std::make_shared<base::UniqueFd>(std::move(fd));
  return true;
}

void Resolver::OnReady(const std::shared_ptr<Question>& question) {
  std::array<uint8_t, kMaxDnsBytes + 1> buffer;
  for (int i = 0; i < kMaxDatagrams; ++i) {
    const ssize_t got = ::recv(question->socket->get(), buffer.data(),
                               buffer.size(), MSG_DONTWAIT);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      // Nobody listens there: the next one may know.
      if (errno != EAGAIN) Try(question);
      return;
    }
    const std::span<const uint8_t> message =
        std::span(buffer).first(static_cast<size_t>(got));
    const auto answer = ParseDnsAnswer(message, question->query, question->id);
    if (!answer.has_value()) continue;
    EndAttempt(*question);
    question->done(message, *answer);
    return;
  }
  // Whoever floods us with other answers makes this one fail.
  Try(question);
}

}  // namespace catnap::net
