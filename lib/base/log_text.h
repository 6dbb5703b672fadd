#ifndef CATNAP_LIB_BASE_LOG_TEXT_H_
#define CATNAP_LIB_BASE_LOG_TEXT_H_

#include <cstddef>
#include <span>
#include <string_view>

namespace catnap::base {

// What LogRecord::text holds at most.
inline constexpr size_t kMaxLogTextBytes = 4096;

// Copies `text` into `out` as one line that is safe to show: line ends at its
// end are left off; a tab becomes a space; every other control character,
// characters that reorder or break lines, and every byte that is not UTF-8
// become '?'. Text that does not fit ends in "..." between two characters.
// Returns the bytes written. Any bytes are allowed. Thread-safe.
// REQUIRES: out.size() >= 3.
size_t CleanLogText(std::string_view text, std::span<char> out);

}  // namespace catnap::base

#endif  // CATNAP_LIB_BASE_LOG_TEXT_H_
