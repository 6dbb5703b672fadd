#include "base/random.h"

#include <sys/random.h>

#include "base/status.h"

namespace catnap::base {

absl::Status FillRandom(std::span<uint8_t> into) {
  while (!into.empty()) {
    // Requests above 256 bytes may end early, by a signal.
    const ssize_t got = ::getrandom(into.data(), into.size(), 0);
    if (got < 0) {
      if (errno == EINTR) continue;
      return ErrnoError(errno, "getrandom of {} bytes", into.size());
    }
    into = into.subspan(static_cast<size_t>(got));
  }
  return absl::OkStatus();
}

}  // namespace catnap::base
