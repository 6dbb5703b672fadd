#ifndef CATNAP_LIB_RUNTIME_TOOL_PROCESS_H_
#define CATNAP_LIB_RUNTIME_TOOL_PROCESS_H_

#include <chrono>
#include <optional>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace catnap::runtime {

// A program of the library's own, run as a child that shares nothing with the
// host program but what is listed here: its environment is empty, its input
// /dev/null, signals are as the system sets them.
struct Tool {
  std::string path;
  std::vector<std::string> arguments;  // The first is its name.
  // Ours and its number in the child, which counts from 3 without gaps.
  std::vector<std::pair<int, int>> descriptors;
  std::optional<std::chrono::steady_clock::time_point> deadline;
  std::stop_token stop;
};

// How a tool ended.
struct ToolEnd {
  // None: by a signal, or nobody can tell, because the host program ignores
  // SIGCHLD or waits for all children.
  std::optional<int> exit_code;
  // The first bytes of what it wrote, kMaxToolOutputBytes each at most.
  std::string output;
  std::string errors;
};
inline constexpr size_t kMaxToolOutputBytes = 4096;

// Runs `tool` until it ends. No process is left when this returns.
// Blocks. Thread-safe.
// Errors: DEADLINE_EXCEEDED, CANCELLED; FAILED_PRECONDITION, it cannot be
// started; RESOURCE_EXHAUSTED, processes or descriptors.
absl::StatusOr<ToolEnd> RunTool(const Tool& tool);

}  // namespace catnap::runtime

#endif  // CATNAP_LIB_RUNTIME_TOOL_PROCESS_H_
