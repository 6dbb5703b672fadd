#ifndef CATNAP_BENCH_PEERS_NETWORK_H_
#define CATNAP_BENCH_PEERS_NETWORK_H_

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <thread>
#include <vector>

#include "base/unique_fd.h"

namespace catnap::bench {

// A TCP connection to a port of 127.0.0.1, without Nagle's delay.
base::UniqueFd ConnectTo(uint16_t port);
void ShutdownSend(int fd);

// The host's side of the network measurements: this process in a network of its
// own, with one interface, whose address guests reach.
class HostNetwork {
 public:
  static constexpr const char* kAddress = "11.22.33.1";

  // Before any thread is started. REQUIRES: root.
  HostNetwork();

 private:
  base::UniqueFd tap_;  // The interface goes with it.
};

// A server at HostNetwork's address: takes what comes and answers a byte, or
// sends `bytes`.
class TcpServer {
 public:
  explicit TcpServer(uint64_t bytes);  // 0: takes.
  ~TcpServer();
  TcpServer(const TcpServer&) = delete;
  TcpServer& operator=(const TcpServer&) = delete;

  uint16_t port() const { return port_; }

 private:
  void Run();

  const uint64_t bytes_;
  base::UniqueFd listener_;
  uint16_t port_ = 0;
  std::thread thread_;
};

// passt with a socket for one QEMU, for a guest with the addresses that ours
// have.
class Passt {
 public:
  explicit Passt(const std::string& socket);
  ~Passt();
  Passt(const Passt&) = delete;
  Passt& operator=(const Passt&) = delete;

 private:
  pid_t pid_ = -1;
};

}  // namespace catnap::bench

#endif  // CATNAP_BENCH_PEERS_NETWORK_H_
