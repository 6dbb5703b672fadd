#ifndef CATNAP_TESTS_SUPPORT_TCP_H_
#define CATNAP_TESTS_SUPPORT_TCP_H_

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "base/unique_fd.h"

namespace catnap::testing {

inline sockaddr_in Ipv4Address(uint32_t address, uint16_t port) {
  sockaddr_in name{};
  name.sin_family = AF_INET;
  name.sin_port = htons(port);
  name.sin_addr.s_addr = htonl(address);
  return name;
}

// A connected socket, or an invalid one with errno set.
inline base::UniqueFd ConnectTcp(uint16_t port,
                                 uint32_t address = INADDR_LOOPBACK) {
  base::UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const sockaddr_in name = Ipv4Address(address, port);
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&name),
                sizeof(name)) != 0) {
    return {};
  }
  return fd;
}

inline bool SendAll(int fd, const std::string& text) {
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t sent =
        ::send(fd, text.data() + done, text.size() - done, MSG_NOSIGNAL);
    if (sent <= 0) return false;
    done += static_cast<size_t>(sent);
  }
  return true;
}

// Up to `size` bytes: less when the stream ends or breaks first.
inline std::string ReceiveUpTo(int fd, size_t size) {
  std::string result(size, '\0');
  size_t done = 0;
  while (done < size) {
    const ssize_t got = ::recv(fd, result.data() + done, size - done, 0);
    if (got <= 0) break;
    done += static_cast<size_t>(got);
  }
  result.resize(done);
  return result;
}

// What recv() says now, blocking: a byte count, 0 at the end, or -errno.
inline int ReceiveResult(int fd) {
  std::array<char, 1> byte{};
  const ssize_t got = ::recv(fd, byte.data(), byte.size(), 0);
  return got < 0 ? -errno : static_cast<int>(got);
}

// So that the other side sees a reset.
inline void CloseWithReset(base::UniqueFd fd) {
  const linger abort{.l_onoff = 1, .l_linger = 0};
  ::setsockopt(fd.get(), SOL_SOCKET, SO_LINGER, &abort, sizeof(abort));
}

inline size_t OpenDescriptors(const std::string& process = "self") {
  size_t count = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator("/proc/" + process + "/fd")) {
    count += entry.is_symlink() ? 1 : 0;
  }
  return count;
}

inline void Echo(int fd) {
  std::vector<char> buffer(size_t{64} << 10);
  ssize_t got = 0;
  while ((got = ::recv(fd, buffer.data(), buffer.size(), 0)) > 0) {
    if (!SendAll(fd, std::string(buffer.data(), static_cast<size_t>(got)))) {
      return;
    }
  }
}

// Listens on a free port of the loopback, or of `host`, and runs `serve` for
// each connection on a thread of its own, which closes the socket afterwards.
class TcpServer {
 public:
  using Serve = std::function<void(int fd)>;
  explicit TcpServer(Serve serve = Echo, uint32_t host = INADDR_LOOPBACK)
      : serve_(std::move(serve)),
        listener_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in name = Ipv4Address(host, 0);
    auto* const address = reinterpret_cast<sockaddr*>(&name);
    socklen_t size = sizeof(name);
    if (::bind(listener_.get(), address, size) != 0 ||
        ::listen(listener_.get(), SOMAXCONN) != 0 ||
        ::getsockname(listener_.get(), address, &size) != 0) {
      std::abort();
    }
    port_ = ntohs(name.sin_port);
    thread_ = std::thread([this] { Run(); });
  }
  ~TcpServer() {
    // Ends accept(), and then what the threads are blocked on.
    ::shutdown(listener_.get(), SHUT_RDWR);
    thread_.join();
    const base::MutexLock lock(&mutex_);
    for (const int fd : open_) ::shutdown(fd, SHUT_RDWR);
    while (!open_.empty()) closed_.Wait(&mutex_);
  }

  uint16_t port() const { return port_; }

 private:
  void Run() {
    for (;;) {
      const int fd = ::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC);
      if (fd < 0 && errno == EMFILE) {
        // The test has taken them all, for a while.
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        continue;
      }
      if (fd < 0) return;
      {
        const base::MutexLock lock(&mutex_);
        open_.push_back(fd);
      }
      std::thread([this, fd] {
        serve_(fd);
        const base::MutexLock lock(&mutex_);
        open_.erase(std::find(open_.begin(), open_.end(), fd));
        ::close(fd);
        closed_.NotifyAll();
      }).detach();
    }
  }

  const Serve serve_;
  base::UniqueFd listener_;
  uint16_t port_ = 0;
  base::Mutex mutex_;
  std::vector<int> open_ ABSL_GUARDED_BY(mutex_);
  base::CondVar closed_;
  std::thread thread_;
};

}  // namespace catnap::testing

#endif  // CATNAP_TESTS_SUPPORT_TCP_H_
