#ifndef CATNAP_LIB_BASE_LOG_H_
#define CATNAP_LIB_BASE_LOG_H_

#include <fmt/format.h>

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "base/clock.h"
#include "catnap/executor.h"
#include "catnap/log.h"

namespace catnap::base {

// How much one source may log. What comes faster is left out and counted in
// the next record's `dropped`. As many lines and bytes as a burst may wait for
// a sink that is slow.
struct LogBounds {
  double lines_per_second = 100;
  double burst_lines = 1000;
  double bytes_per_second = 64 << 10;
  double burst_bytes = 256 << 10;
};

struct LoggerOptions {
  std::shared_ptr<LogSink> sink{};  // Null: silent.
  // Where the sink is called: the host program's executor, so that its code
  // never runs on a vCPU or I/O thread. Null: the thread that logs.
  std::shared_ptr<Executor> executor{};
  std::string vm_id{};  // Empty: not about one VM.
  std::string source{};
  LogBounds bounds{};
  Clock* clock = nullptr;  // Must outlive the Logger. Null: the system's.
};

// Sends one source's lines to the user's sink: cleaned (CleanLogText), bounded
// in length and rate, in order, never two calls at once, no lock held during
// the call. Lines that wait when the last copy goes are still delivered.
//
// Copies are the same source. Thread-safe; does not block, except on the sink
// when there is no executor. Nothing here throws: a line for which there is no
// memory, or that cannot be formatted, counts as dropped.
class Logger {
 public:
  Logger() = default;  // Silent.
  explicit Logger(LoggerOptions options);

  template <typename... Args>
  void Debug(fmt::format_string<Args...> format, Args&&... args) const {
    Format(LogSeverity::kDebug, format, fmt::make_format_args(args...));
  }
  template <typename... Args>
  void Info(fmt::format_string<Args...> format, Args&&... args) const {
    Format(LogSeverity::kInfo, format, fmt::make_format_args(args...));
  }
  template <typename... Args>
  void Warning(fmt::format_string<Args...> format, Args&&... args) const {
    Format(LogSeverity::kWarning, format, fmt::make_format_args(args...));
  }
  template <typename... Args>
  void Error(fmt::format_string<Args...> format, Args&&... args) const {
    Format(LogSeverity::kError, format, fmt::make_format_args(args...));
  }

  // Logs "text: STATUS" as a warning when `status` is an error: the place for
  // statuses that nobody can be given.
  template <typename... Args>
  void LogIfError(const absl::Status& status,
                  fmt::format_string<Args...> format, Args&&... args) const {
    if (status.ok()) return;
    FormatStatus(status, format, fmt::make_format_args(args...));
  }

  // One line as it is, such as a guest wrote it. The line end may be there.
  void Line(LogSeverity severity, std::string_view text) const noexcept;

 private:
  class Core;

  void Format(LogSeverity severity, fmt::string_view format,
              fmt::format_args args) const noexcept;
  void FormatStatus(const absl::Status& status, fmt::string_view format,
                    fmt::format_args args) const noexcept;

  std::shared_ptr<Core> core_;  // Null: silent.
};

}  // namespace catnap::base

#endif  // CATNAP_LIB_BASE_LOG_H_
