#ifndef CATNAP_LIB_GUEST_AGENT_SPAWN_H_
#define CATNAP_LIB_GUEST_AGENT_SPAWN_H_

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "guest/agent/users.h"

namespace catnap::guest {

struct SpawnPlan {
  std::vector<std::string> argv{};
  std::vector<std::string> env{};
  std::string cwd = "/";
  User user{};
  bool change_user = false;
  int stdin_fd = -1, stdout_fd = -1, stderr_fd = -1;  // Above 2, close-on-exec.
  bool terminal = false;  // stdin_fd becomes the controlling terminal.
  uint64_t dropped_capabilities = 0;
  int cgroup_fd = -1;
  bool reset_oom_score = false;  // The agent's own protects it.
};

struct SpawnResult {
  pid_t pid = -1;     // Below 0: not started.
  int exit_code = 0;  // Then: 127 not found, 126 else.
  std::string error{};
};

// Starts a program in a session of its own, by clone3(CLONE_VM|CLONE_VFORK):
// nothing is copied, the child is born in its cgroup, and what fails before the
// program runs is known when this returns. The program sees no signal blocked.
SpawnResult Spawn(const SpawnPlan& plan);

}  // namespace catnap::guest

#endif  // CATNAP_LIB_GUEST_AGENT_SPAWN_H_
