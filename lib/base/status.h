#ifndef CATNAP_LIB_BASE_STATUS_H_
#define CATNAP_LIB_BASE_STATUS_H_

#include <fmt/format.h>

#include <cerrno>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "catnap/errors.h"

// Debian's Abseil keeps absl::string_view distinct from std::string_view:
// build messages with fmt (std::string), never pass a std::string_view.

namespace catnap {

template <typename... Args>
absl::Status Error(absl::StatusCode code, fmt::format_string<Args...> format,
                   Args&&... args) {
  return absl::Status(code, fmt::format(format, std::forward<Args>(args)...));
}

// As Error(), with the payload that ReasonOf() reads.
absl::Status WithReason(absl::Status status, ErrorReason reason);

// Turns `error` (an errno value) into a status: `what`, the system's text for
// the error, and for exhausted resources the limit that was hit, read from
// the process (descriptors, address space, mappings), and what to do.
absl::Status ErrnoStatus(int error, std::string what);

template <typename... Args>
absl::Status ErrnoError(int error, fmt::format_string<Args...> format,
                        Args&&... args) {
  return ErrnoStatus(error, fmt::format(format, std::forward<Args>(args)...));
}

// Puts "context: " before the message; keeps code and payloads. OK stays OK.
absl::Status AddContext(const absl::Status& status, const std::string& context);

// The system's text for an errno value. Thread-safe, unlike strerror().
std::string ErrnoText(int error);

}  // namespace catnap

#define CATNAP_CONCAT_INNER(a, b) a##b
#define CATNAP_CONCAT(a, b) CATNAP_CONCAT_INNER(a, b)

#define CATNAP_RETURN_IF_ERROR(expr)                                  \
  do {                                                                \
    if (::absl::Status catnap_status = (expr); !catnap_status.ok()) { \
      return catnap_status;                                           \
    }                                                                 \
  } while (false)

#define CATNAP_ASSIGN_OR_RETURN(lhs, expr) \
  CATNAP_ASSIGN_OR_RETURN_INNER(CATNAP_CONCAT(catnap_or_, __LINE__), lhs, expr)
#define CATNAP_ASSIGN_OR_RETURN_INNER(tmp, lhs, expr) \
  auto tmp = (expr);                                  \
  if (!tmp.ok()) return std::move(tmp).status();      \
  lhs = std::move(tmp).value()

#endif  // CATNAP_LIB_BASE_STATUS_H_
