#include "agent/log_lines.h"

#include <utility>

#include "base/log_text.h"

namespace catnap::agent {
namespace {

constexpr size_t kMaxCharacterBytes = 4;  // Of UTF-8.

// Where to cut text of more than kMaxLogTextBytes: there, or a little before
// when that would be inside a character.
size_t CutOf(std::string_view text) {
  for (size_t back = 0; back < kMaxCharacterBytes; ++back) {
    const size_t cut = base::kMaxLogTextBytes - back;
    if ((static_cast<uint8_t>(text[cut]) & 0xc0) != 0x80) return cut;
  }
  return base::kMaxLogTextBytes;  // It is not UTF-8.
}

}  // namespace

LogLines::LogLines(base::Logger log, LogSeverity severity)
    : log_(std::move(log)), severity_(severity) {}

void LogLines::Feed(std::span<const uint8_t> bytes) {
  std::string_view text(reinterpret_cast<const char*>(bytes.data()),
                        bytes.size());
  for (;;) {
    const size_t end = text.find('\n');
    if (end == std::string_view::npos) break;
    Add(text.substr(0, end));
    Emit();
    text.remove_prefix(end + 1);
  }
  Add(text);
}

void LogLines::End() {
  if (!partial_.empty()) Emit();
}

void LogLines::Emit() {
  log_.Line(severity_, partial_);
  partial_.clear();
}

void LogLines::Add(std::string_view text) {
  while (partial_.size() + text.size() > base::kMaxLogTextBytes) {
    // One byte more shows whether the cut is between characters.
    const size_t room = base::kMaxLogTextBytes + 1 - partial_.size();
    const std::string_view some = text.substr(0, room);
    partial_ += some;
    text.remove_prefix(some.size());
    const size_t cut = CutOf(partial_);
    log_.Line(severity_, std::string_view(partial_).substr(0, cut));
    partial_.erase(0, cut);
  }
  partial_ += text;
}

}  // namespace catnap::agent
