#include "base/status.h"

#include <sys/resource.h>

#include <array>
#include <cstring>
#include <fstream>
#include <optional>

#include "absl/strings/cord.h"

namespace catnap {
namespace {

// A URL-shaped key, as absl::Status asks for.
constexpr char kReasonKey[] = "catnap.dev/error-reason";

std::string LimitText(int resource) {
  rlimit limit{};
  if (getrlimit(resource, &limit) != 0) return "unknown";
  if (limit.rlim_cur == RLIM_INFINITY) return "unlimited";
  return std::to_string(limit.rlim_cur);
}

std::string FirstLineOf(const char* path) {
  std::ifstream in(path);
  std::string line;
  std::getline(in, line);
  return line.empty() ? "unknown" : line;
}

// What ran out and what to raise, or nothing when `error` is not about limits.
std::optional<std::string> ExhaustedHint(int error) {
  switch (error) {
    case EMFILE:
      return fmt::format(
          "the process is at its descriptor limit (RLIMIT_NOFILE is {}); raise "
          "it with ulimit -n or setrlimit, or run fewer VMs",
          LimitText(RLIMIT_NOFILE));
    case ENFILE:
      return fmt::format(
          "the system is at its descriptor limit (fs.file-max is {})",
          FirstLineOf("/proc/sys/fs/file-max"));
    case ENOMEM:
      return fmt::format(
          "the kernel has no memory for it: the machine is full, or a limit "
          "was hit (RLIMIT_AS is {} bytes, vm.max_map_count is {}, a cgroup's "
          "memory.max)",
          LimitText(RLIMIT_AS), FirstLineOf("/proc/sys/vm/max_map_count"));
    case EAGAIN:
      return fmt::format(
          "the user or its cgroup is at a limit (RLIMIT_NPROC is {}, or the "
          "cgroup's pids.max)",
          LimitText(RLIMIT_NPROC));
    case EFBIG:
      return fmt::format(
          "a file would grow beyond the process's limit (RLIMIT_FSIZE is {} "
          "bytes) or what its file system can hold",
          LimitText(RLIMIT_FSIZE));
    case ENOSPC:
      return std::string("the file system is full");
    case EDQUOT:
      return std::string("the user's disk quota is used up");
    default:
      return std::nullopt;
  }
}

}  // namespace

absl::Status WithReason(absl::Status status, ErrorReason reason) {
  if (!status.ok() && reason != ErrorReason::kNone) {
    status.SetPayload(kReasonKey,
                      absl::Cord(std::to_string(static_cast<int>(reason))));
  }
  return status;
}

ErrorReason ReasonOf(const absl::Status& status) {
  const auto payload = status.GetPayload(kReasonKey);
  if (!payload.has_value()) return ErrorReason::kNone;
  // Only WithReason() writes this key, but a payload may come from anywhere.
  int number = 0;
  for (const char c : std::string(*payload)) {
    if (c < '0' || c > '9' || number > 99) return ErrorReason::kNone;
    number = number * 10 + (c - '0');
  }
  if (number > static_cast<int>(ErrorReason::kGuestPath)) {
    return ErrorReason::kNone;
  }
  return static_cast<ErrorReason>(number);
}

std::string ErrnoText(int error) {
  std::array<char, 128> buffer{};
  // The GNU strerror_r returns the text, which may or may not be in `buffer`.
  return strerror_r(error, buffer.data(), buffer.size());
}

absl::Status ErrnoStatus(int error, std::string what) {
  std::string text = fmt::format("{}: {}", what, ErrnoText(error));
  if (const auto hint = ExhaustedHint(error)) {
    return absl::ResourceExhaustedError(fmt::format("{}; {}", text, *hint));
  }
  return absl::ErrnoToStatus(error, what);
}

absl::Status AddContext(const absl::Status& status,
                        const std::string& context) {
  if (status.ok()) return status;
  absl::Status result(
      status.code(),
      fmt::format("{}: {}", context, std::string(status.message())));
  status.ForEachPayload(
      [&result](absl::string_view key, const absl::Cord& value) {
        result.SetPayload(key, value);
      });
  return result;
}

}  // namespace catnap
