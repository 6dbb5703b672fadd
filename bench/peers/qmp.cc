#include "peers/qmp.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstring>
#include <thread>

#include "base/status.h"
#include "guest.h"

namespace catnap::bench {
namespace {

constexpr int kTimeoutMs = 300'000;

}  // namespace

Qmp::Qmp(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) {
    Check("QMP", absl::InvalidArgumentError(path + " is too long"));
  }
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  const auto deadline = Soon();
  while (true) {
    socket_ = base::UniqueFd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (::connect(socket_.get(), reinterpret_cast<const sockaddr*>(&address),
                  sizeof(address)) == 0) {
      break;
    }
    if (std::chrono::steady_clock::now() > deadline) {
      Check("QMP", ErrnoError(errno, "connect to {}", path));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  ReadLine();  // Its greeting.
  Run("qmp_capabilities");
}

void Qmp::Send(const std::string& line, int fd) {
  std::string text = line + "\n";
  iovec data{.iov_base = text.data(), .iov_len = text.size()};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  if (fd >= 0) {
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &fd, sizeof(fd));
  }
  if (::sendmsg(socket_.get(), &message, MSG_NOSIGNAL) !=
      static_cast<ssize_t>(text.size())) {
    Check("QMP", ErrnoError(errno, "send {}", line));
  }
}

std::string Qmp::ReadLine() {
  while (true) {
    if (const size_t end = buffer_.find('\n'); end != std::string::npos) {
      std::string line = buffer_.substr(0, end);
      buffer_.erase(0, end + 1);
      return line;
    }
    pollfd wait = {.fd = socket_.get(), .events = POLLIN, .revents = 0};
    std::array<char, 4096> bytes{};
    const ssize_t got = ::poll(&wait, 1, kTimeoutMs) == 1
                            ? ::read(socket_.get(), bytes.data(), bytes.size())
                            : -1;
    if (got <= 0) Check("QMP", absl::UnavailableError("no answer"));
    buffer_.append(bytes.data(), static_cast<size_t>(got));
  }
}

std::string Qmp::Answer(const std::string& command) {
  while (true) {
    std::string line = ReadLine();
    if (line.rfind("{\"return\"", 0) == 0) return line;
    if (line.rfind("{\"error\"", 0) == 0) {
      Check("QMP", Error(absl::StatusCode::kInternal, "{}: {}", command, line));
    }
    events_ += line;
    events_ += '\n';
  }
}

std::string Qmp::Run(const std::string& command, const std::string& arguments) {
  std::string line = R"({"execute": ")" + command + '"';
  if (!arguments.empty()) line += ", \"arguments\": " + arguments;
  Send(line + "}", -1);
  return Answer(command);
}

void Qmp::SendFd(const std::string& name, int fd) {
  Send(R"({"execute": "getfd", "arguments": {"fdname": ")" + name + "\"}}", fd);
  Answer("getfd");
}

void Qmp::WaitForEvent(const std::string& name, const std::string& text,
                       const std::string& failure) {
  while (true) {
    while (!events_.empty()) {
      const size_t end = events_.find('\n');
      const std::string line = events_.substr(0, end);
      events_.erase(0, end + 1);
      if (line.find(name) == std::string::npos) continue;
      if (line.find(text) != std::string::npos) return;
      if (line.find(failure) != std::string::npos) {
        Check("QMP", absl::InternalError(line));
      }
    }
    events_ = ReadLine() + "\n";
  }
}

}  // namespace catnap::bench
