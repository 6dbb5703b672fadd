#ifndef CATNAP_LIB_GUEST_AGENT_FREEZER_H_
#define CATNAP_LIB_GUEST_AGENT_FREEZER_H_

#include <string>
#include <vector>

namespace catnap::guest {

// Stops and releases all programs, by the kernel's freezer of control groups.
//
// A program with the rights for it may have made groups of its own beside the
// agent's; process 1 freezes those as well. Processes in the root group are the
// kernel's and the agent.
class Freezer {
 public:
  // `base` holds the agent's groups, "" when there are none. `root` is where
  // groups of others are looked for; "" for nowhere.
  Freezer(std::string base, std::string root)
      : base_(std::move(base)), root_(std::move(root)) {}

  // Asks all to stop, which takes a moment. 0, or the errno; then nothing is.
  int Start();
  // Whether all stand still.
  bool IsComplete() const;
  // Idempotent. Groups that were frozen before Start() stay so.
  void Thaw();

 private:
  // Freezes a group that is not frozen. 0, or the errno.
  int Freeze(const std::string& path);

  const std::string base_;
  const std::string root_;
  std::vector<std::string> frozen_;  // The groups that Start() froze.
};

}  // namespace catnap::guest

#endif  // CATNAP_LIB_GUEST_AGENT_FREEZER_H_
