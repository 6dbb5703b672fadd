#ifndef CATNAP_LIB_AGENT_LOG_LINES_H_
#define CATNAP_LIB_AGENT_LOG_LINES_H_

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "base/log.h"

namespace catnap::agent {

// Makes log lines of one output of a guest's program, which is hostile: any
// bytes, in pieces of any size. A line that is longer than a record holds
// becomes several, cut between characters; the logger cleans them, bounds their
// rate and counts what it leaves out. Holds at most one record's worth of a
// line that has no end yet.
//
// Thread-compatible. Does not block, except as `log` does.
class LogLines {
 public:
  LogLines(base::Logger log, LogSeverity severity);

  void Feed(std::span<const uint8_t> bytes);
  // The output has ended: what has no line end is a line, too.
  void End();

 private:
  void Add(std::string_view text);
  void Emit();

  const base::Logger log_;
  const LogSeverity severity_;
  std::string partial_;
};

}  // namespace catnap::agent

#endif  // CATNAP_LIB_AGENT_LOG_LINES_H_
