#ifndef CATNAP_TESTS_SUPPORT_RUNNING_AGENT_H_
#define CATNAP_TESTS_SUPPORT_RUNNING_AGENT_H_

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "agent/client.h"
#include "agent/process.h"
#include "base/clock.h"
#include "base/unique_fd.h"

namespace catnap::testing {

// A stream socket as a client's channel, served by a thread of its own.
class SocketChannel final : public agent::ByteChannel {
 public:
  explicit SocketChannel(
      base::UniqueFd fd,
      std::shared_ptr<agent::ServiceListener> services = nullptr)
      : fd_(std::move(fd)) {
    auto wake = base::CreateEventFd();
    if (!wake.ok()) std::abort();
    wake_ = *std::move(wake);
    client_ = std::make_unique<agent::Client>(
        this, &clock_, agent::Client::Options{.services = std::move(services)});
    thread_ = std::thread([this] { Run(); });
  }
  ~SocketChannel() override {
    stop_ = true;
    base::SignalEventFd(wake_.get());
    thread_.join();
    client_.reset();
  }

  size_t Send(std::span<const uint8_t> bytes) override {
    const ssize_t sent = ::send(fd_.get(), bytes.data(), bytes.size(),
                                MSG_DONTWAIT | MSG_NOSIGNAL);
    const size_t taken = sent < 0 ? 0 : static_cast<size_t>(sent);
    if (taken < bytes.size()) {
      full_ = true;
      base::SignalEventFd(wake_.get());
    }
    return taken;
  }

  agent::Client* client() { return client_.get(); }
  int fd() const { return fd_.get(); }

 private:
  void Run() {
    std::vector<uint8_t> buffer(size_t{64} << 10);
    while (!stop_) {
      const bool full = full_;
      std::array<pollfd, 2> fds = {
          {{fd_.get(), static_cast<int16_t>(full ? POLLIN | POLLOUT : POLLIN),
            0},
           {wake_.get(), POLLIN, 0}}};
      // Deadlines come near without a wake-up; 20 ms are near enough.
      ::poll(fds.data(), fds.size(), 20);
      base::DrainEventFd(wake_.get());
      client_->OnTime();
      if (full && (fds[0].revents & POLLOUT) != 0) {
        full_ = false;
        client_->OnWritable();
      }
      if ((fds[0].revents & (POLLIN | POLLHUP)) == 0) continue;
      const ssize_t got =
          ::recv(fd_.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
      if (got > 0) {
        client_->OnReceive({buffer.data(), static_cast<size_t>(got)});
      } else if (got == 0 || errno != EAGAIN) {
        client_->Close(absl::UnavailableError("the agent is gone"));
        return;
      }
    }
  }

  base::SystemClock clock_;
  base::UniqueFd fd_;
  base::UniqueFd wake_;
  std::atomic<bool> stop_{false};
  std::atomic<bool> full_{false};
  std::unique_ptr<agent::Client> client_;
  std::thread thread_;
};

// A cgroup2 directory that tests may use; "" when there is none.
inline std::string WritableCgroup() {
  for (const char* root : {"/sys/fs/cgroup/unified", "/sys/fs/cgroup"}) {
    std::string path = root;
    if (::access((path + "/cgroup.kill").c_str(), F_OK) == 0 ||
        ::access((path + "/cgroup.controllers").c_str(), F_OK) == 0) {
      if (::access(path.c_str(), W_OK) == 0) return path;
    }
  }
  return "";
}

// The agent as an ordinary process, with a client or with a bare socket.
class RunningAgent {
 public:
  struct Options {
    std::string run_directory{};  // Stands for /run/catnap.
    bool cgroups = true;          // Where there are any.
    // It waits for another connection when the first has ended.
    bool reconnects = false;
  };

  // `program` is the agent's path.
  explicit RunningAgent(
      const std::string& program,
      std::shared_ptr<agent::ServiceListener> services = nullptr)
      : RunningAgent(program, Options{}, std::move(services)) {}
  RunningAgent(const std::string& program, const Options& options,
               std::shared_ptr<agent::ServiceListener> services = nullptr)
      : services_(std::move(services)) {
    const base::UniqueFd theirs = MakePair(&ours_);
    base::UniqueFd next;
    if (options.reconnects) next = MakePair(&next_);
    // Not 3: it may be the socket itself, which then stays close-on-exec.
    const std::string number = std::to_string(kAgentFd);
    const std::string next_number = std::to_string(kAgentFd + 1);
    const std::string cgroup = options.cgroups ? WritableCgroup() : "";
    std::vector<std::string> texts = {program, "--fd", number};
    if (!cgroup.empty()) texts.insert(texts.end(), {"--cgroup", cgroup});
    if (options.reconnects) {
      texts.insert(texts.end(), {"--then-fd", next_number});
    }
    if (!options.run_directory.empty()) {
      texts.insert(texts.end(), {"--run", options.run_directory});
    }
    std::vector<char*> argv;
    argv.reserve(texts.size() + 1);
    for (std::string& text : texts) argv.push_back(text.data());
    argv.push_back(nullptr);
    std::array<char*, 1> env = {nullptr};
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_adddup2(&actions, theirs.get(), kAgentFd);
    if (next.valid()) {
      ::posix_spawn_file_actions_adddup2(&actions, next.get(), kAgentFd + 1);
    }
    if (::posix_spawn(&pid_, program.c_str(), &actions, nullptr, argv.data(),
                      env.data()) != 0) {
      std::abort();
    }
    ::posix_spawn_file_actions_destroy(&actions);
  }
  ~RunningAgent() {
    channel_.reset();
    ours_.Reset();
    next_.Reset();
    Join();
  }
  // Ends the connection, and its client; client() is of the next one.
  // REQUIRES: Options::reconnects; once.
  void Reconnect() {
    channel_.reset();
    ours_ = std::move(next_);
  }

  // The exit status after its connection ended.
  int Join() {
    if (pid_ < 0) return 0;
    int status = 0;
    ::waitpid(std::exchange(pid_, -1), &status, 0);
    return status;
  }

  pid_t pid() const { return pid_; }
  // The bare socket. REQUIRES: client() was not called.
  base::UniqueFd* socket() { return &ours_; }
  agent::Client* client() {
    if (channel_ == nullptr) {
      channel_ = std::make_unique<SocketChannel>(std::move(ours_), services_);
    }
    return channel_->client();
  }

  absl::StatusOr<agent::ExecOutcome> Exec(agent::ExecRequest request,
                                          uint64_t max_output = 1 << 20) {
    auto done =
        std::make_shared<std::promise<absl::StatusOr<agent::ExecOutcome>>>();
    auto result = done->get_future();
    const auto stream =
        agent::Exec(client(), std::move(request), max_output, std::nullopt,
                    [done](absl::StatusOr<agent::ExecOutcome> outcome) {
                      done->set_value(std::move(outcome));
                    });
    if (!stream.ok()) return stream.status();
    return result.get();
  }

 private:
  static constexpr int kAgentFd = 200;

  static base::UniqueFd MakePair(base::UniqueFd* ours) {
    std::array<int, 2> pair{};
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair.data()) !=
        0) {
      std::abort();
    }
    *ours = base::UniqueFd(pair[0]);
    return base::UniqueFd(pair[1]);
  }

  std::shared_ptr<agent::ServiceListener> services_;
  base::UniqueFd ours_;
  base::UniqueFd next_;
  pid_t pid_ = -1;
  std::unique_ptr<SocketChannel> channel_;
};

}  // namespace catnap::testing

#endif  // CATNAP_TESTS_SUPPORT_RUNNING_AGENT_H_
