#ifndef CATNAP_TESTS_FUZZ_FUZZ_TARGET_H_
#define CATNAP_TESTS_FUZZ_FUZZ_TARGET_H_

#include <cstddef>
#include <cstdint>
#include <cstdio>

// What each fuzz target defines, under the name that libFuzzer calls. Returns
// 0. A finding is a crash, a sanitizer's report or a failed FUZZ_CHECK.
// NOLINTNEXTLINE(readability-identifier-naming)
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

// Ends the process, with or without NDEBUG, when the code under test broke a
// promise.
#define FUZZ_CHECK(condition)                                         \
  do {                                                                \
    if (!(condition)) {                                               \
      std::fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, \
                   #condition);                                       \
      __builtin_trap();                                               \
    }                                                                 \
  } while (false)

#endif  // CATNAP_TESTS_FUZZ_FUZZ_TARGET_H_
