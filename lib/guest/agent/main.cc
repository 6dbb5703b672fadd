// The guest agent. As process 1 it sets the guest up first (init.h); otherwise
//
//   catnap-agent --fd N [--cgroup DIRECTORY]
//
// serves the connected stream socket N and ends with it, which is how tests
// run it.
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <string>
#include <string_view>

#include "guest/agent/files.h"
#include "guest/agent/init.h"
#include "guest/agent/loop.h"
#include "guest/agent/process.h"
#include "guest/agent/relay.h"
#include "guest/agent/server.h"

namespace catnap::guest {
namespace {

constexpr std::chrono::milliseconds kReconnect{10};

// Serves one connection until it ends.
void Serve(int fd, Loop* loop, ProcessTable* processes) {
  Server server(fd, loop,
                [processes](Server* to, uint32_t stream, agent::Kind kind,
                            Bytes request) -> std::unique_ptr<Task> {
                  switch (kind) {
                    case agent::Kind::kExec:
                      return processes->Exec(to, stream, request);
                    case agent::Kind::kAttach:
                      return processes->AttachTo(to, stream, request);
                    case agent::Kind::kListProcesses:
                      return processes->List(to, stream);
                    case agent::Kind::kPowerOff:
                      if (processes->is_init()) PowerOff();
                      return nullptr;
                    case agent::Kind::kConnect:
                      return MakeConnectTask(to, stream, request);
                    case agent::Kind::kListen:
                      return MakeListenTask(to, stream, request);
                    default:
                      return MakeFileTask(to, stream, kind, request);
                  }
                });
  server.Flush();
  while (server.ok()) {
    loop->RunOnce();
    server.Flush();
    // After the answer is on its way: giving a cgroup back takes time.
    processes->DestroyEnded();
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
  int fd = -1;
  std::string cgroup_root;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string_view option = argv[i];
    if (option == "--fd") fd = atoi(argv[i + 1]);
    if (option == "--cgroup") cgroup_root = argv[i + 1];
  }
  const bool is_init = getpid() == 1 && fd < 0;
  if (!is_init && fd < 0) return 2;
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, nullptr);
  GuestConfig config;
  if (is_init) {
    config = SetUpGuest();
    cgroup_root = config.cgroup_root;
  }
  OpenStandardFiles();
  Loop loop;
  ProcessTable processes(&loop, cgroup_root, is_init);
  if (!is_init) {
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    Serve(fd, &loop, &processes);
    processes.KillAll();
    return 0;
  }
  // The host may come back: its process was started again, or the guest woke
  // up somewhere else.
  for (;;) {
    const int connection = ConnectToHost(config.port);
    if (connection >= 0) Serve(connection, &loop, &processes);
    // Meanwhile processes end and write.
    bool again = false;
    loop.AddTimer(std::chrono::steady_clock::now() + kReconnect,
                  [&again] { again = true; });
    while (!again) {
      loop.RunOnce();
      processes.DestroyEnded();
    }
  }
}

}  // namespace
}  // namespace catnap::guest

int main(int argc, char** argv) { return catnap::guest::Run(argc, argv); }
