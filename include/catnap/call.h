#ifndef CATNAP_CALL_H_
#define CATNAP_CALL_H_

#include <chrono>
#include <map>
#include <optional>
#include <stop_token>
#include <string>

namespace catnap {

// All durations of the API. Zero and negative ones are INVALID_ARGUMENT unless
// an option says otherwise.
using Millis = std::chrono::milliseconds;

// Names and values of the user's choice: at most 64, each name 1 to 128 bytes,
// each value at most 1,024.
using Labels = std::map<std::string, std::string>;

// The last, defaulted parameter of every call that can take long. A call that
// ends early says in its comment what is left then.
struct CallOptions {
  // Wall time of the call, then DEADLINE_EXCEEDED. None: as long as it takes.
  std::optional<Millis> timeout{};
  // CANCELLED soon after it was asked to stop, from any thread.
  std::stop_token stop{};
};

}  // namespace catnap

#endif  // CATNAP_CALL_H_
