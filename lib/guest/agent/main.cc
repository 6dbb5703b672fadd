// The guest agent. As process 1 it sets the guest up first (init.h); otherwise
//
//   catnap-agent --fd N [--cgroup DIRECTORY] [--run DIRECTORY]
//                [--then-fd M]...
//
// serves the connected stream socket N, then each M, and ends with the last,
// which is how tests run it. DIRECTORY of --run stands for /run/catnap.
#include <fcntl.h>
#include <signal.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "guest/agent/files.h"
#include "guest/agent/init.h"
#include "guest/agent/loop.h"
#include "guest/agent/process.h"
#include "guest/agent/relay.h"
#include "guest/agent/server.h"
#include "guest/agent/sleep.h"

namespace catnap::guest {
namespace {

// Between attempts to reach the host: often at first, since a machine that just
// woke up has somebody who waits for it.
constexpr std::chrono::milliseconds kReconnectSoon{1};
constexpr std::chrono::milliseconds kReconnectLater{10};
constexpr int kSoon = 200;

// What the agent is, beside its connection.
struct Guest {
  Loop* loop;
  ProcessTable* processes;
  Sleep* sleep;
};

std::unique_ptr<Task> Begin(const Guest& guest, Server* to, uint32_t stream,
                            agent::Kind kind, Bytes request) {
  if (guest.sleep->Holds(kind)) {
    return guest.sleep->Hold(
        to, stream, kind, request,
        [guest](Server* held_to, uint32_t held, agent::Kind held_kind,
                Bytes held_request) {
          return Begin(guest, held_to, held, held_kind, held_request);
        });
  }
  switch (kind) {
    case agent::Kind::kExec:
      return guest.processes->Exec(to, stream, request);
    case agent::Kind::kAttach:
      return guest.processes->AttachTo(to, stream, request);
    case agent::Kind::kListProcesses:
      return guest.processes->List(to, stream);
    case agent::Kind::kPowerOff:
      if (guest.processes->is_init()) PowerOff();
      return nullptr;
    case agent::Kind::kConnect:
      return MakeConnectTask(to, stream, request);
    case agent::Kind::kListen:
      return MakeListenTask(to, stream, request);
    case agent::Kind::kFreeze:
      return guest.sleep->Freeze(to, stream, request);
    case agent::Kind::kWake:
      return guest.sleep->Wake(to, stream, request);
    case agent::Kind::kThaw:
      return guest.sleep->Thaw(to, stream);
    case agent::Kind::kClock:
      return Sleep::Clock(to, stream);
    default:
      return MakeFileTask(to, stream, kind, request);
  }
}

// Serves one connection until it ends.
void Serve(int fd, const Guest& guest) {
  Server server(
      fd, guest.loop,
      [guest](Server* to, uint32_t stream, agent::Kind kind, Bytes request) {
        return Begin(guest, to, stream, kind, request);
      });
  server.Flush();
  while (server.ok()) {
    guest.loop->RunOnce();
    server.Flush();
    // After the answer is on its way: giving a cgroup back takes time.
    guest.processes->DestroyEnded();
  }
}

// A connection with the host, however long that takes. Meanwhile processes end
// and write.
int AwaitHost(uint32_t port, const Guest& guest) {
  class Connecting final : public Loop::Watcher {
   public:
    void OnEvents(int /*fd*/, uint32_t /*events*/) override { over = true; }
    bool over = false;
  };
  for (int attempt = 0;; ++attempt) {
    const int fd = ConnectToHost(port);
    Connecting connecting;
    const bool waits = fd >= 0 && guest.loop->Add(fd, EPOLLOUT, &connecting);
    while (waits && !connecting.over) {
      guest.loop->RunOnce();
      guest.processes->DestroyEnded();
    }
    if (waits) guest.loop->Remove(fd);
    if (waits && ConnectError(fd) == 0) return fd;
    if (fd >= 0) close(fd);
    bool again = false;
    guest.loop->AddTimer(
        std::chrono::steady_clock::now() +
            (attempt < kSoon ? kReconnectSoon : kReconnectLater),
        [&again] { again = true; });
    while (!again) {
      guest.loop->RunOnce();
      guest.processes->DestroyEnded();
    }
  }
}

// Descriptors 0 to 2 are in use from now on: children get theirs by number.
void OpenStandardFiles() {
  int fd = 0;
  do {
    fd = open("/dev/null", O_RDWR);
  } while (fd >= 0 && fd <= 2);
  if (fd > 2) close(fd);
}

int Run(int argc, char** argv) {
  std::vector<int> fds;
  GuestConfig config;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string_view option = argv[i];
    if (option == "--fd" || option == "--then-fd") {
      fds.push_back(atoi(argv[i + 1]));
    }
    if (option == "--cgroup") config.cgroup_root = argv[i + 1];
    if (option == "--run") config.run_directory = argv[i + 1];
  }
  const bool is_init = getpid() == 1 && fds.empty();
  if (!is_init && fds.empty()) return 2;
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, nullptr);
  if (is_init) config = SetUpGuest();
  OpenStandardFiles();
  for (const int fd : fds) fcntl(fd, F_SETFD, FD_CLOEXEC);
  Loop loop;
  ProcessTable processes(&loop, config.cgroup_root, is_init);
  Sleep sleep(&processes, config.cgroup_root, config.run_directory);
  const Guest guest{&loop, &processes, &sleep};
  for (const int fd : fds) Serve(fd, guest);
  if (!is_init) {
    processes.KillAll();
    return 0;
  }
  // The host may come back: its process was started again, or the guest woke
  // up somewhere else.
  for (;;) Serve(AwaitHost(config.port, guest), guest);
}

}  // namespace
}  // namespace catnap::guest

int main(int argc, char** argv) { return catnap::guest::Run(argc, argv); }
