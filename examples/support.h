#ifndef CATNAP_EXAMPLES_SUPPORT_H_
#define CATNAP_EXAMPLES_SUPPORT_H_

#include <netdb.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdio>
#include <string>

#include "catnap/catnap.h"

// What the examples have in common, and users have of their own.

namespace examples {

// Shows what a step took when it ends.
class Step {
 public:
  explicit Step(const char* name)
      : name_(name), begin_(std::chrono::steady_clock::now()) {}
  Step(const Step&) = delete;
  Step& operator=(const Step&) = delete;
  ~Step() {
    const std::chrono::duration<double, std::milli> took =
        std::chrono::steady_clock::now() - begin_;
    std::printf("%-48s %9.1f ms\n", name_, took.count());
    std::fflush(stdout);
  }

 private:
  const char* const name_;
  const std::chrono::steady_clock::time_point begin_;
};

inline int Fail(const char* what, const absl::Status& status) {
  std::fprintf(stderr, "%s: %s\n", what, status.ToString().c_str());
  return 1;
}

// What a web server at the address answers to GET /, head and body; "" when
// there is none. Gives up on one that is silent for a minute.
inline std::string Fetch(const catnap::HostAddress& address) {
  addrinfo* found = nullptr;
  const std::string port = std::to_string(address.port);
  if (::getaddrinfo(address.host.c_str(), port.c_str(), nullptr, &found) != 0) {
    return "";
  }
  const catnap::UniqueFd fd(::socket(found->ai_family, SOCK_STREAM, 0));
  const timeval silence{.tv_sec = 60, .tv_usec = 0};
  ::setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &silence, sizeof(silence));
  const bool connected =
      ::connect(fd.get(), found->ai_addr, found->ai_addrlen) == 0;
  ::freeaddrinfo(found);
  const std::string request = "GET / HTTP/1.0\r\n\r\n";
  if (!connected || ::write(fd.get(), request.data(), request.size()) < 0) {
    return "";
  }
  std::string answer;
  std::array<char, 4096> buffer{};
  for (ssize_t got = 0;
       (got = ::read(fd.get(), buffer.data(), buffer.size())) > 0;) {
    answer.append(buffer.data(), static_cast<size_t>(got));
  }
  return answer;
}

}  // namespace examples

#endif  // CATNAP_EXAMPLES_SUPPORT_H_
