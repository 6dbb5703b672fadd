#ifndef CATNAP_LOG_H_
#define CATNAP_LOG_H_

#include <chrono>
#include <cstdint>
#include <string_view>

#include "catnap/export.h"

namespace catnap {

enum class LogSeverity { kDebug, kInfo, kWarning, kError };

// One line. The views are valid during LogSink::Write() only.
struct LogRecord {
  LogSeverity severity = LogSeverity::kInfo;
  std::chrono::system_clock::time_point time{};
  std::string_view vm_id{};   // Empty: not about one VM.
  std::string_view source{};  // "console", "vcpu", "app", ...
  // One line without its newline, at most 4,096 bytes. Text that came from a
  // guest has its control characters replaced, and is not trusted otherwise.
  std::string_view text{};
  // Lines of this source that were left out since the last record, because
  // they came faster than the bound allows.
  uint64_t dropped = 0;
};

// Takes the library's log lines.
//
// Thread safety: calls never overlap for one source of one VM; different
// sources may call at once. Must not throw.
class CATNAP_EXPORT LogSink {
 public:
  virtual ~LogSink() = default;
  virtual void Write(const LogRecord& record) = 0;
};

}  // namespace catnap

#endif  // CATNAP_LOG_H_
