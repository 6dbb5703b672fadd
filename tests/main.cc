#define CATCH_CONFIG_RUNNER
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cstdio>
#include <cstdlib>

#if defined(__SANITIZE_THREAD__)
// Debian's Abseil is not built with the thread sanitizer, which therefore does
// not see how the last owner of a status's text comes to be the last.
extern "C" const char* __tsan_default_suppressions() {
  return "race:absl::*::Status::Unref\n";
}
#endif

// Exit code 77 means "skipped" to CTest. A machine without KVM must not show
// green for tests that never ran.
int main(int argc, char** argv) {
  Catch::Session session;
  const int rc = session.applyCommandLine(argc, argv);
  if (rc != 0) return rc;
  // No other thread runs yet.
  // NOLINTNEXTLINE(concurrency-mt-unsafe)
  const char* needs = std::getenv("CATNAP_TEST_NEEDS");
  if (needs != nullptr && ::access(needs, R_OK | W_OK) != 0) {
    std::printf("skipped: this test needs %s, readable and writable\n", needs);
    return 77;
  }
  return session.run();
}
