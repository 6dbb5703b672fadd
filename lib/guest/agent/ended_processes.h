#ifndef CATNAP_LIB_GUEST_AGENT_ENDED_PROCESSES_H_
#define CATNAP_LIB_GUEST_AGENT_ENDED_PROCESSES_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>

#include "agent/messages.h"
#include "guest/agent/server.h"

namespace catnap::guest {

struct EndedProcess {
  uint64_t id = 0;
  agent::ExitReport report{};
  std::array<std::string, 2> output{};  // The last of stdout and stderr.

  size_t output_bytes() const { return output[0].size() + output[1].size(); }
};

// The results of processes that ended while nobody listened, for an attach that
// comes later. The oldest are forgotten: first their output, then all.
class EndedProcesses {
 public:
  static constexpr size_t kMaxProcesses = 256;
  static constexpr size_t kMaxOutputBytes = 4 << 20;  // Of all together.

  void Keep(EndedProcess process);
  // Answers with the output and the report, as often as it is asked. Null: not
  // known, and nothing was answered.
  std::unique_ptr<Task> AttachTo(Server* server, uint32_t stream,
                                 uint64_t process_id) const;

 private:
  // Shared with streams that still send it.
  std::deque<std::shared_ptr<const EndedProcess>> processes_;
  size_t output_bytes_ = 0;
};

}  // namespace catnap::guest

#endif  // CATNAP_LIB_GUEST_AGENT_ENDED_PROCESSES_H_
