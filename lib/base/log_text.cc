#include "base/log_text.h"

#include <cstdint>
#include <cstring>

namespace catnap::base {
namespace {

constexpr std::string_view kCut = "...";

// Control characters, and those that break or reorder a line on a terminal
// (Unicode's line separators and bidirectional controls).
bool IsShown(uint32_t character) {
  if (character < 0x20 || (character >= 0x7f && character < 0xa0)) return false;
  if (character >= 0x2028 && character <= 0x202e) return false;
  return character < 0x2066 || character > 0x2069;
}

// The bytes of the UTF-8 character that `text` starts with; 0 when it is not
// one, or one that is not shown. `text` is not empty.
size_t ShownLength(std::string_view text) {
  const auto first = static_cast<uint8_t>(text[0]);
  if (first < 0x80) return IsShown(first) ? 1 : 0;
  // The lead byte says how many bytes there are; `smallest` is the first value
  // that needs so many.
  size_t length = 0;
  uint32_t value = 0;
  uint32_t smallest = 0;
  if ((first & 0xe0) == 0xc0) {
    length = 2;
    value = first & 0x1f;
    smallest = 0x80;
  } else if ((first & 0xf0) == 0xe0) {
    length = 3;
    value = first & 0x0f;
    smallest = 0x800;
  } else if ((first & 0xf8) == 0xf0) {
    length = 4;
    value = first & 0x07;
    smallest = 0x10000;
  }
  if (length == 0 || text.size() < length) return 0;
  for (const char next : text.substr(1, length - 1)) {
    const auto byte = static_cast<uint8_t>(next);
    if ((byte & 0xc0) != 0x80) return 0;
    value = value << 6 | (byte & 0x3f);
  }
  const bool surrogate = value >= 0xd800 && value <= 0xdfff;
  if (value < smallest || value > 0x10ffff || surrogate) return 0;
  return IsShown(value) ? length : 0;
}

}  // namespace

size_t CleanLogText(std::string_view text, std::span<char> out) {
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r')) {
    text.remove_suffix(1);
  }
  size_t used = 0;
  size_t cut = 0;  // The last place where kCut would fit.
  while (!text.empty()) {
    const size_t shown = ShownLength(text);
    const size_t length = shown == 0 ? 1 : shown;
    if (length > out.size() - used) {
      std::memcpy(&out[cut], kCut.data(), kCut.size());
      return cut + kCut.size();
    }
    if (shown == 0) {
      out[used] = text[0] == '\t' ? ' ' : '?';
    } else {
      std::memcpy(&out[used], text.data(), length);
    }
    used += length;
    if (used <= out.size() - kCut.size()) cut = used;
    text.remove_prefix(length);
  }
  return used;
}

}  // namespace catnap::base
