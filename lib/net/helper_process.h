#ifndef CATNAP_LIB_NET_HELPER_PROCESS_H_
#define CATNAP_LIB_NET_HELPER_PROCESS_H_

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/unique_fd.h"

namespace catnap::net {

// A child process that serves one stream socket, and what it wrote to its
// standard error. It ends with this object, and is never left as a zombie.
//
// The host program's own handling of children is left alone: no handler is
// installed, and the child is named by a pidfd, so that nobody else is hit when
// the program takes all its children's ends, or ignores them.
//
// Thread-compatible.
class HelperProcess {
 public:
  // The descriptor under which the child finds its socket.
  static constexpr int kSocketFd = 3;

  // Starts `program`, looked for in $PATH, with these arguments and an empty
  // environment, in a process group of its own, with no other descriptor of
  // ours. Cost: about a millisecond.
  // Errors: NOT_FOUND, there is no such program; RESOURCE_EXHAUSTED, the limit
  // that was hit; others as the system says.
  static absl::StatusOr<std::unique_ptr<HelperProcess>> Start(
      const std::string& program, const std::vector<std::string>& arguments);
  // Kills it, and waits until it has ended.
  ~HelperProcess();
  HelperProcess(const HelperProcess&) = delete;
  HelperProcess& operator=(const HelperProcess&) = delete;

  // Our end of its socket, non-blocking. It ends when the process does.
  const std::shared_ptr<base::UniqueFd>& socket() const { return socket_; }
  pid_t pid() const { return pid_; }

  // Kills it, waits, and says how it had ended and the last line that it wrote
  // before.
  std::string End();

 private:
  HelperProcess() = default;

  std::shared_ptr<base::UniqueFd> socket_;
  base::UniqueFd errors_;  // A memfd of a fixed size.
  base::UniqueFd pidfd_;
  pid_t pid_ = -1;
};

}  // namespace catnap::net

#endif  // CATNAP_LIB_NET_HELPER_PROCESS_H_
