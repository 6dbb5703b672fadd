#include "rootfs/text.h"

#include <array>

#include "base/log_text.h"

namespace catnap::rootfs {

std::string Quote(std::string_view text) {
  constexpr size_t kMaxShownBytes = 400;
  std::array<char, kMaxShownBytes> shown;
  const size_t length = base::CleanLogText(text, shown);
  return {shown.data(), length};
}

}  // namespace catnap::rootfs
